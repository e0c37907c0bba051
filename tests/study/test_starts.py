"""Start models: one per task, start and seed, made once."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gspo_rllib.errors import SettingError
from gspo_rllib.study.design import Start, Trial
from gspo_rllib.study.starts import make_start, start_folder

TRIAL = Trial("a", "GSPO", 0, "calculator", Start("small", {"careless": True}), {"training.lr": 1e-4})


def test_trials_of_one_task_and_seed_share_a_start_and_no_others_do(tmp_path) -> None:
    folder = start_folder(tmp_path, TRIAL)
    same = dataclasses.replace(TRIAL, cell="b", objective="GRPO", settings={"training.lr": 1e-5})
    assert start_folder(tmp_path, same) == folder
    others = [
        dataclasses.replace(TRIAL, seed=1),
        dataclasses.replace(TRIAL, settings={"environment.env_config.operations": 2}),
        dataclasses.replace(TRIAL, start=Start("small", {"careless": False})),
        dataclasses.replace(TRIAL, config="quest"),
    ]
    assert len({folder, *(start_folder(tmp_path, other) for other in others)}) == 5
    assert start_folder(tmp_path, dataclasses.replace(TRIAL, start=None)) is None


def test_what_is_there_is_not_made_again(tmp_path) -> None:
    folder = start_folder(tmp_path, TRIAL)
    assert folder is not None
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({}))
    said: list[str] = []
    assert make_start(tmp_path, TRIAL, said.append) == folder
    assert not said


def test_an_option_that_no_warm_start_has_is_named(tmp_path) -> None:
    trial = dataclasses.replace(TRIAL, start=Start("small", {"carelss": True}))
    with pytest.raises(SettingError, match=r"starts\.small: .*'carelss'"):
        make_start(tmp_path, trial, lambda _line: None)
