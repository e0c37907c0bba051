"""``gspo-rllib rollout``: lets a policy play, and prints every turn of every trajectory, or keeps them to train on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli import policy_source
from gspo_rllib.cli.cluster_address import address_of
from gspo_rllib.cli.remote_player import opened_player
from gspo_rllib.cli.rows import add_json, rows_file, write_rows
from gspo_rllib.errors import SettingError
from gspo_rllib.places import file_to_write
from gspo_rllib.types import GROUP, TRUNCATED_BY, group_episodes, turns

if TYPE_CHECKING:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

INDENT = " " * 15


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("rollout", help="print trajectories turn by turn", description=__doc__)
    policy_source.add_arguments(parser)
    parser.add_argument("--episodes", type=int, default=3, metavar="N", help="tasks to play; default 3")
    parser.add_argument("--samples", type=int, default=1, metavar="K", help="trajectories per task; default 1")
    parser.add_argument("--groups", metavar="FILE", help="write each task's trajectories here, as JSONL to train on")
    add_json(parser, "trajectory")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plays and prints."""
    address = address_of(arguments)  # first: it takes no import of a framework to be refused
    for option in ("episodes", "samples"):
        policy_source.check_count(f"--{option}", getattr(arguments, option))
    kept = (
        None
        if arguments.groups is None
        else file_to_write(arguments.groups, "--groups", ".jsonl", ": it holds a group on each line")
    )
    file = rows_file(arguments.json) if arguments.json else None
    config = policy_source.policy_config(arguments)
    if kept is not None and config.temperature == 0:
        raise SettingError(
            "--groups: at temperature 0 all trajectories of a task are the same, and log-probabilities are not those "
            "of what was sampled from. Use --temperature 1, or what the policy is trained with."
        )
    wanted, version = arguments.episodes * arguments.samples, policy_source.weights_version(arguments)
    with opened_player(
        config, address=address, episodes=wanted, group_size=arguments.samples, version=version
    ) as runner:
        episodes = runner.sample(num_episodes=wanted)
    if kept is not None:
        from gspo_rllib.driver.group_file import save_groups

        groups = group_episodes(episodes)
        save_groups(kept, groups)
        print(f"{len(groups)} groups of {arguments.samples} trajectories: {kept}")
    if arguments.json:
        write_rows([row(episode) for episode in episodes], file)
        if file is not None:
            print(f"{len(episodes)} trajectories: {file}")
    if kept is not None or arguments.json:
        return 0
    for number, episode in enumerate(episodes, start=1):
        print(f"trajectory {number} of {len(episodes)}")
        for text in describe(episode):
            print(text)
        print()
    return 0


def describe(episode: SingleAgentEpisode) -> Iterator[str]:
    """The lines of one trajectory: its task, each turn, how it ended.

    Args:
        episode: A finished episode whose steps carry a ``Turn``.
    """
    yield f"  task seed    {episode.custom_data[GROUP].task_seed}"
    observations, actions = episode.get_observations(), episode.get_actions()
    total_tokens = 0
    for number, turn in enumerate(turns(episode)):
        tokens = len(turn.action_token_ids)
        total_tokens += tokens
        yield f"  turn {number + 1}"
        yield f"  observation  {printable(observations[number])}"
        yield f"  action       {printable(actions[number])}"
        yield f"  reward       {episode.get_rewards(number):+g} · {tokens} tokens, {turn.finish_reason}"
    if episode.is_truncated:
        yield f"  last seen    {printable(observations[-1])}"
    yield f"  return       {episode.get_return():g} · {len(actions)} turns, {total_tokens} tokens, {outcome(episode)}"


def row(episode: SingleAgentEpisode) -> dict[str, Any]:
    """One trajectory as plain values: its task, each turn, how it ended.

    Args:
        episode: A finished episode whose steps carry a ``Turn``.
    """
    observations, actions = episode.get_observations(), episode.get_actions()
    success = episode.get_infos(-1).get("success")
    played = [
        {
            "observation": observations[number],
            "action": actions[number],
            "reward": float(episode.get_rewards(number)),
            "num_tokens": len(turn.action_token_ids),
            "finish_reason": turn.finish_reason,
        }
        for number, turn in enumerate(turns(episode))
    ]
    return {
        "task_seed": episode.custom_data[GROUP].task_seed,
        "return": float(episode.get_return()),
        "success": None if success is None else bool(success),
        "truncated_by": episode.custom_data.get(TRUNCATED_BY),
        "num_tokens": sum(turn["num_tokens"] for turn in played),
        "turns": played,
        "last_observation": observations[-1],
    }


def outcome(episode: SingleAgentEpisode) -> str:
    """How a trajectory ended, in words."""
    success = episode.get_infos(-1).get("success")
    ended = {True: "success", False: "no success", None: "terminated"}[None if success is None else bool(success)]
    cause = episode.custom_data.get(TRUNCATED_BY)
    return f"{ended}, truncated by {cause}" if cause else ended


def printable(text: str) -> str:
    """Text as it can be shown in a terminal: model output is untrusted, so control characters are escaped.

    Example:
        >>> print(printable("a" + chr(27) + "[2J"))
        a\\x1b[2J
    """
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return shown.replace("\n", f"\n{INDENT}")
