"""A file of groups is trained on again and again, from Python, a file of settings, the command, and Tune."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray import tune
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import GSPO, GSPOConfig, load_groups, save_groups
from gspo_rllib.cli.main import main
from gspo_rllib.driver.group_passes import GroupPasses
from gspo_rllib.errors import RecordError, SettingError
from gspo_rllib.types import TrajectoryGroup, group_episodes
from tests.episodes import make_group

ENV = {"env": "gspo_rllib.envs:gspo_rllib/Calculator-v0", "env_config": {"operations": 1}}


def _sections(path: str, **training: Any) -> dict[str, Any]:
    return {
        "environment": ENV,
        "rl_module": {"model_config": {"path": path}},
        "generation": {"engine": "transformers", "max_tokens_per_turn": 4},
        "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 8},
        "training": {"group_size": 2, "groups_per_iteration": 2, "num_minibatches": 2, "lr": 1e-3} | training,
        "debugging": {"seed": 1},
    }


def _config(path: str, **training: Any) -> GSPOConfig:
    config = GSPOConfig()
    for section, settings in _sections(path, **training).items():
        getattr(config, section)(**settings)
    return config


def _parameters(algo: Any) -> dict[str, np.ndarray]:
    state = algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]
    return {name: np.array(array) for name, array in state.items()}


def _sampled(algo: Any) -> list[TrajectoryGroup]:
    """Groups of which every one teaches something, whatever the policy knows."""
    groups = group_episodes(algo.env_runner.sample(group_ids=["a", "b", "c"]))
    for group in groups:
        for index, episode in enumerate(group.episodes):
            episode.rewards.data[-1] = float(index)
    return groups


def _alike(one: Any, other: Any) -> bool:
    ours, theirs = _parameters(one), _parameters(other)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_pass_ends_with_the_file_and_the_next_begins_where_it_began(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    save_groups(path, group_episodes([episode for name in "abcde" for episode in make_group(name, 2)]))
    path.write_text(path.read_text().replace("\n", "\n\n"))
    passes, config = GroupPasses(path, GSPOConfig()), GSPOConfig()
    seen, taken = [], 0
    for _ in range(6):
        groups = passes.take(2, taken=taken)
        seen.append("".join(group.group_id for group in groups))
        taken += len(groups)
    assert seen == ["ab", "cd", "e", "ab", "cd", "e"]
    # A run that is continued goes on where it was.
    assert [group.group_id for group in GroupPasses(path, config).take(3, taken=8)] == ["d", "e"]
    assert [group.group_id for group in GroupPasses(path, config).take(99, taken=5)] == [*"abcde"]
    for text, message in (("\n", "is empty; there must be at least one group"), ("{}\n", "line 1: group_id is None")):
        path.write_text(text)
        with pytest.raises(RecordError, match=message):
            GroupPasses(path, config).take(1, taken=0)


def test_a_file_that_is_not_there_is_refused_before_anything_starts(tiny_dense: str) -> None:
    with pytest.raises(SettingError, match=r"recorded_groups=./.*none.jsonl.: no such file; it must be a JSONL file"):
        _config(tiny_dense, recorded_groups="none.jsonl").validate()
    with pytest.raises(SettingError, match=r"recorded_behavior.*recorded_groups"):
        _config(tiny_dense, recorded_behavior="unknown").validate()


def test_a_run_from_a_file_of_settings_is_train_on_of_the_same_groups(
    tiny_dense: str, tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.print", lambda *parts, **_: None)
    monkeypatch.chdir(tmp_path)
    by_hand, fresh = _config(tiny_dense).build_algo(), _config(tiny_dense).build_algo()
    try:
        save_groups("groups.jsonl", _sampled(by_hand))
        Path("mine.yaml").write_text(yaml.safe_dump(_sections(tiny_dense, recorded_groups="groups.jsonl")))
        assert main(["train", "mine.yaml", "--iterations", "1", "--storage", "runs"]) == 0
        (saved,) = Path("runs").glob("*/checkpoints/*")
        groups = load_groups("groups.jsonl")
        by_hand.train_on(itertools.islice(groups, 2))
        run = GSPO.from_checkpoint(str(saved.absolute()))
        try:
            assert _alike(run, by_hand)
            # What is continued goes on in the file, and then from its beginning.
            assert run.train()["learners"][DEFAULT_MODULE_ID]["num_trajectories"] == 2
            by_hand.train_on(groups)
            assert _alike(run, by_hand)
            result = run.train()["learners"][DEFAULT_MODULE_ID]
            by_hand.train_on(itertools.islice(load_groups("groups.jsonl"), 2))
            assert _alike(run, by_hand) and result["num_trajectories"] == 4 and result["staleness"] == 2.0
            assert not _alike(run, fresh)
        finally:
            run.stop()
    finally:
        by_hand.stop()
        fresh.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("num_env_runners", "max_staleness"), [(0, 0), (1, 1), (2, 0)])
def test_trials_of_a_study_train_on_one_file(
    tiny_dense: str, tmp_path: Path, ray_local: None, num_env_runners: int, max_staleness: int
) -> None:
    path = tmp_path / "groups.jsonl"
    sampling = _config(tiny_dense).build_algo()
    try:
        save_groups(path, _sampled(sampling))
    finally:
        sampling.stop()
    config = _config(tiny_dense, recorded_groups=str(path), max_staleness=max_staleness)
    config.env_runners(num_env_runners=num_env_runners, num_cpus_per_env_runner=0.5)
    config.evaluation(evaluation_interval=2, evaluation_duration=2)
    config.update_from_dict({"lr": tune.grid_search([1e-6, 1e-5])})
    run_config = tune.RunConfig(stop={"training_iteration": 2}, storage_path=str(tmp_path / "runs"), verbose=0)
    results = tune.Tuner("GSPO", param_space=config.to_dict(), run_config=run_config).fit()
    assert not results.errors
    for result in results:
        assert result.metrics["training_iteration"] == 2
        assert result.metrics["learners"][DEFAULT_MODULE_ID]["num_trajectories"] == 2
        assert result.metrics["evaluation"]["env_runners"]["num_episodes"] == 2
