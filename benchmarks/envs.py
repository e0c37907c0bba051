"""Every registered environment, played by its expert and at random: how fast, how long, what it earns.

    .venv/bin/python benchmarks/envs.py
    .venv/bin/python benchmarks/envs.py --ids Quest Recall --seeds 500 --json results/envs.json

Prints a Markdown table, one row per environment and setting:

steps/s         turns of the expert's episode over the time spent in the environment (reset and step, not the policy);
                median of the episodes, so that other processes on the machine count for little
bytes           UTF-8 bytes of all observations and actions of the expert's episode, mean
turns (max)     turns of the expert's episode, mean (largest)
expert, valid, text   mean return of the expert, of random valid actions, and of random printable text

The same seeds are played by all three. What cannot be played (a missing extra) is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np

import gspo_rllib.envs  # noqa: F401 (registers the ids)

PREFIX = "gspo_rllib/"
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "Arithmetic-v0": {"tiny": {"digits": 1}, "default": {}, "hard": {"operands": 6, "digits": 5}},
    "Bisection-v0": {"default": {}, "medium": {"n": 64}, "hard": {"n": 1024}},
    "Calculator-v0": {
        "tiny": {"operations": 3},
        "default": {},
        "medium": {"operations": 10},
        "hard": {"operations": 30},
    },
    "Mastermind-v0": {
        "default": {},
        "medium": {"positions": 4, "colours": 6, "tries": 8},
        "hard": {"positions": 5, "colours": 7, "tries": 10},
    },
    "Quest-v0": {
        "tiny": {"rooms": 4, "locks": 0},
        "default": {},
        "medium": {"rooms": 12, "locks": 3},
        "hard": {"rooms": 20, "locks": 5},
        "longest": {"rooms": 40, "locks": 8},
    },
    "Recall-v0": {
        "tiny": {"turns": 8, "keys": 2, "values": 4},
        "default": {},
        "hard": {"turns": 200, "keys": 20, "values": 100},
    },
    "PythonTool-v0": {"tiny": {"steps": 1}, "default": {}},
    "SQL-v0": {"tiny": {"tables": 2, "rows": 10}, "default": {}, "hard": {"questions": 5}},
    "Shell-v0": {
        "tiny": {"depth": 1, "fanout": 2, "files": 2},
        "default": {},
        "hard": {"depth": 3, "fanout": 3, "files": 3},
    },
}
"""What each environment is measured with: name of the setting -> keyword arguments. Others: their defaults."""


@dataclass
class Play:
    """Episodes of one policy.

    Attributes:
        returns: Sum of the rewards, per episode.
        turns: Turns, per episode.
        sizes: UTF-8 bytes of observations and actions, per episode.
        seconds: Spent in ``reset`` and ``step``, per episode.
    """

    returns: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One line of the table; None where the environment has no such policy.

    Attributes:
        env: Id of the environment.
        setting: Name of the setting in ``SETTINGS``.
        kwargs: The keyword arguments of that setting.
        episodes: Episodes of the policy that is timed: the expert, or random valid actions where there is no expert.
            Fewer than asked for where time ran out.
        steps_per_s: Turns per second in the environment, median of these episodes.
        bytes_per_episode: UTF-8 bytes of all observations and actions, mean of these episodes.
        turns_mean: Turns, mean of these episodes.
        turns_max: Turns of the longest of these episodes.
        max_turns: Most turns of an episode that the environment allows.
        expert: Mean return of the expert.
        random_valid: Mean return of random valid actions.
        random_text: Mean return of random printable text.
    """

    env: str
    setting: str
    kwargs: dict[str, Any]
    episodes: int
    steps_per_s: float
    bytes_per_episode: float
    turns_mean: float
    turns_max: int
    max_turns: int | None
    expert: float | None
    random_valid: float | None
    random_text: float | None


def play(env: Any, new_policy: Callable[[], Callable[[str], str]], seeds: range, seconds: float) -> Play:
    """Plays a task per seed; no new one is begun after so many seconds."""
    played = Play()
    clock = time.perf_counter
    begun = clock()
    for seed in seeds:
        if played.turns and clock() - begun > seconds:
            break
        policy, turns, total, over = new_policy(), 0, 0.0, False
        before = clock()
        observation, _ = env.reset(seed=seed)
        spent = clock() - before
        size = len(observation.encode("utf-8", "replace"))
        while not over:
            action = policy(observation)
            before = clock()
            observation, reward, terminated, truncated, _ = env.step(action)
            spent += clock() - before
            size += len(action.encode("utf-8", "replace")) + len(observation.encode("utf-8", "replace"))
            total, turns, over = total + float(reward), turns + 1, terminated or truncated
        played.returns.append(total)
        played.turns.append(turns)
        played.sizes.append(size)
        played.seconds.append(spent)
    return played


def measure(env_id: str, setting: str, kwargs: dict[str, Any], seeds: range, seconds: float) -> Row:
    """Plays an environment with all three policies."""
    env = gymnasium.make(f"gspo_rllib.envs:{env_id}", disable_env_checker=True, **kwargs)
    try:
        game: Any = env.unwrapped
        rng = np.random.default_rng(0)
        env.action_space.seed(0)
        policies: dict[str, Callable[[], Callable[[str], str]]] = {}
        if hasattr(game, "expert"):
            policies["expert"] = game.expert
        if hasattr(game, "random_action"):
            policies["random_valid"] = lambda: lambda _: game.random_action(rng)
        policies["random_text"] = lambda: lambda _: env.action_space.sample()
        played = {name: play(env, policy, seeds, seconds) for name, policy in policies.items()}
    finally:
        env.close()
    timed = next(iter(played.values()))
    returns = {name: statistics.fmean(played[name].returns) if name in played else None for name in Row.__annotations__}
    return Row(
        env=env_id,
        setting=setting,
        kwargs=kwargs,
        episodes=len(timed.turns),
        steps_per_s=statistics.median(turns / spent for turns, spent in zip(timed.turns, timed.seconds, strict=True)),
        bytes_per_episode=statistics.fmean(timed.sizes),
        turns_mean=statistics.fmean(timed.turns),
        turns_max=max(timed.turns),
        max_turns=getattr(game, "max_turns", None),
        expert=returns["expert"],
        random_valid=returns["random_valid"],
        random_text=returns["random_text"],
    )


def line(row: Row) -> str:
    """A row of the Markdown table."""
    kwargs = ", ".join(f"{name}={value}" for name, value in row.kwargs.items())
    turns = f"{row.turns_mean:.1f} ({row.turns_max})"
    returns = ["-" if value is None else f"{value:.3f}" for value in (row.expert, row.random_valid, row.random_text)]
    limit = "-" if row.max_turns is None else str(row.max_turns)
    return (
        f"| {row.env.removeprefix(PREFIX):<20} | {row.setting:<8} | {kwargs:<34} | {row.steps_per_s:>9,.0f} "
        f"| {row.bytes_per_episode:>7,.0f} | {turns:>13} | {limit:>5} | {' | '.join(f'{r:>6}' for r in returns)} |"
    )


def main(argv: list[str] | None = None) -> list[Row]:
    """Prints the table; returns its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ids", nargs="*", default=[""], help="parts of the ids to measure; all of them by default")
    parser.add_argument("--settings", nargs="*", help="names of settings to measure; all of them by default")
    parser.add_argument("--seeds", type=int, default=100, help="how many tasks each policy plays")
    parser.add_argument("--seconds", type=float, default=30.0, help="no policy begins an episode after this time")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args(argv)

    chosen = [e for e in sorted(gymnasium.registry) if e.startswith(PREFIX) and any(part in e for part in args.ids)]
    rows: list[Row] = []
    skipped: list[str] = []
    print(
        f"| {'environment':<20} | {'setting':<8} | {'settings':<34} | {'steps/s':>9} | {'bytes':>7} "
        f"| {'turns (max)':>13} | {'limit':>5} | {'expert':>6} | {'valid':>6} | {'text':>6} |"
    )
    print(f"|{'---|' * 3}{'--:|' * 7}")
    for env_id in chosen:
        for setting, kwargs in SETTINGS.get(env_id.removeprefix(PREFIX), {"default": {}}).items():
            if args.settings and setting not in args.settings:
                continue
            try:
                rows.append(measure(env_id, setting, kwargs, range(args.seeds), args.seconds))
            # A missing extra, or an environment that breaks: the others are measured all the same.
            except Exception as error:  # noqa: BLE001
                skipped.append(f"{env_id} {setting}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
                continue
            print(line(rows[-1]), flush=True)
    for reason in skipped:
        print(f"skipped {reason}")
    if not rows and not skipped:
        print(f"no id contains any of {args.ids}; there are: {', '.join(e for e in gymnasium.registry if PREFIX in e)}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
