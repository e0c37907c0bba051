"""The example of a loop without the trainer."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_bare_loop_runs(tiny_dense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    small = ["--operations", "1", "--groups", "2", "--group-size", "2", "--minibatches", "2", "--max-tokens", "4"]
    run = importlib.import_module("bare_loop").main
    assert 0.0 <= run([tiny_dense, "--engine", "transformers", "--iterations", "1", *small]) <= 1.0
