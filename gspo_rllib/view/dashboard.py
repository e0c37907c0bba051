"""The curves of a run: which panels there are, and their numbers, out of its results and its kept trajectories."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gspo_rllib.run_results import SAMPLING, tokens_per_second
from gspo_rllib.trajectory_table import Row

Flat = Mapping[str, Any]
Point = tuple[int, float]

_LEARNER = "learners/default_policy/"
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart.

    Attributes:
        title: What it shows.
        unit: Unit of its numbers; "" for none, "%" for shares.
        lines: Label of a line, to the key of a flat result or what to make of one.
    """

    title: str
    unit: str
    lines: Mapping[str, str | Callable[[Flat], float]]


def _quantile_lines(name: str) -> dict[str, str | Callable[[Flat], float]]:
    return {f"{100 * quantile:.0f} %": f"{_LEARNER}{name}/p{100 * quantile:.0f}" for quantile in QUANTILES}


PANELS = (
    Panel("Success", "%", {"sampled": "env_runners/success_mean", "evaluated": "evaluation/env_runners/success_mean"}),
    Panel(
        "Return",
        "",
        {
            "sampled": "env_runners/episode_return_mean",
            "evaluated": "evaluation/env_runners/episode_return_mean",
        },
    ),
    Panel(
        "Clip fraction",
        "%",
        {"below the range": f"{_LEARNER}clip_fraction_low", "above the range": f"{_LEARNER}clip_fraction_high"},
    ),
    Panel(
        "Importance ratio after the first step",
        "",
        _quantile_lines("ratio_quantiles") | {"mean of the update": f"{_LEARNER}ratio_mean"},
    ),
    Panel(
        "|log s| after the first step",
        "nats",
        _quantile_lines("abs_log_ratio_quantiles") | {"mean": f"{_LEARNER}abs_log_ratio_mean"},
    ),
    Panel(
        "KL",
        "nats",
        {
            "to the behaviour policy": f"{_LEARNER}kl_to_behavior",
            "to the reference": f"{_LEARNER}kl_to_reference",
            "to the policy before the update": f"{_LEARNER}kl_to_old",
        },
    ),
    Panel("Entropy", "nats", {"per token": f"{_LEARNER}entropy"}),
    Panel("Gradient norm", "", {"mean": f"{_LEARNER}grad_norm"}),
    Panel("Staleness", "versions", {"mean": f"{_LEARNER}staleness"}),
    Panel("Sampled tokens", "per second of sampling", {"all env runners": tokens_per_second}),
    Panel(
        "Time of an iteration",
        "s",
        {
            "sampling": SAMPLING,
            "update": "timers/learner_update_timer",
            "weights": "timers/synch_weights",
            "evaluation": "timers/evaluation_iteration_timer",
            "all": "time_this_iter_s",
        },
    ),
)


def panels(results: Sequence[Flat], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The panels of a run that have something to show.

    Args:
        results: Flat results, oldest first; of an iteration that was trained twice the later counts.
        rows: The trajectories it kept.

    Returns:
        Per panel: title, unit, and lines, which are label and points (iteration, value).
    """
    latest = {int(row["training_iteration"]): row for row in results if _number(row.get("training_iteration"))}
    found = [
        (panel.title, panel.unit, {label: _points(latest, key) for label, key in panel.lines.items()})
        for panel in PANELS
    ]
    found[5:5] = _of_trajectories(rows)
    return [
        {"title": title, "unit": unit, "lines": [[label, points] for label, points in lines.items() if points]}
        for title, unit, lines in found
        if any(lines.values())
    ]


def _points(latest: Mapping[int, Flat], key: str | Callable[[Flat], float]) -> list[Point]:
    values = [(at, row.get(key) if isinstance(key, str) else key(row)) for at, row in sorted(latest.items())]
    return [(at, float(value)) for at, value in values if value is not None and _number(value)]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _of_trajectories(rows: Sequence[Row]) -> list[tuple[str, str, dict[str, list[Point]]]]:
    """Quantiles of what the update did to the kept trajectories that it trained on."""
    sequence, token = defaultdict(list), defaultdict(list)
    for row in rows:
        moved = [
            np.subtract(turn["updated_logp"], turn["logp"])
            for turn in row["turns"]
            if turn["updated_logp"] is not None and turn["logp"] is not None
        ]
        if moved and sum(map(len, moved)):
            ratios = np.concatenate(moved)
            sequence[row["iteration"]].append(np.abs(ratios.mean(keepdims=True)))
            token[row["iteration"]].append(np.exp(ratios))
    return [
        ("|log s| after the update, kept trajectories", "nats", _quantiles(sequence)),
        ("Token ratio after the update, kept trajectories", "", _quantiles(token)),
    ]


def _quantiles(by_iteration: Mapping[int, list[np.ndarray]]) -> dict[str, list[Point]]:
    values = {at: np.quantile(np.concatenate(parts), QUANTILES) for at, parts in sorted(by_iteration.items())}
    return {
        f"{100 * quantile:.0f} %": [
            (at, float(found[place])) for at, found in values.items() if np.isfinite(found[place])
        ]
        for place, quantile in enumerate(QUANTILES)
    }
