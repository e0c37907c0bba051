"""`reporting(keep_trajectories=...)`: whole groups of each iteration, exact, never more than was asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gspo_rllib import GSPOConfig
from gspo_rllib.algorithms.policy_gradient import kept_trajectories
from gspo_rllib.algorithms.policy_gradient.kept_trajectories import KeepsTrajectories
from gspo_rllib.connectors.episodes_to_tokens import token_trajectory
from gspo_rllib.driver.group_file import load_groups
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import SettingError
from gspo_rllib.trajectory_table import read_table, row_of
from gspo_rllib.types import TrajectoryGroup
from tests.episodes import make_group
from tests.toy_envs.coin_env import CoinEnv


def _config(path: str) -> GSPOConfig:
    config = GSPOConfig().environment(CoinEnv).rl_module(model_config={"path": path})
    config.generation(engine="transformers", max_tokens_per_turn=6).env_runners(num_envs_per_env_runner=8)
    config.training(group_size=4, groups_per_iteration=3, num_minibatches=3, lr=1e-3).debugging(seed=1)
    return config


def test_what_is_kept_is_what_was_sampled_and_what_the_update_did(
    tiny_dense: str, ray_local: None, tmp_path: Path
) -> None:
    algo = _config(tiny_dense).build_algo()
    algo.trajectory_folder = tmp_path
    algo.record_groups(tmp_path / "groups.jsonl")
    try:
        algo.train()
        sampled = {group.group_id: group.episodes for group in load_groups(tmp_path / "groups.jsonl")}
        (file,) = tmp_path.glob("*.parquet")
        rows = read_table(file)
        assert file.name == "iteration_000001.parquet"
        assert len(rows) == 8 and len({row["group_id"] for row in rows}) == 2

        episodes = [sampled[row["group_id"]][row["index"]] for row in rows]
        for episode, row in zip(episodes, rows, strict=True):
            plain = row_of(episode, iteration=1)
            for turn, expected in zip(row["turns"], plain["turns"], strict=True):
                assert {**turn, "advantage": None, "updated_logp": None} == expected
            assert row["trained"] and row["return"] == pytest.approx(plain["return"])

        # The advantage is the group's z-score, the same on every token of a trajectory.
        for group in {row["group_id"] for row in rows}:
            returns = np.array([row["return"] for row in rows if row["group_id"] == group])
            scores = (returns - returns.mean()) / returns.std(ddof=1)
            for row, score in zip([row for row in rows if row["group_id"] == group], scores, strict=True):
                for turn in row["turns"]:
                    assert turn["advantage"] == pytest.approx([score] * len(turn["sampled_ids"]), rel=1e-3)

        # What the learner says of them now is what was kept.
        trajectories = [token_trajectory(episode) for episode in episodes]
        (scored,) = algo._first_learner(lambda learner: learner.score(trajectories, [1.0] * len(trajectories)))
    finally:
        algo.stop()
    for row, logp in zip(rows, scored, strict=True):
        assert np.concatenate([turn["updated_logp"] for turn in row["turns"]]) == pytest.approx(logp, abs=1e-5)
        assert np.abs(np.concatenate([turn["logp"] for turn in row["turns"]]) - logp).max() > 1e-3


def test_the_new_log_probabilities_are_those_of_the_new_weights(
    tiny_dense: str, ray_local: None, tmp_path: Path
) -> None:
    # Without a step the new policy is the old one, in float32 here and there.
    algo = _config(tiny_dense).training(lr=0.0).reporting(keep_trajectories=3).build_algo()
    algo.trajectory_folder = tmp_path
    try:
        algo.train()
    finally:
        algo.stop()
    rows = read_table(tmp_path / "iteration_000001.parquet")
    assert [row["index"] for row in rows] == [0, 1, 2], "of a group of four"
    assert all(row["turns"][0]["advantage"] for row in rows), "that compares them with the fourth"
    for turn in [turn for row in rows for turn in row["turns"]]:
        assert turn["updated_logp"] == pytest.approx(turn["logp"], abs=1e-4)


@pytest.mark.parametrize(("value", "allowed"), [(-1, ">= 0"), (1.5, "int"), (True, "int"), (10_001, "<= 10000")])
def test_another_number_is_refused(value: Any, allowed: str, tiny_dense: str) -> None:
    with pytest.raises(SettingError, match=rf"reporting.keep_trajectories is {value}; allowed: .*{allowed}"):
        _config(tiny_dense).reporting(keep_trajectories=value).validate()


def test_an_evaluation_keeps_nothing_so_it_takes_no_such_setting(tiny_dense: str) -> None:
    config = _config(tiny_dense).evaluation(evaluation_interval=1, evaluation_config={"keep_trajectories": 2})
    with pytest.raises(SettingError, match="keep_trajectories"):
        config.validate()


# -- which are kept, without an algorithm


class _Config(SimpleNamespace):
    def settings(self, kind: type) -> Any:
        return kind(keep_trajectories=self.keep) if kind is not GenerationSettings else kind()


class _Keeper(KeepsTrajectories):
    def __init__(self, folder: Path, keep: int) -> None:
        self.config = _Config(seed=0, keep=keep, _learner_connector=None)  # type: ignore[assignment]
        self.trajectory_folder, self.iteration = folder, 0
        self._begin_keeping()


def _groups(*names: str, size: int = 3) -> list[TrajectoryGroup]:
    return [TrajectoryGroup(name, make_group(name, size)) for name in names]


def _kept(keeper: _Keeper) -> list[tuple[str, int]]:
    keeper._write_kept()
    (file,) = keeper.trajectory_folder.glob("*.parquet")  # type: ignore[union-attr]
    return [(row["group_id"], row["index"]) for row in read_table(file)]


def test_neither_the_order_nor_the_number_of_draws_decides(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    found = []
    for number, draws in enumerate([[names], [names[::-1]], [names[:5], names[5:]], [[name] for name in names]]):
        keeper = _Keeper(tmp_path / str(number), 7)
        for draw in draws:
            keeper._offer(_groups(*draw))
        found.append(_kept(keeper))
    assert found == [found[0]] * 4
    # Two whole groups of three fit into seven, and not always the first ones.
    assert len(found[0]) == 6 and {name for name, _ in found[0]} != {"0", "1"}


def test_of_a_group_that_is_too_large_the_first_members_are_kept(tmp_path: Path) -> None:
    keeper = _Keeper(tmp_path, 2)
    keeper._offer(_groups("a", size=5))
    assert _kept(keeper) == [("a", 0), ("a", 1)]


def test_none_are_kept_where_none_are_asked_for(tmp_path: Path) -> None:
    keeper = _Keeper(tmp_path, 0)
    keeper._offer(_groups("a"))
    keeper._look_at_trained(_groups("a"))
    keeper._write_kept()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    keeper = _Keeper(tmp_path, 2)
    keeper._offer(_groups("a"))
    said = []
    for has_room in (False, False, True, False):
        with monkeypatch.context() as patch:
            if not has_room:
                patch.setattr(kept_trajectories, "write_table", full)
            keeper._write_kept()
        said.append(len(caplog.records))
        keeper.iteration += 1
    assert said == [1, 1, 1, 2]
    assert caplog.messages[-1] == (
        "Trajectories of iteration 4, and of those after it while this lasts, are not kept: "
        "[Errno 28] No space left on device"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["iteration_000003.parquet"]
