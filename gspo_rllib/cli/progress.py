"""One line per iteration: what a person watching a run wants to know, in fixed columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gspo_rllib.cli.best import EVALUATED, SAMPLED, Score
from gspo_rllib.run_results import SAMPLING, tokens_per_second

Flat = dict[str, float]

PHASES = {
    "sample": SAMPLING,
    "update": "timers/learner_update_timer",
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


LAST_ITERATION = "run/iterations"
"""Key that a run adds to a flat result: the iteration it ends with, if that is known."""

SECONDS_LEFT = "run/seconds_left"
"""Key that a run adds to a flat result: seconds until one of its limits is reached, as iterations take now."""

ITERATION = Column("iter", 7, lambda flat: f"{flat['training_iteration']:.0f}{_of(flat.get(LAST_ITERATION))}")
EVALUATION = Column("eval", 7, _score(EVALUATED))
"""Success on the fixed set of tasks, or return where there is no success; shown by runs that evaluate."""

MEASURES = (
    Column("return", 6, _metric("env_runners/episode_return_mean", "{:.3f}")),
    Column("success", 7, _success),
    Column("clip", 6, _metric(f"{LEARNER}clip_fraction", "{:.1f}%", 100)),
    Column("KL", 7, _metric(f"{LEARNER}kl_to_behavior", "{:.1e}")),
    Column("tok/s", 5, lambda flat: f"{tokens_per_second(flat):.0f}"),
    Column("sample", 6, _metric(PHASES["sample"], "{:.1f}s")),
    Column("update", 6, _metric(PHASES["update"], "{:.1f}s")),
    Column("elapsed", 7, lambda flat: clock(flat["time_total_s"])),
    Column("left", 6, lambda flat: clock(flat[SECONDS_LEFT])),
)


def columns(*, evaluates: bool) -> tuple[Column, ...]:
    """The columns of a run; a line of them has 80 characters at most.

    Args:
        evaluates: Whether the run evaluates; that column comes right after the iteration.
    """
    return (ITERATION, EVALUATION, *MEASURES) if evaluates else (ITERATION, *MEASURES)


def header(shown: Sequence[Column]) -> str:
    """The headings, aligned with ``line``.

    Example:
        >>> print(header(columns(evaluates=True)))
           iter    eval return success   clip      KL tok/s sample update elapsed   left
    """
    return " ".join(f"{column.title:>{column.width}}" for column in shown)


def line(flat: Mapping[str, Any], shown: Sequence[Column]) -> str:
    """One iteration's progress.

    Args:
        flat: What ``Algorithm.train`` returned, keys joined by ``/``; a run may add the two keys above.
        shown: The columns.

    Example:
        >>> flat = {"training_iteration": 3, "time_total_s": 75.0, "env_runners/success_mean": 0.5}
        >>> print(line(flat | {LAST_ITERATION: 150, SECONDS_LEFT: 4000}, columns(evaluates=False)))
          3/150      -     50%      -       -     -      -      -    1:15 1:06:40
    """
    numbers: Flat = {key: value for key, value in flat.items() if isinstance(value, (int, float))}
    return " ".join(f"{_shown(column, numbers):>{column.width}}" for column in shown)


def _shown(column: Column, flat: Flat) -> str:
    try:
        text = column.show(flat)
    except KeyError:
        return "-"
    return "-" if "nan" in text else text


def clock(seconds: float) -> str:
    """A duration as people read it.

    Example:
        >>> clock(75.9), clock(4000)
        ('1:15', '1:06:40')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _of(last: float | None) -> str:
    return "" if last is None else f"/{last:.0f}"
