"""Configs in YAML: every shipped one loads, a section is a builder call, every mistake gets one exact message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gspo_rllib.configs import RunSettings, load_config, load_run, shipped_configs
from gspo_rllib.configs.runs import apply_override
from gspo_rllib.errors import SettingError

MINIMAL = """\
environment: {env: "gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config: {operations: 3}}
rl_module: {model_config: {path: models/mine}}
training:
  lr: 1e-6
run: {iterations: 2}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_loads(name: str) -> None:
    run = load_run(name)
    assert run.name == name
    assert (run.config.env or run.config.tasks[0]["env"]).startswith("gspo_rllib.envs:gspo_rllib/")
    assert run.settings.iterations or run.settings.minutes
    assert shipped_configs()[name].read_text().startswith("# "), "its first line says what it is, for `gspo-rllib list`"


def test_a_run_names_the_algorithm_whose_defaults_it_starts_from(run_file: Path) -> None:
    from gspo_rllib.algorithms import ALGORITHMS

    for name, algorithm in ALGORITHMS.items():
        config = load_config(run_file, [f"run.algorithm={name}", "training.clip_high=0.3"])
        expected = algorithm.get_default_config()
        assert type(config) is type(expected)
        assert config.algo_class is algorithm
        assert config.clip_low == expected.clip_low
        assert (config.clip_high, config.lr) == (0.3, 1e-6)
    with pytest.raises(SettingError, match=r"run.algorithm is 'GRPOO'; allowed: GSPO, GRPO, .* Did you mean 'GRPO'"):
        load_config(run_file, ["run.algorithm=GRPOO"])


def test_a_section_is_the_builder_call_of_its_name(run_file: Path) -> None:
    from gspo_rllib import GSPOConfig

    loaded = load_config(run_file)
    built = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 3})
        .rl_module(model_config={"path": "models/mine"})
        .training(lr=1e-6)
    )
    assert vars(loaded) == vars(built)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lrr=1", "mine.yaml: training.lrr: no such setting. Did you mean 'lr'?"),
        ("training.group_sise=8", "mine.yaml: training.group_sise: no such setting. Did you mean 'group_size'?"),
        ("generation.temprature=1", "mine.yaml: generation.temprature: no such setting. Did you mean 'temperature'?"),
        (
            "env_runners.num_runners=2",
            "mine.yaml: env_runners.num_runners: no such setting. Did you mean 'num_env_runners'?",
        ),
        (
            "env_runners.num_envs_per_worker=2",
            "mine.yaml: env_runners.num_envs_per_worker: RLlib no longer takes it. "
            "Did you mean 'num_envs_per_env_runner'?",
        ),
        ("training.lr='1e-6'", "mine.yaml: training.lr: got the text '1e-6'; write it without quotes."),
        ("training.group_size=many", "mine.yaml: training.group_size: got the text 'many'; it takes int."),
        ("trainin.lr=1", "override 'trainin.lr=1': no section 'trainin'. Did you mean 'training'?"),
        ("training.lr", "override 'training.lr': expected section.key=value, e.g. training.lr=2e-5."),
        ("lr=1", "override 'lr=1': expected section.key=value, e.g. training.lr=2e-5."),
        ("training.lr.x=1", "override 'training.lr.x=1': training.lr is a number (1e-06), so it has no keys to set."),
        (
            "training.lr={a: 1, a: 2}",
            "override 'training.lr={a: 1, a: 2}' line 1: duplicate key 'a', first on line 1; keep one",
        ),
        ("run.iteration=3", "mine.yaml: run.iteration: no such setting. Did you mean 'iterations'?"),
        ("run.iterations=0", "run.iterations: expected a whole number >= 1, got 0."),
        ("run.record_groups=1", "run.record_groups: expected true or false, got 1."),
        ("run.iterations=2.5", "run.iterations: expected a whole number >= 1, got 2.5."),
        ("run.minutes=-1", "run.minutes: expected a number > 0, got -1."),
        ("run.success=90", "run.success: expected a share in (0, 1], got 90."),
        ("run.storage=5", "run.storage: expected text, got 5."),
    ],
)
def test_a_wrong_setting_is_named_with_the_remedy(run_file: Path, override: str, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_run(run_file, [override])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.yaml: empty; it needs at least the sections 'environment' and 'rl_module'."),
        ("- 1", "mine.yaml: expected sections such as 'training:', got a list ([1])."),
        ("trainign: {}", "mine.yaml: no section 'trainign'. Did you mean 'training'?"),
        ("training: 5", "mine.yaml: section 'training' must hold 'key: value' lines, got a number (5)."),
        ("training: [lr]", "mine.yaml: section 'training' must hold 'key: value' lines, got a list (['lr'])."),
    ],
)
def test_a_document_of_another_shape_is_refused(run_file: Path, text: str, message: str) -> None:
    run_file.write_text(text)
    with pytest.raises(SettingError) as caught:
        load_config(run_file)
    assert str(caught.value) == message


def test_an_unknown_config_names_the_shipped_one_it_resembles() -> None:
    with pytest.raises(SettingError) as caught:
        load_config("calculater")
    message = "config 'calculater': no such file, and no shipped config of that name. Did you mean 'calculator'?"
    assert str(caught.value) == message


def test_an_illegal_evaluation_override_is_refused(run_file: Path) -> None:
    with pytest.raises(SettingError, match=r"section 'evaluation' was refused by RLlib: .*group_sizes"):
        load_config(run_file, ["evaluation.evaluation_config={group_sizes: 1}"])


def test_what_rllib_trips_over_is_a_refusal(run_file: Path) -> None:
    with pytest.raises(SettingError, match=r"environment.env_config is None; allowed: a mapping whose keys"):
        load_config(run_file, ["environment.env_config=null"])


def test_overrides_reach_into_mappings_and_the_last_one_wins(run_file: Path) -> None:
    overrides = [
        "environment.env_config.operations=8",
        "training.lr=1e-4",
        "training.lr=2e-5",
        "learners.num_learners=2",
        "generation.template_kwargs.enable_thinking=false",
    ]
    run = load_run(run_file, [*overrides, "rl_module.model_config.activation_checkpointing=true", "run.minutes=1.5"])
    assert run.config.env_config == {"operations": 8}
    assert run.config.lr == 2e-5
    assert run.config.num_learners == 2
    assert run.config.template_kwargs == {"enable_thinking": False}
    assert run.config.model_config["path"] == "models/mine"
    assert run.config.model_config["activation_checkpointing"] is True
    assert run.settings == RunSettings(iterations=2, minutes=1.5)


def test_an_empty_section_is_a_call_without_arguments(run_file: Path) -> None:
    run_file.write_text(MINIMAL + "learners:\n")
    assert load_config(run_file).lr == 1e-6


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["training", "lr", "run", "x", ""]), max_size=4), st.text(max_size=10))
def test_a_refused_override_changes_nothing(path: list[str], text: str) -> None:
    sections: dict[str, Any] = {"training": {"lr": 1.0}}
    try:
        apply_override(sections, f"{'.'.join(path)}={text}")
    except SettingError:
        assert sections["training"] == {"lr": 1.0}
