"""What is printed fits a terminal, and is one line per thing in a pipe."""

from __future__ import annotations

import logging
import sys

import pytest

from gspo_rllib.cli.main import main
from gspo_rllib.cli.terminal import tell, warnings_told


def test_a_long_line_ends_between_words_on_a_terminal_and_not_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"best: 84±3% evaluated at iteration 2, {'results/' * 8}checkpoints/best"
    monkeypatch.delenv("COLUMNS", raising=False)
    tell(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setenv("COLUMNS", "80")
    tell(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    tell(text)
    tell("checkpoint: " + "x" * 90)  # a path is never cut
    words = capsys.readouterr().out.splitlines()
    assert words[:2] == ["best: 84±3% evaluated at iteration 2,", f"  {'results/' * 8}checkpoints/best"]
    assert words[2:] == ["checkpoint:", "  " + "x" * 90]
    monkeypatch.setenv("COLUMNS", "200")
    tell(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_warnings_and_errors_end_between_words_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("gspo_rllib")
    monkeypatch.setattr(logger, "propagate", False)  # pytest prints what is logged, too
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with warnings_told():
        logger.info("not told")
        logger.warning("a caution of %d characters and more, which does not fit", 40)
    assert capsys.readouterr().err == "a caution of 40 characters and more,\n  which does not fit\n"
    assert not logger.handlers
    assert main(["show", "quikstart"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) > 1 and all(len(line) <= 40 for line in said) and said[-1].endswith("Did you mean 'quickstart'?")


def test_warnings_are_left_to_whoever_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("gspo_rllib")
    assert logger.hasHandlers(), "pytest's"
    with warnings_told():
        assert not logger.handlers
