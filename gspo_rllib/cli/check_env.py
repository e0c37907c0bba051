"""``gspo-rllib check-env``: plays an environment and says where it breaks the language-environment contract."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("check-env", help="check an environment's contract", description=__doc__)
    parser.add_argument("env", metavar="ID", help="a Gymnasium id, best as module:id")
    parser.add_argument(
        "--env-config", nargs="+", default=[], metavar="KEY=VALUE", help="environment settings, e.g. operations=8"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the claims that hold and the optional parts that are missing; a violation is the command's error."""
    from gspo_rllib.cli.policy_source import parse_assignments
    from gspo_rllib.env_pool.factory import check_language_env_spec
    from gspo_rllib.envs import check_language_env

    settings = parse_assignments(arguments.env_config, option="--env-config")
    # The first check of a training run; its messages suggest the right name where one is misspelt.
    check_language_env_spec(arguments.env, settings)
    report = check_language_env(arguments.env, **settings)
    for claim in report.passed:
        print(f"ok    {claim}")
    for note in report.notes:
        print(f"note  {note}")
    print(f"{report.name} keeps the language-environment contract")
    return 0
