"""The example of an environment of one's own."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_custom_environment_is_learnt(tiny_dense: str, ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    run = importlib.import_module("custom_env").main
    options = [tiny_dense, "--engine", "transformers", "--iterations"]
    assert run([*options, "1"]) < run([*options, "12"])
