"""``gspo-rllib evaluate``: plays many tasks, or all of a data set, and prints success and return with their error."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli import policy_source
from gspo_rllib.cli.cluster_address import address_of
from gspo_rllib.cli.remote_player import opened_player
from gspo_rllib.cli.rows import add_json, rows_file, write_rows
from gspo_rllib.errors import SettingError
from gspo_rllib.types import TRUNCATED_BY, group_episodes, succeeded, turns

if TYPE_CHECKING:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

_TASKS = 256


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("evaluate", help="success and return of a policy", description=__doc__)
    policy_source.add_arguments(parser)
    parser.add_argument(
        "--episodes", type=int, metavar="N", help=f"tasks to play; default {_TASKS}, or all if there are fewer"
    )
    parser.add_argument("--all", action="store_true", help="every task of an environment that counts them, each once")
    parser.add_argument("--samples", type=int, default=1, metavar="K", help="trajectories per task; default 1")
    add_json(parser, "task")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plays and prints the means."""
    address = address_of(arguments)  # first: it takes no import of a framework to be refused
    for option in ("episodes", "samples"):
        if (given := getattr(arguments, option)) is not None:
            policy_source.check_count(f"--{option}", given)
    if arguments.all and arguments.episodes is not None:
        raise SettingError("--all plays every task, --episodes so many of them: give one of the two.")
    file = rows_file(arguments.json) if arguments.json else None
    config = policy_source.policy_config(arguments)
    from gspo_rllib.driver.evaluation_scores import estimates, tasks_of

    expected = None if arguments.all else (arguments.episodes or _TASKS) * arguments.samples
    with opened_player(config, address=address, episodes=expected, group_size=arguments.samples) as runner:
        wanted = _num_tasks(arguments, runner.num_tasks, config.env) * arguments.samples
        started = time.perf_counter()
        episodes = runner.sample(num_episodes=wanted)
        seconds = time.perf_counter() - started
        errors = runner.last_errors()
    tasks = tasks_of(group_episodes(episodes))
    shown = {"tasks": str(len(tasks))} if arguments.samples > 1 else {}
    shown |= summary(episodes, seconds)
    if (lacking := math.ceil(wanted / arguments.samples) - len(tasks)) > 0:
        shown["not played"] = f"{lacking} of {lacking + len(tasks)} tasks, and the scores are of the others: {errors}"
    if arguments.all or arguments.samples > 1:
        shown |= {name: str(estimate) for name, estimate in estimates(tasks, seed=arguments.seed).items()}
    if file is not None:
        shown["rows"] = str(file)
    for name, text in shown.items():
        print(f"{name:<12} {text}", file=sys.stderr if arguments.json and file is None else sys.stdout)
    if arguments.json:
        write_rows([dataclasses.asdict(task) for task in tasks], file)
    return 0


def _num_tasks(arguments: argparse.Namespace, num_tasks: int | None, env: Any) -> int:
    """How many tasks to play, of as many as the environment counts, if it does."""
    if num_tasks is None:
        if arguments.all:
            raise SettingError(
                f"--all: the environment {env} does not count its tasks (it has no num_tasks()), so there is no "
                "'every' one. Use --episodes N."
            )
        return arguments.episodes or _TASKS
    if (arguments.episodes or 0) > num_tasks:
        # A task that counts twice would make the score look surer than it is.
        raise SettingError(
            f"--episodes {arguments.episodes}: there are {num_tasks} tasks. Use --all, with --samples K to play each "
            "several times."
        )
    return num_tasks if arguments.all else arguments.episodes or min(_TASKS, num_tasks)


def summary(episodes: list[SingleAgentEpisode], seconds: float) -> dict[str, str]:
    """What to print about finished trajectories.

    Args:
        episodes: Finished episodes, at least one.
        seconds: Wall time that playing them took.
    """
    reported = [success for success in map(succeeded, episodes) if success is not None]
    tokens = [sum(len(turn.action_token_ids) for turn in turns(episode)) for episode in episodes]
    truncated = sum(TRUNCATED_BY in episode.custom_data for episode in episodes)
    shown = {"episodes": f"{len(episodes)}"}
    if reported:
        shown["success"] = mean_and_error([float(success) for success in reported], "{:.3f}")
        if len(reported) < len(episodes):
            shown["success"] += f" of the {len(reported)} that said whether they succeeded"
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
