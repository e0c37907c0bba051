"""Does one clip range, untouched, do as well as the best of the fixed ones at every length and learning rate?

    .venv/bin/python benchmarks/ranges.py run ranges.jsonl
    .venv/bin/python benchmarks/ranges.py run ranges.jsonl --tasks calculator quest --rules deviations --seeds 1 2
    .venv/bin/python benchmarks/ranges.py table ranges.jsonl

A cell is a task, a learning rate, a rule for the range and a seed: some iterations of training from the same
warm-started policy, then an evaluation on the same fixed tasks. ``run`` appends one JSON line per finished cell and
skips those that are in the file, so that the same command goes on after an interruption. Warm starts that ``--models``
does not hold are made first, by the commands that the recipes' heads name. ``table`` prints Markdown: the evaluated
score, in brackets the mean of all iterations but the first, the share of clipped trajectories, and a mark where the
first is less than half of the best three iterations in a row. One process, one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import pathlib
import statistics
import string
import time
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import ray

from gspo_rllib import ChatSpec, UnicodeText, metrics
from gspo_rllib.configs import load_config
from gspo_rllib.warmstart import warmstart
from gspo_rllib.warmstart.models import build_model

WINDOW = 3
"""Iterations in a row whose mean counts as the best of a run: one alone is luck."""


class LettersEnv(gym.Env):  # type: ignore[misc]  # gymnasium is not looked into here
    """Pays for every letter in ten replies of a hundred tokens each: nothing has to be known to begin with."""

    metadata = {"render_modes": [], "blocking": False}
    observation_space = UnicodeText()
    action_space = UnicodeText()
    chat = ChatSpec(system_prompt="Write letters.")
    turns, tokens = 10, 100

    def __init__(self) -> None:
        self.turn = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts over; the seed decides a word of the first observation."""
        super().reset(seed=seed)
        self.turn = 0
        return "write " + "".join(self.np_random.choice(list(string.ascii_lowercase), 4)), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Counts letters."""
        self.turn += 1
        letters = min(self.tokens, sum(character in string.ascii_letters for character in action))
        return "more", letters / (self.turns * self.tokens), self.turn == self.turns, False, {}


@dataclass(frozen=True)
class Task:
    """What is trained on.

    Attributes:
        label: Name in the table.
        recipe: The config it begins from.
        model: Folder of its warm start, below ``--models``.
        overrides: What differs from the recipe.
        start: Arguments of ``warmstart``; empty for a policy that was never trained.
        iterations: Length of a run.
        evaluated: Tasks of the evaluation.
    """

    label: str
    recipe: str
    model: str
    overrides: tuple[str, ...]
    start: dict[str, Any] = field(default_factory=dict)
    iterations: int = 8
    evaluated: int = 128


def _groups(groups: int, size: int) -> tuple[str, ...]:
    """Overrides for so many groups of a size, all played at once."""
    return (
        f"training.groups_per_iteration={groups}",
        f"training.group_size={size}",
        f"env_runners.num_envs_per_env_runner={groups * size}",
    )


TASKS = {
    "calculator": Task(
        "Calculator",
        "calculator",
        "seed",
        _groups(16, 8),
        dict(env="Calculator", env_config={"operations": 6}, careless=True),
    ),
    "letters": Task(
        "Letters",
        "calculator",
        "letters",
        (*_groups(4, 4), "environment.env_config={}", f"generation.max_tokens_per_turn={LettersEnv.tokens}"),
        iterations=6,
        evaluated=16,
    ),
    "quest": Task(
        "Quest, 6 rooms",
        "quest",
        "quest",
        _groups(8, 8),
        dict(env="Quest", env_config={"rooms": 6, "locks": 1}, target_success=0.4, careless=True),
    ),
    "quest_long": Task(
        "Quest, 20 rooms",
        "quest",
        "quest_long",
        (*_groups(4, 8), "environment.env_config={rooms: 20, locks: 5, milestones: 0.5}"),
        dict(env="Quest", env_config={"rooms": 20, "locks": 5}, target_success=0.2, lr=2e-3),
        evaluated=64,
    ),
}

AUTOMATIC = "deviations"
PER_TURN = ("training.importance_sampling_level=turn", "training.reduction=turn_mean")
FIXED = {"0.03/0.04": (0.03, 0.04), "3e-3/4e-3": (3e-3, 4e-3), "3e-4/4e-4": (3e-4, 4e-4)}
RULES: dict[str, tuple[str, ...]] = {
    AUTOMATIC: ("training.clip_scaling=deviations",),
    **{name: (f"training.clip_low={low}", f"training.clip_high={high}") for name, (low, high) in FIXED.items()},
    "GRPO 0.2/0.28": ("run.algorithm=GRPO", "training.clip_low=0.2", "training.clip_high=0.28"),
    "turn, deviations": (*PER_TURN, "training.clip_scaling=deviations"),
    "turn, 0.03/0.04": (*PER_TURN, "training.clip_low=0.03", "training.clip_high=0.04"),
}
"""Overrides of each; GSPO unless said, with a ratio per trajectory."""

Cell = tuple[str, float, str, int]
Row = dict[str, Any]


def cell_of(row: Row) -> Cell:
    """Which cell a row is of."""
    return row["task"], row["lr"], row["rule"], row["seed"]


def read(path: pathlib.Path) -> list[Row]:
    """The finished cells; a line that was not written to its end does not count."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append(path: pathlib.Path, row: Row) -> None:
    """Adds a finished cell, on a line of its own even behind one that was not written to its end."""
    torn = path.exists() and path.read_text()[-1:] not in ("", "\n")
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps(row) + "\n")


def start_of(task: Task, models: pathlib.Path) -> pathlib.Path:
    """The folder of a task's first policy, which is made if it is missing."""
    folder = models / task.model
    if (folder / "model.safetensors").exists():
        return folder
    if not task.start:
        return build_model(folder, max_position_embeddings=1536, num_layers=2, initializer_range=0.1)
    given = dict(task.start)
    env, env_config = f"gspo_rllib.envs:gspo_rllib/{given.pop('env')}-v0", given.pop("env_config")
    warmstart(env, env_config, folder, max_minutes=30, **given)
    return folder


def play(cell: Cell, model: pathlib.Path, iterations: int | None, evaluated: int | None) -> Row:
    """Trains and evaluates one cell.

    Args:
        cell: Which.
        model: Folder of its first policy.
        iterations: Instead of the task's own number.
        evaluated: Tasks of the evaluation, instead of the task's own number.
    """
    name, lr, rule, seed = cell
    task = TASKS[name]
    fixed = (
        f"rl_module.model_config={{path: {model}}}",
        f"debugging.seed={seed}",
        f"training.lr={lr}",
        "generation.engine=transformers",
        f"evaluation.evaluation_duration={evaluated or task.evaluated}",
        "evaluation.evaluation_duration_unit=episodes",
    )
    # A recipe's own range is no part of a rule that has none.
    config = load_config(
        task.recipe, [*task.overrides, "training.clip_low=3e-4", "training.clip_high=4e-4", *RULES[rule], *fixed]
    )
    if not task.start:
        config.environment(LettersEnv)
    began, curve = time.process_time(), []
    algorithm = config.build_algo()
    try:
        for _ in range(iterations or task.iterations):
            curve.append(_measured(algorithm.train()))
        end = algorithm.evaluate()["env_runners"]
    finally:
        algorithm.stop()
    return {
        "task": name, "lr": lr, "rule": rule, "seed": seed,
        "end": round(_score(end), 4), "end_return": round(float(end["episode_return_mean"]), 4),
        "evaluated": evaluated or task.evaluated, "groups": config.groups_per_iteration,
        "group_size": config.group_size, "cpu_s": round(time.process_time() - began, 1),
        **{key: [point[key] for point in curve] for key in curve[0]},
    }  # fmt: skip


def _score(sampled: Row) -> float:
    """Success, or the return where the environment reports none."""
    success = float(sampled.get(metrics.SUCCESS_MEAN, math.nan))
    return float(sampled["episode_return_mean"]) if math.isnan(success) else success


def _measured(result: Row) -> dict[str, float]:
    """What is kept of an iteration; the range is 0 where none is measured."""
    sampled, learner = result["env_runners"], result["learners"]["default_policy"]
    trajectories = sampled["num_episodes"]
    values = {
        "score": _score(sampled),
        "return": sampled["episode_return_mean"],
        "tokens": sampled[metrics.NUM_TOKENS_SAMPLED] / trajectories,
        "clipped": learner.get("clip_fraction", 0.0),
        "kl": learner.get("kl_to_behavior", 0.0),
        "range": learner.get("clip_range_mean", 0.0),
    }
    return {key: float(f"{float(value):.4g}") for key, value in values.items()}


def best_of(row: Row) -> float:
    """The best mean of ``WINDOW`` iterations in a row, or the evaluation if that is better."""
    scores, width = row["score"], min(WINDOW, len(row["score"]))
    means = [statistics.fmean(scores[at : at + width]) for at in range(len(scores) - width + 1)]
    return max([*means, float(row["end"])])


def has_collapsed(row: Row) -> bool:
    """Whether the evaluation is below half of the best."""
    return bool(row["end"] < best_of(row) / 2)


def table(rows: list[Row]) -> list[str]:
    """Markdown: a line per task, learning rate and seed, a column per rule; then how many runs collapsed.

    Args:
        rows: Finished cells.
    """
    rules = [rule for rule in RULES if any(row["rule"] == rule for row in rows)]
    lines = ["| task, tokens a trajectory | lr | seed | start | " + " | ".join(rules) + " |"]
    lines.append("|---" * (4 + len(rules)) + "|")
    lrs, seeds = sorted({row["lr"] for row in rows}, reverse=True), sorted({row["seed"] for row in rows})
    for line in itertools.product(TASKS, lrs, seeds):
        if of := {row["rule"]: row for row in rows if (row["task"], row["lr"], row["seed"]) == line}:
            tokens = [tokens for row in of.values() for tokens in row["tokens"]]
            start = statistics.fmean(row["score"][0] for row in of.values())
            label = f"{TASKS[line[0]].label}, {min(tokens):.0f} to {max(tokens):.0f}"
            cells = [_cell(of[rule]) if rule in of else "not run" for rule in rules]
            lines.append(f"| {label} | {line[1]:g} | {line[2]} | {100 * start:.0f} | " + " | ".join(cells) + " |")
    counts = [[row for row in rows if row["rule"] == rule] for rule in rules]
    ended = [f"{sum(map(has_collapsed, of))} of {len(of)}" for of in counts]
    return [*lines, "| runs that ended below half of their best | – | – | – | " + " | ".join(ended) + " |"]


def _cell(row: Row) -> str:
    """The evaluated score, in brackets the mean of all iterations but the first, and what was clipped."""
    way, clipped = statistics.fmean(row["score"][1:] or row["score"]), statistics.fmean(row["clipped"])
    mark = " **collapsed**" if has_collapsed(row) else ""
    return f"{100 * row['end']:.0f} ({100 * way:.0f}), {100 * clipped:.0f} %{mark}"


def main(arguments: list[str] | None = None) -> None:
    """Runs cells, or prints the table.

    Args:
        arguments: What follows the command; None takes it from the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run the cells that the file lacks")
    running.add_argument("file", type=pathlib.Path)
    running.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
    running.add_argument("--lrs", nargs="+", type=float, default=[1e-4, 2e-5])
    running.add_argument("--rules", nargs="+", choices=[*RULES], default=[*RULES])
    running.add_argument("--seeds", nargs="+", type=int, default=[0])
    running.add_argument("--models", type=pathlib.Path, default=pathlib.Path("models"))
    running.add_argument("--iterations", type=int, help="of every run, instead of the task's own number")
    running.add_argument("--evaluated", type=int, help="tasks of every evaluation, likewise")
    commands.add_parser("table", help="print what the file holds").add_argument("file", type=pathlib.Path)
    args = parser.parse_args(arguments)
    if args.command == "run":
        # One of its own: a Ray that somebody else started here, or left behind, is none of ours.
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        done = {cell_of(row) for row in read(args.file)}
        for seed, lr, name, rule in itertools.product(args.seeds, args.lrs, args.tasks, args.rules):
            if (cell := (name, lr, rule, seed)) not in done:
                model = start_of(TASKS[name], args.models)
                row = play(cell, model, args.iterations, args.evaluated)
                append(args.file, row)
                print(*cell, f"end {row['end']:.2f}", "curve", *row["score"], f"{row['cpu_s']:.0f} s", flush=True)
    print("\n".join(table(read(args.file))))


if __name__ == "__main__":
    main()
