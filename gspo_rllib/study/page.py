"""The page of a study: what was run, a table per cell, and what the differences between objectives are worth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gspo_rllib.study.design import Cell, Settings, Study
from gspo_rllib.study.raw import Result
from gspo_rllib.study.statistics import (
    Estimate,
    estimate,
    first_at_least,
    has_collapsed,
    last_third,
    on_the_way,
    paired,
    sign_flip_p,
)

GOOD = 0.9
"""Score whose first iteration the tables name."""

HEADER = (
    "| objective | seeds | start | 1st iteration | best | last third | on the way: difference, p | last third: "
    "difference, p | to 0.9 | collapsed | clipped | CPU s |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)

LEGEND = """Scores are the success (the return, where a task reports no success) of {tasks} fixed tasks, played after
every one of {iterations} iterations, or of as many as a cell says; a run's last third is the mean of as many of its
scores, {third} of {iterations}. Medians over seeds, with the 95 % bootstrap interval in brackets. *difference*: from
the first objective, mean over the seeds that both have, of the last third and, *on the way*, of the mean of the
iterations before it (who learns sooner has more); *p*: two-sided, from all exchanges of signs (with n pairs never below
2/2ⁿ). *to 0.9*: median first iteration at 0.9 or above, and how many seeds got there. *collapsed*: runs whose last
third is below half their best score. *clipped*: share of what was trained on that the range held (tokens or
trajectories, whatever has a ratio of its own). *CPU s*: of an iteration, evaluation left out;
of runs in one process."""

BESIDE = {
    "staleness": "weights versions between sampling and update",
    "router_drift": "share of the sampled tokens that other experts compute after an update than before it",
    "router_gap": "share of them that other experts compute in the engine than in the learner",
}
"""What a line below a cell's table says, where it is more than 0 in some run."""


def render(
    study: Study,
    results: Sequence[Result],
    tuned: Mapping[str, Settings],
    *,
    tuning: Sequence[Result] = (),
    command: str,
    extra: str = "",
) -> str:
    """The page as Markdown.

    Args:
        study: The study.
        results: Those of its trials that have been run.
        tuned: What tuning found, by objective.
        tuning: Results of the trials that found it.
        command: What makes the page.
        extra: More sections, e.g. the training-free figures.
    """
    third = -(-study.iterations // 3)
    parts = [f"# {study.title}", f"Made by `{command}` from the raw results beside it."]
    parts += [text for text in (study.about, study.findings) if text]
    parts.append(LEGEND.format(tasks=study.evaluate_tasks, iterations=study.iterations, third=third))
    parts.append(_summary(study, results))
    parts += _cost(results, tuning)
    if extra:
        parts.append(extra)
    for cell in study.cells:
        of_cell = [result for result in results if result.cell == cell.name]
        parts.append(f"## {cell.name}")
        parts.append(_settings_line(cell))
        parts.append(_table(cell, of_cell) if of_cell else "Not run.")
        parts += _beside(cell, of_cell)
    parts.append("## Objectives")
    parts.append("\n".join(f"- **{name}**: {_listed(settings)}" for name, settings in study.objectives.items()))
    if tuned:
        lines = [f"- **{name} tuned**: {_listed(settings)}" for name, settings in tuned.items()]
        tried = max(len(candidates) for candidates in study.candidates.values())
        seeds = ", ".join(map(str, study.tuning_seeds))
        parts.append(
            f"Tuning: {tried} candidates for each, on seeds {seeds}, which no table has.\n\n" + "\n".join(lines)
        )
    return "\n\n".join(parts) + "\n"


def write_curves(study: Study, results: Sequence[Result], path: Path) -> None:
    """Draws the scores of every cell against the iteration: the median over seeds in a band from lowest to highest.

    Args:
        study: The study.
        results: Those of its trials that have been run, at least one.
        path: PNG to write.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra ``plot``).
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = [cell for cell in study.cells if any(result.cell == cell.name for result in results)]
    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    names = dict.fromkeys(result.objective for result in results)
    shades = itertools.cycle([*range(0, 20, 2), *range(1, 20, 2)])  # ten colours, and then their light ones
    colours = {name: colormaps["tab20"](shade) for name, shade in zip(names, shades, strict=False)}
    for axes, cell in zip(all_axes.flat, cells, strict=False):
        axes.set_title(cell.name, fontsize=10)
        axes.grid(alpha=0.3)
        axes.set_xlabel("iteration")
        for name in cell.objectives:
            curves = [[r.start, *r.scores] for r in results if (r.cell, r.objective) == (cell.name, name)]
            if curves:
                scores = np.array(curves)
                steps = np.arange(scores.shape[1])
                axes.fill_between(steps, scores.min(0), scores.max(0), color=colours[name], alpha=0.12, linewidth=0)
                axes.plot(steps, np.median(scores, 0), color=colours[name], label=name)
        axes.legend(fontsize=7)
        axes.set_ylim(-0.02, 1.02)
    for axes in list(all_axes.flat)[len(cells) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def _summary(study: Study, results: Sequence[Result]) -> str:
    """One line per cell and objective that differs from the first, or the plain statement that none does."""
    if not results:
        return "**No trial has been run yet.**"
    lines = []
    for cell in study.cells:
        for name in cell.objectives[1:]:
            for verb, part in (("is", on_the_way), ("ends", last_third)):
                differences = _differences(results, cell, name, part)
                if len(differences) > 1 and (found := _mean(differences)).excludes_zero:
                    word = "above" if found.value > 0 else "below"
                    when = " on the way" if part is on_the_way else ""
                    lines.append(
                        f"- {cell.name}: {name} {verb} {abs(found.value):.2f} {word} {cell.objectives[0]}{when} (95 % "
                        f"from {found.low:+.2f} to {found.high:+.2f}, {len(differences)} seeds)"
                    )
    if not lines:
        return "**In no cell does an objective differ from the first one by more than its interval.**"
    return "Where the interval of the difference leaves 0 out:\n\n" + "\n".join(lines)


def _cost(results: Sequence[Result], tuning: Sequence[Result]) -> list[str]:
    """What the runs' training took, where they say; nothing of none."""
    hours, of_tuning = (sum(run.rows[-1].get("total_cpu_s", 0.0) for run in runs) / 3600 for runs in (results, tuning))
    shared = [run for run in results if "total_cpu_s" not in run.rows[-1]]
    on_the_clock = sum(row.get("wall_s", 0.0) for run in shared for row in run.rows) / 3600
    said = []
    if hours:
        beside = f", and {of_tuning:.1f} in {len(tuning)} runs of tuning" if of_tuning else ""
        said.append(f"Training took {hours:.1f} hours of a processor core in {len(results) - len(shared)} runs{beside}")
    if on_the_clock:
        runs = f"{len(shared)} more" if hours else f"Training: {len(shared)} runs"
        said.append(f"{runs} of several processes each took {on_the_clock:.1f} hours on the clock")
    return [f"{'; '.join(said)}."] if said else []


def _table(cell: Cell, results: Sequence[Result]) -> str:
    lines = [HEADER]
    for name in cell.objectives:
        runs = [result for result in results if result.objective == name]
        if not runs:
            lines.append(f"| {name} | 0 |" + " – |" * 10)
            continue
        reached = [at for run in runs if (at := first_at_least(run.scores, GOOD)) is not None]
        cells = [
            name,
            str(len(runs)),
            f"{estimate([run.start for run in runs]).value:.2f}",
            _interval(estimate([run.scores[0] for run in runs])),
            _interval(estimate([max(run.scores) for run in runs])),
            _interval(estimate([last_third(run.scores) for run in runs])),
            _compared(_differences(results, cell, name, on_the_way)),
            _compared(_differences(results, cell, name, last_third)),
            f"{estimate(reached).value:g} ({len(reached)} of {len(runs)})" if reached else f"never (0 of {len(runs)})",
            f"{sum(has_collapsed(run.scores) for run in runs)} of {len(runs)}",
            _middle(runs, "clip_fraction", ".3f"),
            _middle(runs, "cpu_s", ".1f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _beside(cell: Cell, results: Sequence[Result]) -> list[str]:
    """A line for each of ``BESIDE`` that was measured: the median over seeds of the mean over iterations."""
    lines = []
    by_objective = {name: [run for run in results if run.objective == name] for name in cell.objectives}
    for key, meaning in BESIDE.items():
        if any(run.mean(key) for run in results):
            said = ", ".join(f"{name} {_middle(runs, key, '.3f')}" for name, runs in by_objective.items() if runs)
            lines.append(f"{meaning[0].upper()}{meaning[1:]}: {said}.")
    return lines


def _differences(
    results: Sequence[Result], cell: Cell, objective: str, part: Callable[[Sequence[float]], float]
) -> list[float]:
    """From the cell's first objective, one per seed that both have; none for that one itself."""
    first, other = (
        {run.seed: part(run.scores) for run in results if (run.cell, run.objective) == (cell.name, name)}
        for name in (cell.objectives[0], objective)
    )
    return paired(first, other) if objective != cell.objectives[0] else []


def _compared(differences: Sequence[float]) -> str:
    return f"{_interval(_mean(differences), '+.2f')}, {sign_flip_p(differences):.3f}" if differences else "–"


def _mean(differences: Sequence[float]) -> Estimate:
    import numpy as np

    return estimate(differences, np.mean)


def _interval(found: Estimate, form: str = ".2f") -> str:
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def _middle(runs: Sequence[Result], key: str, form: str) -> str:
    values = [value for run in runs if (value := run.mean(key)) is not None]
    return f"{estimate(values).value:{form}}" if values else "–"


def _settings_line(cell: Cell) -> str:
    start = "" if cell.start is None else f", from the start model `{cell.start.name}`"
    length = "" if cell.iterations is None else f"{cell.iterations} iterations, "
    return f"`{cell.config}`{start}; {length}{_listed(cell.settings)}."


def _listed(settings: Settings) -> str:
    return ", ".join(f"`{key}: {value}`" for key, value in settings.items()) or "nothing else set"
