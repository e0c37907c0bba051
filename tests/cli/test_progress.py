"""The progress line."""

from __future__ import annotations

from types import SimpleNamespace


def test_the_progress_line_says_what_one_watches(trained: SimpleNamespace) -> None:
    lines = trained.text.splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.lstrip().startswith("iter")]
    row = dict(zip(lines[head].split(), lines[head + 2].split(), strict=True))
    assert row["iter"] == "2"
    assert row["success"].endswith("%")
    assert float(row["tokens/s"]) > 0
    assert all(row[phase].endswith("s") for phase in ("sample", "update", "sync"))
    assert str(trained.checkpoint.parent.parent.name) in trained.text
