"""`gspo-rllib list`: what can be named, in lines that fit."""

from __future__ import annotations

import pytest

from gspo_rllib.cli.listing import algorithms
from gspo_rllib.cli.main import main

CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


def test_list_names_what_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in (CALCULATOR, "gspo_rllib.envs:gspo_rllib/Bisection-v0", "transformers", "calculator", "quickstart"):
        assert name in text


def test_the_algorithms_are_those_that_can_be_trained() -> None:
    from gspo_rllib.algorithms import ALGORITHMS

    assert list(algorithms()) == list(ALGORITHMS)
    for name, text in algorithms().items():
        assert text and (ALGORITHMS[name].__doc__ or "").startswith(f"{text};")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_longer_than_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    # What a name stands for begins at one place in each block: beside the names, or below them.
    (calculator,) = (line for line in lines if line.startswith(f"  {CALCULATOR}"))
    (quest,) = (line for line in lines if line.startswith("  gspo_rllib.envs:gspo_rllib/Quest-v0"))
    if width == 200:
        assert calculator.index("work out") == quest.index("explore rooms")
    else:
        assert (calculator.strip(), quest.strip()) == (CALCULATOR, "gspo_rllib.envs:gspo_rllib/Quest-v0")


def test_what_is_piped_is_one_line_per_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    main(["list"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "ScienceWorld" in line)
    assert line.endswith("30 kinds of tasks; needs Java")
