"""Raw results: whole or not there, and never another study's."""

from __future__ import annotations

import json

import pytest

from gspo_rllib.errors import SettingError
from gspo_rllib.study.design import Trial
from gspo_rllib.study.raw import read_result, write_result

TRIAL = Trial("far off", "GSPO", 3, "calculator", None, {"training.lr": 1e-4})
ROWS = [{"iteration": 0, "score": 0.25}, {"iteration": 1, "score": 0.5, "cpu_s": 2.0}, {"iteration": 2, "score": 1.0}]


def test_a_trial_is_read_back_as_it_was_measured(tmp_path) -> None:
    assert read_result(tmp_path, TRIAL) is None
    write_result(tmp_path, TRIAL, ROWS, {"versions": {"python": "3.11"}})
    result = read_result(tmp_path, TRIAL)
    assert result is not None
    assert (result.start, result.scores, result.mean("cpu_s"), result.mean("kl")) == (0.25, [0.5, 1.0], 2.0, None)
    document = json.loads((tmp_path / "raw/far-off/gspo/3.json").read_text())
    assert document["settings"] == {"training.lr": 1e-4}
    assert document["versions"] == {"python": "3.11"}


def test_a_result_of_other_settings_is_not_taken_for_this_one_s(tmp_path) -> None:
    write_result(tmp_path, TRIAL, ROWS, {})
    other = Trial("far off", "GSPO", 3, "calculator", None, {"training.lr": 1e-5})
    with pytest.raises(SettingError, match="measured with other settings"):
        read_result(tmp_path, other)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"digest": 1, "rows": [{"iteration": 0}]}', "\x00", '{"digest": "x", "rows": 3}']
)
def test_a_file_that_holds_no_result_says_so(tmp_path, text) -> None:
    write_result(tmp_path, TRIAL, ROWS, {})
    file = tmp_path / f"raw/{TRIAL.name}.json"
    file.write_text(text)
    with pytest.raises(SettingError, match="holds no result"):
        read_result(tmp_path, TRIAL)
