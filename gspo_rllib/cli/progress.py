"""One line per iteration: what a person watching a run wants to know, in fixed columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gspo_rllib.cli.best import EVALUATED, SAMPLED, Score
from gspo_rllib.cli.recorder import Result, flatten

Flat = dict[str, float]

PHASES = {
    "sample": "timers/env_runner_sampling_timer",
    "update": "timers/learner_update_timer",
    "sync": "timers/synch_weights",
}
"""Phase of an iteration to the RLlib timer (seconds) that measures it."""

LEARNER = "learners/default_policy/"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the progress line.

    Attributes:
        title: Heading of the column.
        width: Width of the column in characters.
        show: Flat result -> text in the column; a missing metric shows as a dash.
    """

    title: str
    width: int
    show: Callable[[Flat], str]


def tokens_per_second(flat: Flat) -> float:
    """Tokens the policy sampled per second of sampling; NaN where either is missing."""
    tokens, seconds = flat.get("env_runners/num_tokens_sampled"), flat.get(PHASES["sample"])
    return tokens / seconds if tokens is not None and seconds else math.nan


def _metric(key: str, text: str, scale: float = 1.0) -> Callable[[Flat], str]:
    return lambda flat: text.format(flat[key] * scale)


def _score(place: str) -> Callable[[Flat], str]:
    def show(flat: Flat) -> str:
        score = Score.of(flat, place)
        return "-" if score is None else str(score)

    return show


def _success(flat: Flat) -> str:
    score = Score.of(flat, SAMPLED)
    return str(score) if score is not None and score.is_success else "-"


COLUMNS = (
    Column("iter", 5, lambda flat: f"{flat['training_iteration']:.0f}"),
    Column("return", 7, _metric("env_runners/episode_return_mean", "{:.3f}")),
    Column("success", 7, _success),
    Column("clipped", 7, _metric(f"{LEARNER}clip_fraction", "{:.1f}%", 100)),
    Column("KL", 8, _metric(f"{LEARNER}kl_to_behavior", "{:.1e}")),
    Column("tokens/s", 8, lambda flat: f"{tokens_per_second(flat):.0f}"),
    *(Column(phase, 6, _metric(timer, "{:.1f}s")) for phase, timer in PHASES.items()),
    Column("elapsed", 7, lambda flat: _clock(flat["time_total_s"])),
)
"""What every run shows."""

EVALUATION = Column("evaluated", 9, _score(EVALUATED))
"""Success on the fixed set of tasks, or return where there is no success; shown by runs that evaluate."""


def columns(*, evaluates: bool) -> tuple[Column, ...]:
    """The columns of a run.

    Args:
        evaluates: Whether the run evaluates; that column comes right after the iteration.
    """
    return (COLUMNS[0], EVALUATION, *COLUMNS[1:]) if evaluates else COLUMNS


def header(shown: Sequence[Column] = COLUMNS) -> str:
    """The headings, aligned with ``line``."""
    return " ".join(f"{column.title:>{column.width}}" for column in shown)


def line(result: Result, shown: Sequence[Column] = COLUMNS) -> str:
    """One iteration's progress.

    Args:
        result: What ``Algorithm.train`` returned.
        shown: The columns.

    Example:
        >>> print(header())
         iter  return success clipped       KL tokens/s sample update   sync elapsed
        >>> print(line({"training_iteration": 3, "time_total_s": 75.0, "env_runners": {"success_mean": 0.5}}))
            3       -     50%       -        -        -      -      -      -    1:15
    """
    flat: Flat = {key: value for key, value in flatten(result).items() if isinstance(value, (int, float))}
    return " ".join(f"{_shown(column, flat):>{column.width}}" for column in shown)


def _shown(column: Column, flat: Flat) -> str:
    try:
        text = column.show(flat)
    except KeyError:
        return "-"
    return "-" if "nan" in text else text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
