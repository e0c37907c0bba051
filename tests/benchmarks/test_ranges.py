"""The table of clip ranges: cells are played once, torn ones again, and the page says what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ranges

DOCS = Path(__file__).parents[2] / "docs"


def _row(rule: str, *, end: float, score: list[float], seed: int = 0, task: str = "quest") -> dict[str, Any]:
    return {
        "task": task, "lr": 1e-4, "rule": rule, "seed": seed, "end": end, "score": score,
        "tokens": [90.0, 120.0], "clipped": [0.1, 0.2], "cpu_s": 1.0,
    }  # fmt: skip


def test_a_cell_that_is_in_the_file_is_not_played_again_and_a_torn_one_is(tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "ranges.jsonl"
    file.write_text(json.dumps(_row("deviations", end=0.5, score=[0.4, 0.6])) + '\n{"task": "quest", "lr"')
    played = []

    def play(cell: ranges.Cell, model: Path, iterations: int | None, evaluated: int | None) -> dict[str, Any]:
        played.append(cell)
        return _row(cell[2], end=0.1, score=[0.4, 0.6], seed=cell[3])

    monkeypatch.setattr(ranges, "play", play)
    monkeypatch.setattr(ranges, "start_of", lambda task, models: models)
    monkeypatch.setattr(ranges.ray, "init", lambda **options: None)
    command = ["run", str(file), "--tasks", "quest", "--lrs", "1e-4", "--rules", "deviations", "0.03/0.04"]
    ranges.main(command)
    assert played == [("quest", 1e-4, "0.03/0.04", 0)]
    ranges.main([*command, "--seeds", "0", "1"])
    assert played[1:] == [("quest", 1e-4, "deviations", 1), ("quest", 1e-4, "0.03/0.04", 1)]
    printed = capsys.readouterr().out
    assert "| Quest, 6 rooms, 90 to 120 | 0.0001 | 0 | 40 | 50 (60), 15 % | 10 (60), 15 % **collapsed** |" in printed
    assert "| Quest, 6 rooms, 90 to 120 | 0.0001 | 1 | 40 | 10 (60), 15 % **collapsed** | 10 (60), 15" in printed
    assert "| runs that ended below half of their best | – | – | – | 1 of 2 | 2 of 2 |" in printed


@pytest.mark.parametrize(
    ("score", "end", "collapsed"),
    [
        ([0.2, 0.6, 0.6, 0.6, 0.1], 0.29, True),
        ([0.2, 0.6, 0.6, 0.6, 0.1], 0.31, False),
        # One lucky iteration is no best.
        ([0.2, 0.9, 0.2, 0.2], 0.25, False),
        ([0.4], 0.1, True),
    ],
)
def test_a_run_has_collapsed_that_ends_below_half_of_its_best_three_iterations(score, end, collapsed) -> None:
    assert ranges.has_collapsed(_row("deviations", end=end, score=score)) is collapsed


def test_the_page_has_the_table_of_the_results_beside_it() -> None:
    lines = ranges.table(ranges.read(DOCS / "results" / "ranges.jsonl"))
    assert len(lines) > 4
    assert "\n".join(lines) in (DOCS / "long_horizons.md").read_text()
