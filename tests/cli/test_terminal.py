"""What is printed fits a terminal, and is one line per thing in a pipe."""

from __future__ import annotations

import sys

import pytest

from gspo_rllib.cli.terminal import tell


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
