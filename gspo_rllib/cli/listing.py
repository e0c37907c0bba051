"""``gspo-rllib list``: the algorithms, environments, engines and shipped configs that can be named."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("list", help="algorithms, environments, engines, configs", description=__doc__)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints one block per kind."""
    import gymnasium as gym

    import gspo_rllib.envs  # noqa: F401 - registers the environments
    from gspo_rllib.algorithms import ALGORITHMS
    from gspo_rllib.configs import shipped_configs
    from gspo_rllib.engines.registry import available_engines

    print("algorithms (--algorithm, run.algorithm)")
    for name, algorithm in ALGORITHMS.items():
        print(f"  {name:<14} {(algorithm.__doc__ or '').partition(';')[0]}")
    print("environments (--env, environment.env)")
    for env_id in sorted(env_id for env_id in gym.registry if env_id.startswith("gspo_rllib/")):
        print(f"  gspo_rllib.envs:{env_id}")
    print("engines (generation.engine)")
    for engine in available_engines():
        print(f"  {engine}")
    print("configs (gspo-rllib train NAME)")
    for name, path in shipped_configs().items():
        print(f"  {name:<14} {_first_comment(path.read_text(encoding='utf-8'))}")
    return 0


def _first_comment(text: str) -> str:
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
