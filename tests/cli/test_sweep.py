"""`gspo-rllib sweep`: axes, and one trial per value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gspo_rllib import checkpoints
from gspo_rllib.cli.main import main
from gspo_rllib.cli.sweep import split_axes


@pytest.mark.parametrize(
    ("overrides", "fixed", "axes"),
    [
        (["a.b=1"], ["a.b=1"], {}),
        (["a.b=1,2", "a.c=x,y"], [], {"a.b": ["1", "2"], "a.c": ["x", "y"]}),
        (["a.b=[1, 2]", "a.c={x: 1, y: 2}"], ["a.b=[1, 2]", "a.c={x: 1, y: 2}"], {}),
        (["a.b=[1, 2],[3]"], [], {"a.b": ["[1, 2]", "[3]"]}),
    ],
)
def test_commas_outside_brackets_make_an_axis(
    overrides: list[str], fixed: list[str], axes: dict[str, list[str]]
) -> None:
    assert split_axes(overrides) == (fixed, axes)


def test_a_sweep_trains_one_trial_per_value(
    config_file: str, ray_local: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", config_file, "training.lr=1e-5,3e-5", "--iterations", "1", "--storage", str(tmp_path)]
    assert main([*arguments, "--name", "lr"]) == 0
    trials = sorted((tmp_path / "lr").glob("GSPO_*"))
    rates = {json.loads((trial / "params.json").read_text())["lr"] for trial in trials if trial.is_dir()}
    assert rates == {1e-5, 3e-5}
    for trial in trials:
        (checkpoint,) = trial.glob("checkpoint_*")
        checkpoints.verify(checkpoint)
    assert capfd.readouterr().out.count("checkpoint_") >= 2


def test_what_a_sweep_would_leave_out_is_refused(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", config_file, "run.record_groups=true", "run.iterations=1"]) == 2
    assert "run.record_groups=true: a sweep records no groups." in capsys.readouterr().err
