"""`gspo-rllib rollout`: every turn is printed, the same ones for the same seed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gspo_rllib.cli.main import main


def test_rollout_prints_every_turn(trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", str(trained.checkpoint), "--episodes", "2"]) == 0
    text = capsys.readouterr().out
    assert text.count("trajectory ") == 2
    for word in ("task seed", "turn 1", "observation", "action", "reward", "tokens, ", "return"):
        assert text.count(word) >= 2, word
    assert text.isprintable() or not set(text) & {chr(c) for c in range(32) if chr(c) != "\n"}


def test_rollout_is_repeatable_and_the_seed_changes_the_tasks(
    trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["rollout", str(trained.checkpoint), "--episodes", "2", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
