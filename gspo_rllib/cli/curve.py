"""The learning curve of a run as a PNG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gspo_rllib.cli.best import EVALUATED, Score

_RUNNERS = {"env_runners": "sampled", "evaluation/env_runners": "evaluated"}

PANELS = (
    ("success", {f"{place}/success_mean": label for place, label in _RUNNERS.items()}),
    ("return", {f"{place}/episode_return_mean": label for place, label in _RUNNERS.items()}),
    ("clip fraction", {"learners/default_policy/clip_fraction": "clipped tokens"}),
    ("KL to the behaviour policy (nats)", {"learners/default_policy/kl_to_behavior": "per token"}),
)
"""Panel title to its metrics and their labels; a metric a run never reported is left out."""


_METRICS = {"training_iteration", *(metric for _, metrics in PANELS for metric in metrics)}


def write_curve(results: Iterable[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Draws success, return, clip fraction and KL against the iteration.

    Args:
        results: One flat result per iteration (keys joined by ``/``); nothing is drawn without any.
        path: PNG to write.
        title: Title above the panels.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra ``plot``).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Of each no more than is drawn: a whole one takes 20 kB.
    history = [{key: row[key] for key in row if key in _METRICS or key.startswith(EVALUATED)} for row in results]
    if not history:
        return
    # Figure and canvas directly: pyplot would keep global state and choose a backend for the whole process.
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, (label, metrics) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        for metric, name in metrics.items():
            points = [(row["training_iteration"], row[metric]) for row in history if row.get(metric) is not None]
            if points:
                # An evaluation's tasks are the same every time; what an iteration samples is only as good as its tasks.
                faint = name == _RUNNERS["env_runners"] and any(row.get(f"evaluation/{metric}") for row in history)
                marker = "." if len(points) < 60 else None
                axes.plot(*zip(*points, strict=True), marker=marker, label=name, alpha=0.35 if faint else 1.0)
        scores = [score for row in history if (score := Score.of(row, EVALUATED)) is not None and score.is_success]
        if label == "success" and scores:
            iterations, values, errors = zip(*((s.iteration, s.value, s.error) for s in scores), strict=True)
            axes.errorbar(iterations, values, yerr=errors, fmt="none", ecolor="C1", capsize=2)
        if len(axes.lines) > 1:
            axes.legend(fontsize=8)
        if label == "success":
            axes.set_ylim(-0.02, 1.02)
    figure.savefig(path, dpi=120)
