"""``gspo-rllib report``: the environment, to be pasted into a bug report; it holds no secrets, paths or host names."""

from __future__ import annotations

import argparse
from typing import Any

from gspo_rllib.cli.provenance import git_state, machine, versions


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("report", help="versions and machine, for a bug report", description=__doc__)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints one line per fact."""
    from gspo_rllib.engines.registry import available_engines

    facts: dict[str, Any] = {**versions(), "engines": ", ".join(available_engines()), **machine()}
    gpus = facts.pop("gpus")
    facts["gpus"] = (
        "; ".join(f"{gpu['name']}, {gpu['memory_gib']} GiB, driver {gpu['driver']}" for gpu in gpus) or "none"
    )
    code = git_state()
    facts["code here"] = "no git" if code is None else f"{code['commit']}{', changed' if code['dirty'] else ''}"
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0
