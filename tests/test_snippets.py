"""Every snippet of the documents is run: the tests here run those that no other does, and a table names the others."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.rllib.callbacks.callbacks import RLlibCallback

from gspo_rllib import GSPO, GSPOConfig
from gspo_rllib.configs.runs import load_run
from gspo_rllib.engines.registry import available_engines
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.study.design import read_study
from tests.documents import DOCUMENTS, ROOT
from tests.documents import blocks as _blocks
from tests.documents import commands as _commands

RUN = ("python", "pycon", "yaml", "json")
"""Languages of what is run. Of what is written as ``bash`` every command is parsed by its own parser
(``test_docs.py``), and each sub-command is run in ``cli/``; blocks of no language are pictures and output."""

# Page and language to how many blocks of it each test runs.
RUN_BY = {
    ("README.md", "python"): {"test_docs.py::test_the_readme_snippets_run": 2},
    ("docs/agent_frameworks.md", "python"): {"agents/test_frameworks.py::_snippets": 11},
    ("docs/agents.md", "python"): {
        "env_runners/test_agent_env_runner.py::test_the_agents_on_the_page_play": 2,
        "agents/test_training.py::test_the_quickstart_of_the_page_trains_from_python_and_from_yaml": 2,
        "agents/test_training.py::test_the_harness_of_the_page_trains_a_policy": 1,
        "test_snippets.py::test_an_agent_outside_is_a_config_that_is_accepted": 1,
        "test_snippets.py::test_trajectories_of_ones_own_are_trained_on": 1,
    },
    ("docs/agents.md", "json"): {"env_runners/test_agent_env_runner.py::test_the_agents_on_the_page_play": 1},
    ("docs/agents.md", "yaml"): {
        "agents/test_training.py::test_the_quickstart_of_the_page_trains_from_python_and_from_yaml": 1
    },
    ("docs/chat_templates.md", "yaml"): {"test_snippets.py::test_what_a_template_is_given_is_accepted": 1},
    ("docs/environments.md", "python"): {
        "test_docs.py::test_the_environment_of_your_own_keeps_the_contract_and_trains": 2,
        "test_docs.py::test_the_examples_of_the_environments_say_what_happens": 3,
    },
    ("docs/environments.md", "pycon"): {
        "test_docs.py::test_the_examples_of_the_environments_say_what_happens": 3,
    },
    ("docs/long_horizons.md", "python"): {"test_snippets.py::test_a_curriculum_is_a_config_that_is_accepted": 1},
    ("docs/objectives.md", "python"): {
        "test_docs.py::test_the_objectives_in_python_yaml_and_tune_are_the_same": 2,
    },
    ("docs/objectives.md", "yaml"): {"test_docs.py::test_the_objectives_in_python_yaml_and_tune_are_the_same": 1},
    ("docs/objectives.md", "pycon"): {"test_docs.py::test_the_loss_example_of_the_objectives_runs": 1},
    ("docs/recorded_groups.md", "python"): {"test_recorded_groups.py::_blocks": 3},
    ("docs/recorded_groups.md", "json"): {"test_recorded_groups.py::_blocks": 2},
    ("docs/recorded_groups.md", "yaml"): {"test_recorded_groups.py::_blocks": 1},
    ("docs/reliability.md", "python"): {"test_snippets.py::test_a_checkpoint_is_loaded_as_the_page_says": 1},
    ("docs/runs.md", "python"): {"cli/test_trackers.py::test_tune_from_python_as_the_page_shows_it": 1},
    ("docs/scale.md", "python"): {
        "test_snippets.py::test_an_adapter_is_a_config_that_is_accepted": 1,
        "test_snippets.py::test_learners_that_share_a_model_are_a_config_that_is_accepted": 1,
        "test_snippets.py::test_an_engine_over_two_gpus_is_a_config_that_is_accepted": 1,
        "test_snippets.py::test_an_engine_and_a_learner_on_one_gpu_are_a_config_that_is_accepted": 1,
    },
    ("docs/sweeps.md", "python"): {"cli/test_sweep.py::test_the_columns_of_a_grid_are_those_of_the_page": 1},
    ("docs/studies.md", "yaml"): {"test_snippets.py::test_the_study_on_the_page_is_read": 1},
}


def test_every_snippet_is_run_by_a_test_that_is_there() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), language): len(blocks)
        for path in DOCUMENTS
        for language in RUN
        if (blocks := _blocks(path, language))
    }
    assert {where: sum(tests.values()) for where, tests in RUN_BY.items()} == found
    for tests in RUN_BY.values():
        for test in tests:
            file, _, name = test.partition("::")
            tree = ast.parse((ROOT / "tests" / file).read_text())
            named = {getattr(node, "name", None) for node in tree.body}
            named |= {getattr(t, "id", None) for node in tree.body for t in getattr(node, "targets", ())}
            assert name in named, test


def test_no_block_has_a_language_that_nobody_looks_at() -> None:
    languages = {
        language for path in DOCUMENTS for language in re.findall(r"^```([a-z]+)$", path.read_text(), flags=re.M)
    }
    assert languages <= {*RUN, "bash"}


def test_every_subcommand_on_a_page_is_run_by_a_test_of_its_own() -> None:
    shown = {shlex.split(c)[1] for path in DOCUMENTS for c in _commands(path) if c.startswith("gspo-rllib ")}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert len(shown) > 12
    assert not [name for name in shown if not re.search(rf"\[\"{name}\"[\],]", tests)]


@pytest.fixture
def seed_here(tiny_dense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model where the pages have theirs."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "seed").symlink_to(tiny_dense)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _one(page: str, language: str, part: str) -> str:
    (block,) = [block for block in _blocks(ROOT / "docs" / page, language) if part in block]
    return block


def _run(block: str, page: str, **names: Any) -> dict[str, Any]:
    exec(compile(block, page, "exec"), names)
    return names


def test_an_agent_outside_is_a_config_that_is_accepted(seed_here: Path) -> None:
    (seed_here / "tasks.jsonl").write_text('{"question": "17 + 25", "answer": "42"}\n')
    block = _one("agents.md", "python", 'workers="external"')
    config = _run(block, "agents.md", GSPOConfig=GSPOConfig)["config"]
    config.validate()
    assert (config.workers, config.addresses) == ("external", str(seed_here / "agents"))


def test_a_curriculum_is_a_config_that_is_accepted(seed_here: Path) -> None:
    config = _run(_one("long_horizons.md", "python", "curriculum="), "long_horizons.md")["config"]
    config.validate()
    assert config.curriculum[0] == {"rooms": 6, "locks": 1}


def test_an_adapter_is_a_config_that_is_accepted(seed_here: Path, tiny_dense: str) -> None:
    block = _one("scale.md", "python", "lora").replace("Qwen/Qwen3-4B", tiny_dense)
    config = GSPOConfig().environment("gspo_rllib.envs:gspo_rllib/Arithmetic-v0")
    _run(block, "scale.md", config=config)
    config.validate()
    assert config.model_config["lora"] == {"rank": 16, "alpha": 32}


def test_learners_that_share_a_model_are_a_config_that_is_accepted(tiny_dense: str) -> None:
    config = GSPOConfig().environment("gspo_rllib.envs:gspo_rllib/Arithmetic-v0")
    _run(
        _one("scale.md", "python", "sharding="), "scale.md", config=config.rl_module(model_config={"path": tiny_dense})
    )
    config.validate()
    assert (config.num_learners, config.sharding) == (4, "fsdp2")


@pytest.mark.skipif("vllm" not in available_engines(), reason="vllm is not installed")
def test_an_engine_over_two_gpus_is_a_config_that_is_accepted(tiny_dense: str) -> None:
    config = GSPOConfig().environment("gspo_rllib.envs:gspo_rllib/Arithmetic-v0")
    block = _one("scale.md", "python", "tensor_parallel_size")
    _run(block, "scale.md", config=config.rl_module(model_config={"path": tiny_dense}))
    config.validate()
    assert config.engine_options == {"tensor_parallel_size": config.num_gpus_per_env_runner}


@pytest.mark.skipif("vllm" not in available_engines(), reason="vllm is not installed")
def test_an_engine_and_a_learner_on_one_gpu_are_a_config_that_is_accepted(tiny_dense: str) -> None:
    config = GSPOConfig().environment("gspo_rllib.envs:gspo_rllib/Arithmetic-v0")
    config.rl_module(model_config={"path": tiny_dense})
    _run(_one("scale.md", "python", "colocate=True"), "scale.md", config=config)
    config.validate()
    assert config.colocate and config.num_gpus_per_learner + config.num_gpus_per_env_runner == 1


def test_what_a_template_is_given_is_accepted(seed_here: Path) -> None:
    (written,) = _blocks(ROOT / "docs" / "chat_templates.md", "yaml")
    base = {
        "environment": {"env": "gspo_rllib.envs:gspo_rllib/Arithmetic-v0"},
        "rl_module": {"model_config": {"path": "models/seed"}},
    }
    Path("run.yaml").write_text(yaml.safe_dump(base) + written)
    config = load_run("run.yaml").config
    config.validate()
    given = config.settings(GenerationSettings).template_kwargs
    assert given == {"enable_thinking": False, "date_string": "26 Jul 2025"}


def test_the_study_on_the_page_is_read(seed_here: Path) -> None:
    (written,) = _blocks(ROOT / "docs" / "studies.md", "yaml")
    Path("study.yaml").write_text(written)
    study = read_study("study.yaml")
    assert (study.title, len(study.cells)) == ("Two objectives", 4)


def _tiny(**training: Any) -> GSPOConfig:
    config = GSPOConfig().environment("gspo_rllib.envs:gspo_rllib/Arithmetic-v0")
    config.rl_module(model_config={"path": "models/seed"}).learners(num_learners=0).env_runners(num_env_runners=0)
    config.generation(engine="transformers", max_tokens_per_turn=2)
    return config.training(group_size=2, groups_per_iteration=4, **training)


@pytest.mark.slow
def test_trajectories_of_ones_own_are_trained_on(seed_here: Path, ray_local: None) -> None:
    algo = _tiny().build_algo()
    try:
        names = _run(_one("agents.md", "python", "save_groups"), "agents.md", algo=algo)
        assert Path("groups.jsonl").is_file() and "learners" in names["result"]
    finally:
        algo.stop()


class MyCallbacks(RLlibCallback):
    """Stands for a user's own."""


@pytest.mark.slow
def test_a_checkpoint_is_loaded_as_the_page_says(seed_here: Path, ray_local: None) -> None:
    config = _tiny().callbacks(MyCallbacks)
    algo = config.build_algo()
    path = algo.save_to_path(str(seed_here / "checkpoint"))
    algo.stop()
    lines = _one("reliability.md", "python", "from_checkpoint").splitlines()
    assert len(lines) == 2
    for line in lines:
        names = _run(
            f"loaded = {line}", "reliability.md", GSPO=GSPO, path=path, MyCallbacks=MyCallbacks, my_config=config
        )
        names["loaded"].stop()
