"""Start models: one per task, start and seed, made once."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gspo_rllib.errors import SettingError
from gspo_rllib.study import starts
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


def test_a_start_short_of_its_target_is_gone_on_with_and_given_up_in_a_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(starts, "MOST_TIMES", 2)
    options = {"sizes": {"hidden_size": 32, "num_layers": 1}, "max_minutes": 0.005}
    trial = dataclasses.replace(TRIAL, start=Start("tiny", options))
    folder = start_folder(tmp_path, trial)
    said: list[str] = []
    for _ in range(2):
        # The model that was left is not taken for one that reached it.
        with pytest.raises(SettingError, match=r"starts\.tiny, seed 0: .* short of its target of 0\.35 \(its"):
            make_start(tmp_path, trial, said.append)
        assert folder is not None and (folder / "config.json").exists()
    assert sum("going on" in line for line in said) == 2 * 2
