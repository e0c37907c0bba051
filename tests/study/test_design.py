"""Reading a study: what it is made of, and what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from gspo_rllib.errors import SettingError
from gspo_rllib.study.design import read_study, slug

GOOD: dict[str, Any] = {
    "study": {"config": "calculator", "iterations": 3, "seeds": [0, 1], "evaluate_tasks": 8},
    "starts": {"dense": {"careless": True}, "moe": {"architecture": "qwen3_moe"}},
    "objectives": {
        "GSPO": {"run.algorithm": "GSPO", "tune": [{"training.lr": 1e-4}, {"training.lr": 1e-5}]},
        "GRPO": {
            "run.algorithm": "GRPO",
            "training.clip_low": 0.2,
            "tune": [{"training.lr": 1e-4}, {"training.lr": 3e-5}],
        },
    },
    "cells": {
        "base": {"objectives": ["GSPO", "GRPO", "GRPO tuned"]},
        "mixture": {"start": "moe", "training.num_minibatches": 16},
    },
    "tuning": {"cell": "base", "seeds": [100]},
}


def read(tmp_path, document: dict[str, Any]):
    file = tmp_path / "trial.yaml"
    file.write_text(json.dumps(document))
    return read_study(file)


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    *parents, last = path.split("/")
    place = document
    for key in parents:
        place = place[key]
    place[last] = value
    return document


def test_every_cell_objective_and_seed_is_a_trial_with_settings_of_its_own(tmp_path) -> None:
    study = read(tmp_path, GOOD)
    trials = study.trials({"GRPO": {"training.lr": 3e-5}, "GSPO": {}})
    compared = {"base": ["GSPO", "GRPO", "GRPO tuned"], "mixture": ["GSPO", "GRPO"]}
    assert [(t.seed, t.cell, t.objective) for t in trials] == [
        (seed, cell, objective) for seed in (0, 1) for cell, objectives in compared.items() for objective in objectives
    ]
    run = trials[4].run("/models/start")
    assert run.settings.algorithm == "GRPO"
    assert run.config.seed == 0
    assert run.config.num_minibatches == 16
    assert run.config.clip_low == 0.2
    assert run.config.model_config["path"] == "/models/start"
    assert trials[2].run(None).config.lr == 3e-5
    assert trials[1].run(None).config.lr == 1e-4, "the config's own"
    assert trials[3].start.options == {"architecture": "qwen3_moe"}
    assert len({trial.name for trial in trials}) == len(trials)
    assert len({trial.digest for trial in trials}) == len(trials)


def test_a_cell_may_be_longer_and_begin_with_its_configs_own_model(tmp_path) -> None:
    document = changed("cells/mixture/iterations", 7)
    document["cells"]["mixture"]["start"] = None
    trials = {trial.cell: trial for trial in read(tmp_path, document).trials({})}
    assert {name: trial.settings["run.iterations"] for name, trial in trials.items()} == {"base": 3, "mixture": 7}
    assert trials["mixture"].settings["run.evaluate_every"] == 8 and trials["mixture"].start is None


def test_tuning_tries_what_is_compared_and_nothing_else(tmp_path) -> None:
    trials = read(tmp_path, GOOD).tuning_trials()
    assert [(t.objective, t.seed, t.settings["training.lr"]) for t in trials] == [
        ("GRPO, candidate 1", 100, 1e-4),
        ("GRPO, candidate 2", 100, 3e-5),
    ]
    assert {trial.cell for trial in trials} == {"tuning"}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("cells", {}, "cells: there is none"),
        ("objectives", {}, "objectives: there is none"),
        ("cells/base", {"lr": 1}, "cells.base.lr: expected a setting as section.key"),
        ("cells/base", {"iterations": 0}, "cells.base.iterations: expected a whole number >= 1, got 0"),
        ("cells/base", {"start": "mo"}, "no start 'mo'. Did you mean 'moe'"),
        ("cells/base", {"objectives": ["GSPOO"]}, "no objective 'GSPOO'. Did you mean 'GSPO'"),
        ("cells/base", {"objectives": []}, "expected a list of names"),
        ("cells/Base", {}, "two names are the same as a folder's name: base"),
        ("cells/tuning", {}, "two names are the same as a folder's name: tuning"),
        ("objectives/GSPO tuned", {}, "must not end in ' tuned'"),
        ("objectives/GSPO/tune", [{"training.lr": 1.0}], "tuning must cost each the same"),
        ("objectives/GSPO/tune", "lr", "expected a list of settings to try"),
        ("study/seeds", [0, 0], "different whole numbers"),
        ("study/seeds", [0.5], "different whole numbers"),
        ("study/seeds", [100], "are trials' seeds too"),
        ("study/iterations", 0, "study.iterations: expected a whole number >= 1, got 0"),
        ("study/iterations", True, "study.iterations: expected a whole number >= 1, got True"),
        ("study/config", "", "it has no config"),
        ("study/itertions", 3, "no entry 'itertions'. Did you mean 'iterations'"),
        ("sells", {}, "no entry 'sells'. Did you mean 'cells'"),
        ("tuning", {"cell": "base"}, "tuning.seeds: there are none"),
        ("tuning", {"cell": "bse", "seeds": [9]}, "no cell 'bse'. Did you mean 'base'"),
        ("tuning", {}, "compares a tuned objective, and there is no section tuning"),
        ("objectives", [1], "expected 'key: value' lines"),
    ],
)
def test_what_no_study_can_do_is_refused(tmp_path, path, value, words) -> None:
    with pytest.raises(SettingError) as caught:
        read(tmp_path, changed(path, value))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_that_is_none_is_refused_by_the_cell_and_objective_it_stands_in(tmp_path) -> None:
    study = read(tmp_path, changed("objectives/GRPO/training.clip_lo", 0.1))
    with pytest.raises(SettingError, match=r"cell 'base', objective 'GRPO': .*clip_lo.*clip_low"):
        study.trials({"GSPO": {}, "GRPO": {}})[1].run(None)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path) -> None:
    with pytest.raises(SettingError, match=r"cannot be read .* that come with the package: baselines, quick"):
        read_study(tmp_path / "none.yaml")


def test_a_study_that_comes_with_the_package_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_study("quick").name == "quick"


def test_names_become_folders() -> None:
    assert slug("../GSPO (turn)") == "gspo-turn"
    assert slug("…") == "unnamed"
