"""`gspo-rllib list`."""

from __future__ import annotations

import pytest

from gspo_rllib.cli.main import main

CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


def test_list_names_what_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in (CALCULATOR, "gspo_rllib.envs:gspo_rllib/Bisection-v0", "transformers", "calculator", "quickstart"):
        assert name in text
