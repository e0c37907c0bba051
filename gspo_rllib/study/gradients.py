"""Training-free figures: how true an objective's gradient is, k optimiser steps away from the policy that sampled.

Nothing is trained to its end, so nothing depends on luck's path. A policy takes k steps on its own old data. Then each
objective's gradient on *other* data of the old policy is compared with the gradient of the same objective on fresh
data of the moved policy, where every ratio is 1 and nothing is clipped: the one it stands in for.

All inner products are between gradients of different minibatches, so noise adds nothing to them (U-statistics):

    cosine      <old, fresh> / (|old| |fresh|), of the expected gradients
    bias        |old - fresh|² / |fresh|²
    variance    of one minibatch's gradient, / |fresh|²
    alignment   cosine of one minibatch's gradient with the expected fresh one

An algorithm with a learning rate of 0 and without gradient clipping computes each gradient by its own update, so what
is measured is what training does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gspo_rllib.run_results import flatten
from gspo_rllib.study.design import Cell, Settings, Trial, slug
from gspo_rllib.study.gradient_figures import Figures, figures_of
from gspo_rllib.study.gradient_plan import NO_NOISE, GradientPlan, Noise
from gspo_rllib.study.raw import FOLDER, Row, read_rows, write_rows
from gspo_rllib.study.starts import make_start
from gspo_rllib.study.trial import built

if TYPE_CHECKING:
    from gspo_rllib.algorithms import PolicyGradient
    from gspo_rllib.types import TrajectoryGroup

Say = Callable[[str], object]

_MEASURES: Settings = {
    "training.num_minibatches": 1,
    "training.num_epochs": 1,
    "training.min_informative_trajectories": 0,
    "training.max_staleness": 0,
    "reporting.keep_trajectories": 0,
    "training.old_log_probs": "engine",
    "training.target_kl": None,
    "env_runners.num_env_runners": 0,
    "learners.num_learners": 0,
    "learners.sharding": "none",
}
"""One update is one step, on the ratio to the policy that sampled."""

_STANDS_STILL: Settings = {"training.lr": 0.0, "training.grad_clip": None, "training.weight_decay": 0.0}
_LEARNER = "learners/default_policy/"


def missing_gradients(
    plans: Sequence[GradientPlan], folder: Path, *, only: Sequence[str] = ()
) -> list[tuple[int, GradientPlan]]:
    """What the folder does not hold yet, seed by seed.

    Args:
        plans: The study's.
        folder: The study's.
        only: Names of the cells that are asked for; none for all.

    Raises:
        SettingError: A file holds something else.
    """
    seeds = dict.fromkeys(seed for plan in plans for seed in plan.seeds)
    wanted = [(seed, plan) for seed in seeds for plan in plans if seed in plan.seeds]
    return [
        (seed, plan)
        for seed, plan in wanted
        if (not only or plan.cell.name in only) and _read(folder, plan, seed) is None
    ]


def run_gradients(
    folder: Path,
    missing: Sequence[tuple[int, GradientPlan]],
    *,
    ends: float | None = None,
    say: Say = print,
) -> int:
    """Measures, one seed and cell after the other, in this process; Ray is there.

    Args:
        folder: The study's.
        missing: What to measure.
        ends: When ``time.monotonic`` is past it nothing is begun; None for no end.
        say: Called with a line of text from time to time.

    Returns:
        0; 1 when something is left.
    """
    cells = [(seed, plan.cell) for seed, plan in missing]
    trials = [Trial(c.name, c.objectives[0], seed, c.config, c.start, dict(c.settings)) for seed, c in cells]
    for trial in trials:
        trial.run(None)  # all of them are known to be right before the first one is measured
    for (seed, plan), trial in zip(missing, trials, strict=True):
        if ends is not None and time.monotonic() >= ends:
            say("the time is over; the same command goes on with the gradients")
            return 1
        model = make_start(folder, trial, say)
        say(f"gradients of {trial.cell}, seed {seed}")
        write_rows(_path(folder, plan.cell, seed), measure(plan, seed, model, say=say), _digest(plan, seed))
    return 0


def measure(plan: GradientPlan, seed: int, model: Path | None, *, say: Say) -> list[dict[str, Any]]:
    """The figures of one cell and seed.

    Args:
        plan: The cell, and what is measured in it.
        seed: The seed.
        model: The start model; None for the config's own.
        say: Called with a line per figure.

    Returns:
        One row per number of steps, noise and objective.
    """
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_silent())
        first = next(iter(plan.objectives))
        moving = {**plan.objectives[first], "training.lr": plan.lr}
        mover = stack.enter_context(_built(plan, first, moving, seed, model))
        still = {
            name: stack.enter_context(_built(plan, name, {**settings, **_STANDS_STILL}, seed, model))
            for name, settings in plan.objectives.items()
        }
        size, num_steps = plan.minibatch_groups, plan.steps[-1]
        stepped = _sample(mover, "stepped", num_steps * size)
        old = _sample(mover, "old", plan.groups)
        tokens = _sampled_tokens(old)
        for number in range(1, num_steps + 1):
            step = stepped[(number - 1) * size : number * size]
            mover.train_on(step)
            # At once: the others' updates load the engine, which they share, with their own weights.
            fresh = _sample(mover, f"fresh{number}", plan.groups) if number in plan.steps else []
            for algorithm in still.values():
                algorithm.train_on(step)  # moves nothing; a version must not be behind those of the groups
            if not fresh:
                continue
            noises = (NO_NOISE, *plan.noise) if number == plan.steps[0] else (NO_NOISE,)
            weights = mover.learner_group.get_weights()
            for name, algorithm in still.items():
                algorithm.learner_group.foreach_learner(partial(_take_weights, weights=weights))
                fresh_gradients, _ = _gradients(algorithm, fresh, size)
                for noise in noises:
                    gradients, measured = _gradients(algorithm, _noisy(old, noise, seed), size)
                    found: Figures = figures_of(gradients, fresh_gradients)
                    row = {"steps": number, "noise": str(noise), "objective": name, "tokens": tokens}
                    rows.append(row | measured | found.rounded())
                    say("  " + ", ".join(f"{key} {value}" for key, value in rows[-1].items()))
    return rows


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No word of what is wrong with training like this: nothing is trained."""
    logger = logging.getLogger("gspo_rllib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _built(
    plan: GradientPlan, objective: str, own: Settings, seed: int, model: Path | None
) -> AbstractContextManager[PolicyGradient]:
    cell = plan.cell
    settings = {**cell.settings, **own, **_MEASURES, "debugging.seed": seed}
    settings["training.groups_per_iteration"] = plan.minibatch_groups
    trial = Trial(cell.name, objective, seed, cell.config, cell.start, settings)
    return built(trial.run(None if model is None else str(model)).config)


def _sample(algorithm: PolicyGradient, name: str, count: int) -> list[TrajectoryGroup]:
    runner = algorithm.env_runner
    names = [f"{name}/{number}" for number in range(count)]
    report = runner.sample_groups(names, weights_version=runner.get_weights_version())
    groups: list[TrajectoryGroup] = sorted(report.groups, key=lambda group: names.index(group.group_id))
    return groups


def _sampled_tokens(groups: Sequence[TrajectoryGroup]) -> float:
    """Mean over trajectories."""
    from gspo_rllib.types import turns

    episodes = [episode for group in groups for episode in group.episodes]
    sampled = sum(len(turn.action_token_ids) for episode in episodes for turn in turns(episode))
    return round(sampled / len(episodes), 1)


def _gradients(
    algorithm: PolicyGradient, groups: Sequence[TrajectoryGroup], size: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Gradients [minibatches, parameters] of minibatches of ``size`` groups, and means of what their updates said."""
    gradients, clipped, sizes = [], [], []
    for begin in range(0, len(groups) - size + 1, size):
        (parameters,) = algorithm.learner_group.foreach_learner(_parameters)
        for parameter in parameters.get():
            parameter.grad = None
        flat = flatten(algorithm.train_on(groups[begin : begin + size]))
        gradients.append(
            np.concatenate(
                [
                    (np.zeros(p.numel(), np.float32) if p.grad is None else p.grad.numpy(force=True).ravel().copy())
                    for p in parameters.get()
                ]
            )
        )
        clipped.append(flat.get(f"{_LEARNER}clip_fraction", math.nan))  # none where all of it has no advantage
        if share := flat.get(f"{_LEARNER}effective_sample_size"):
            sizes.append(math.sqrt(max(0.0, 1 / min(1.0, share) - 1)))
    known = [share for share in clipped if not math.isnan(share)]
    measured = {"clip_fraction": round(float(np.mean(known)), 5)} if known else {}
    if sizes:
        measured["ratio_spread"] = round(float(np.mean(sizes)), 5)
    return np.stack(gradients), measured


def _take_weights(learner: Any, *, weights: Mapping[str, Any]) -> None:
    # Not by the learner's own state, which would count versions anew.
    for name, state in weights.items():
        learner.module[name].set_state(state)


def _parameters(learner: Any) -> list[Any]:
    from ray.rllib.core import DEFAULT_MODULE_ID

    return list(learner.module[DEFAULT_MODULE_ID].unwrapped().policy_parameters())


def _noisy(groups: list[TrajectoryGroup], noise: Noise, seed: int) -> list[TrajectoryGroup]:
    """Copies whose recorded log-probs are off; the groups themselves where there is no noise."""
    if noise == NO_NOISE:
        return groups
    import copy

    from gspo_rllib.types import turns

    random = np.random.default_rng(seed)
    copies = copy.deepcopy(groups)
    for group in copies:
        for episode in group.episodes:
            for turn in turns(episode):
                turn.action_logp[...] = noise.on(turn.action_logp, random)
    return copies


def gradients_section(plans: Sequence[GradientPlan], folder: Path) -> str:
    """The page's section; empty where nothing was measured.

    Args:
        plans: The study's.
        folder: The study's.
    """
    parts = []
    for plan in plans:
        measured = [rows for seed in plan.seeds if (rows := _read(folder, plan, seed)) is not None]
        if rows := [row for of_seed in measured for row in of_seed]:
            parts += [f"### {plan.cell.name}", _plan_line(plan, len(measured), rows), _table(rows)]
    return "\n\n".join([_LEGEND, *parts]) if parts else ""


def _plan_line(plan: GradientPlan, num_seeds: int, rows: Sequence[Mapping[str, Any]]) -> str:
    changed = ", ".join(f"`{key}: {value}`" for key, value in plan.changed.items())
    like = f"As *{plan.like}*, but {changed}. " if plan.like else ""
    return (
        f"{like}{_median(rows, 'tokens', '.0f')} sampled tokens a trajectory; steps at a learning rate of {plan.lr:g}; "
        f"{plan.groups} groups of each, in minibatches of {plan.minibatch_groups}; {num_seeds} of {len(plan.seeds)} "
        "seeds."
    )


_LEGEND = """## How true is the gradient?

A policy takes k steps on data of its own; then every objective's gradient on other data of the old policy is compared
with its gradient on fresh data of the moved one; medians over the seeds that were measured. *cosine* and *bias* are of
the expected gradient, *variance* and *alignment* of one minibatch's, in units of the fresh gradient; *spread*: standard
deviation of a trajectory's ratio; *noise*: on the recorded log-probs, in nats, on every token or on a share of them.
"–": the fresh gradient is less than three of its standard errors from 0, so that nothing can be said."""


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| k | noise | objective | spread | clipped | cosine | bias | variance | alignment |", "|---" * 9 + "|"]
    keys = list(dict.fromkeys((row["steps"], row["noise"], row["objective"]) for row in rows))
    for key in keys:
        chosen = [row for row in rows if (row["steps"], row["noise"], row["objective"]) == key]
        shown = [_median(chosen, "ratio_spread", ".4f"), _median(chosen, "clip_fraction", ".1%")]
        shown += [_median(chosen, name, ".2f") for name in ("cosine", "bias", "variance", "alignment")]
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _median(rows: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    return f"{np.median(values):{form}}" if values else "–"


def _path(folder: Path, cell: Cell, seed: int) -> Path:
    return folder / FOLDER / "gradients" / slug(cell.name) / f"{seed}.json"


def _digest(plan: GradientPlan, seed: int) -> str:
    cell = plan.cell
    start = None if cell.start is None else dict(cell.start.options)
    numbers = [
        plan.lr,
        plan.steps,
        plan.groups,
        plan.minibatch_groups,
        [dataclasses.astuple(noise) for noise in plan.noise],
    ]
    objectives = list(plan.objectives.items())  # in this order: the first one moves the policy
    what = json.dumps([cell.config, cell.settings, start, seed, numbers, objectives], sort_keys=True, default=str)
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def _read(folder: Path, plan: GradientPlan, seed: int) -> list[Row] | None:
    return read_rows(_path(folder, plan.cell, seed), _digest(plan, seed), list)
