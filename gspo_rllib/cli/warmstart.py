"""``gspo-rllib warmstart``: builds a small chat model that imitates an environment's expert up to a success rate."""

from __future__ import annotations

import argparse
from typing import Any

from gspo_rllib.cli.policy_source import parse_assignments


def add_parser(commands: Any) -> None:
    """Adds the sub-command; options that are not given keep the defaults of ``gspo_rllib.warmstart.warmstart``."""
    parser = commands.add_parser(
        "warmstart", help="make a small policy to start from", description=__doc__, argument_default=argparse.SUPPRESS
    )
    parser.add_argument(
        "env", metavar="ENV", help="environment with an expert, e.g. gspo_rllib.envs:gspo_rllib/Calculator-v0"
    )
    parser.add_argument("out", metavar="OUT", help="Hugging Face folder to write")
    parser.add_argument(
        "--env-config", nargs="+", default=[], metavar="KEY=VALUE", help="environment settings, e.g. operations=6"
    )
    parser.add_argument(
        "--target",
        dest="target_success",
        type=float,
        metavar="SHARE",
        help="stop at this sampled success; default 0.35",
    )
    parser.add_argument(
        "--careless",
        action="store_true",
        help="learn the skill first, then mistakes until success falls to the target",
    )
    parser.add_argument("--architecture", metavar="NAME", help="qwen3 (default) or qwen3_moe")
    parser.add_argument(
        "--sizes", nargs="+", default=[], metavar="KEY=VALUE", help="of the model, e.g. hidden_size=64 num_layers=2"
    )
    parser.add_argument("--temperature", type=float, help="of the sampled evaluation; default 1")
    parser.add_argument("--lr", type=float, help="peak learning rate; default 1e-3")
    parser.add_argument("--seed", type=int, help="fixes weights, tasks and samples; default 0")
    parser.add_argument(
        "--max-minutes", type=float, metavar="N", help="stop by then at the latest, evaluations included; default 15"
    )
    parser.add_argument("--device", help="torch device; default cpu")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Builds, imitates, saves.

    Returns:
        0, or 1 when time was over before the target was reached; the folder is written either way. 128 + the signal's
        number where one ended it; the same command then goes on.
    """
    from gspo_rllib.cli.interrupts import StopRequest
    from gspo_rllib.cli.quiet import hush_libraries
    from gspo_rllib.warmstart import warmstart

    hush_libraries()
    options = {name: value for name, value in vars(arguments).items() if name not in ("command", "run")}
    env, out = options.pop("env"), options.pop("out")
    env_config = parse_assignments(options.pop("env_config"), option="--env-config")
    sizes = parse_assignments(options.pop("sizes"), option="--sizes")
    with StopRequest(after="this step") as request:
        try:
            result = warmstart(
                env, env_config, out, sizes=sizes, interrupted=lambda: request.signal is not None, **options
            )
        except KeyboardInterrupt:
            return request.exit_code
    return 0 if result.reached else 1
