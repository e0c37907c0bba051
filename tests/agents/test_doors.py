"""Each door, however it is opened: a function, a harness outside, recorded groups; Python, a file of settings, Tune."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import tune
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import GSPOConfig
from gspo_rllib.cli.main import main
from tests.agents.harness import page_harness

TASKS = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]
PLAY = "tests.env_runners.agents:two_turns_that_differ_in_worth"
ITERATIONS, GROUPS, GROUP_SIZE = 2, 4, 2

Sections = dict[str, dict[str, Any]]


def _sections(door: str, path: str, folder: Path, num_env_runners: int, max_staleness: int) -> Sections:
    """The settings of a run, as a file holds them."""
    agent: dict[str, Any] = {"tasks": TASKS, "play": PLAY}
    training: dict[str, Any] = {"group_size": GROUP_SIZE, "groups_per_iteration": GROUPS, "lr": 1e-4}
    if door == "external":
        agent = {"tasks": TASKS, "workers": "external", "addresses": str(folder / "agents")}
    elif door == "recorded":
        training["recorded_groups"] = str(folder.parent / "groups.jsonl")
    return {
        "agent": agent,
        "rl_module": {"model_config": {"path": path}},
        "generation": {"engine": "transformers", "max_tokens_per_turn": 4},
        "env_runners": {"num_env_runners": num_env_runners, "num_envs_per_env_runner": 4},
        "training": {**training, "max_staleness": max_staleness},
    }


def _config(sections: Sections) -> GSPOConfig:
    config = GSPOConfig()
    for name, settings in sections.items():
        getattr(config, name)(**settings)
    return config


def _in_python(sections: Sections, folder: Path) -> list[dict[str, Any]]:
    algo = _config(sections).build_algo()
    try:
        return [algo.train() for _ in range(ITERATIONS)]
    finally:
        algo.stop()


def _by_command(sections: Sections, folder: Path) -> list[dict[str, Any]]:
    (folder / "mine.yaml").write_text(yaml.safe_dump(sections))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *parts, **_: None)
        assert main(["train", str(folder / "mine.yaml"), f"--iterations={ITERATIONS}", f"--storage={folder}"]) == 0
    (results,) = folder.glob("*/result.json")
    return [json.loads(line) for line in results.read_text().splitlines()]


def _in_tune(sections: Sections, folder: Path) -> list[dict[str, Any]]:
    config = _config(sections).env_runners(num_cpus_per_env_runner=0.5)
    run = tune.RunConfig(stop={"training_iteration": ITERATIONS}, storage_path=str(folder / "runs"), verbose=0)
    (result,) = tune.Tuner("GSPO", param_space=config.to_dict(), run_config=run).fit()
    assert result.error is None
    return [json.loads(line) for line in (Path(result.path) / "result.json").read_text().splitlines()]


WAYS = {"Python": _in_python, "YAML": _by_command, "Tune": _in_tune}


@pytest.fixture(scope="module")
def folder(tiny_dense: str, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a file of groups that the function played."""
    made: Path = tmp_path_factory.mktemp("doors")
    algo = _config(_sections("function", tiny_dense, made, 0, 0)).build_algo()
    try:
        algo.record_groups(made / "groups.jsonl")
        algo.train()
    finally:
        algo.stop()
    return made


DOORS = ("function", "external", "recorded")
PLACES = itertools.product(enumerate(DOORS), enumerate(WAYS), (0, 1))
CELLS = [(door, way, (d + w + stale) % 3, stale) for (d, door), (w, way), stale in PLACES]
"""Each door, way, number of env runners and bound of staleness meets each of the others."""


@pytest.mark.slow
@pytest.mark.parametrize(("door", "way", "num_env_runners", "max_staleness"), CELLS)
def test_a_door_trains_however_it_is_opened(
    tiny_dense: str, folder: Path, door: str, way: str, num_env_runners: int, max_staleness: int
) -> None:
    own = folder / f"{door}-{way}-{num_env_runners}-{max_staleness}"
    own.mkdir()
    sections = _sections(door, tiny_dense, own, num_env_runners, max_staleness)
    with page_harness(own) if door == "external" else contextlib.nullcontext():
        results = WAYS[way](sections, own)
    assert [result["training_iteration"] for result in results] == list(range(1, ITERATIONS + 1))
    for number, result in enumerate(results):
        learner = result["learners"][DEFAULT_MODULE_ID]
        assert learner["num_trajectories"] == GROUPS * GROUP_SIZE
        assert learner["logp_gap_max"] <= 1e-4 or (door, number) == ("recorded", 1)  # of other weights by then
        # The one file is used in each iteration; what is sampled is never older than it may be. The harness gives an
        # untaught policy nothing but zeros, of which nothing is learned.
        oldest = number if door == "recorded" else max_staleness
        assert learner.get("staleness", 0.0 if door == "external" else 9.0) <= oldest
        assert ("segments_mean" in result.get("env_runners", {})) is (door != "recorded")
    assert not list((own / "agents").glob("*"))
