"""``gspo-rllib evaluate``: plays many tasks, one trajectory each, and prints success and return with their error."""

from __future__ import annotations

import argparse
import math
import time
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli import policy_source
from gspo_rllib.types import TRUNCATED_BY, turns

if TYPE_CHECKING:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("evaluate", help="success and return of a policy", description=__doc__)
    policy_source.add_arguments(parser)
    parser.add_argument("--episodes", type=int, default=256, metavar="N", help="tasks to play; default 256")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plays and prints the means."""
    config = policy_source.policy_config(arguments)
    with policy_source.opened_runner(config, episodes=arguments.episodes) as runner:
        started = time.perf_counter()
        episodes = runner.sample(num_episodes=arguments.episodes)
        seconds = time.perf_counter() - started
    for name, text in summary(episodes, seconds).items():
        print(f"{name:<12} {text}")
    return 0


def summary(episodes: list[SingleAgentEpisode], seconds: float) -> dict[str, str]:
    """What to print about finished trajectories.

    Args:
        episodes: Finished episodes, at least one.
        seconds: Wall time that playing them took.
    """
    reported = [info["success"] for info in (e.get_infos(-1) for e in episodes) if "success" in info]
    tokens = [sum(len(turn.action_token_ids) for turn in turns(episode)) for episode in episodes]
    truncated = sum(TRUNCATED_BY in episode.custom_data for episode in episodes)
    shown = {"episodes": f"{len(episodes)}"}
    if reported:
        shown["success"] = mean_and_error([float(bool(s)) for s in reported], "{:.3f}")
    shown["return"] = mean_and_error([float(e.get_return()) for e in episodes], "{:.3f}")
    shown["turns"] = mean_and_error([float(len(e)) for e in episodes], "{:.2f}")
    shown["tokens"] = f"{mean_and_error([float(t) for t in tokens], '{:.1f}')} sampled, {sum(tokens) / seconds:.0f}/s"
    shown["truncated"] = f"{truncated}"
    return shown


def mean_and_error(values: list[float], form: str) -> str:
    """A mean with its standard error.

    Example:
        >>> mean_and_error([0.0, 1.0, 1.0, 0.0], "{:.2f}")
        '0.50 ± 0.29'
        >>> mean_and_error([2.0], "{:.1f}")
        '2.0'
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return form.format(mean)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return f"{form.format(mean)} ± {form.format(math.sqrt(variance / len(values)))}"
