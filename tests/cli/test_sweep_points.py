"""Axes, combinations and what a trial is called."""

from __future__ import annotations

import argparse

import pytest

from gspo_rllib.cli.sweep_points import Point, combinations, label_of, points, split_axes


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


def test_samples_are_a_draw_or_repetitions_with_other_seeds() -> None:
    axes = {"training.lr": ["1", "2", "3"], "training.gamma": ["0", "1"]}
    every = combinations(axes, samples=None, seed=0)
    assert len(every) == 6 and {"training.lr": "3", "training.gamma": "1"} in every
    drawn = combinations(axes, samples=4, seed=0)
    assert len(drawn) == 4 and all(one in every for one in drawn) and drawn == combinations(axes, samples=4, seed=0)
    assert len({str(combinations(axes, samples=4, seed=seed)) for seed in range(10)}) > 1
    repeated = combinations({}, samples=3, seed=5)
    assert repeated == [{}, {"debugging.seed": "6"}, {"debugging.seed": "7"}]


def test_a_label_has_the_settings_in_full_and_a_folder_only_what_folders_take() -> None:
    chosen = {"training.lr": "1e-5", "training.clip_high": "4e-3", "environment.env": "gspo_rllib.envs:a/B-v0"}
    assert label_of(chosen) == "lr=1e-05,clip_high=0.004,env=gspo_rllib.envs:a/B-v0"
    assert Point(label_of(chosen), {}).folder == "lr=1e-05,clip_high=0.004,env=gspo_rllib.envs-a-B-v0"
    assert label_of({"a.size": "1", "b.size": "2", "c.x": "[0, {k: 1}]"}) == "a.size=1,b.size=2,x=[0,{k:1}]"
    long = [Point(f"path={'x' * 300}{end}", {}).folder for end in "ab"]
    assert len(set(long)) == 2 and max(map(len, long)) < 140


def test_one_value_in_two_writings_is_one_trial(config_file: str) -> None:
    overrides = ["training.lr=1e-5,0.00001,2e-5", "training.entropy_coeff=1,1.0", "run.iterations=1"]
    _, made = points(argparse.Namespace(config=config_file, verbose=False), overrides, samples=None)
    assert [point.label for point in made] == ["lr=1e-05,entropy_coeff=1", "lr=2e-05,entropy_coeff=1"]


def test_what_is_said_of_every_trial_is_said_once(config_file: str, caplog: pytest.LogCaptureFixture) -> None:
    overrides = ["training.lr=1e-5,2e-5,3e-5", "training.clip_high=0.3", "run.iterations=1"]
    points(argparse.Namespace(config=config_file, verbose=False), overrides, samples=None)
    said = [record.getMessage() for record in caplog.records if record.name == "gspo_rllib"]
    assert len(said) == len(set(said)) > 0


def test_a_trial_has_all_of_its_settings_even_in_one_mapping(config_file: str) -> None:
    overrides = [
        "environment.env_config.operations=1,2",
        "environment.env_config.render_mode=null,ansi",
        "run.iterations=1",
    ]
    arguments = argparse.Namespace(config=config_file, verbose=False)
    base, made = points(arguments, overrides, samples=None)
    assert base.config.env_config == {"operations": 1}
    assert [(point.label, point.values) for point in made] == [
        (f"operations={n},render_mode={mode}", {"env_config": {"operations": n, "render_mode": mode}})
        for n in (1, 2)
        for mode in (None, "ansi")
    ]
