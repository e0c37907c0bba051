"""Batches chosen by number: the same run however many runners play it, whatever becomes of them, resumed or not."""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
import signal
from typing import Any

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from gspo_rllib import metrics as names
from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.algorithms.policy_gradient.algorithm import UNFINISHED_GROUPS
from gspo_rllib.driver.fixed_lag import FixedLag
from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.errors import CheckpointError, LearnersLostError, NoProgressError, SettingError
from gspo_rllib.types import TrajectoryGroup, group_episodes, turns
from tests.episodes import make_episode
from tests.toy_envs.coin_env import CoinEnv

G = 3
ITERATIONS = 6


class NumberedRunner:
    """Plays with the version it was last sent, and notes what it played."""

    def __init__(self) -> None:
        self.version = 0
        self.played: list[tuple[int, list[str]]] = []
        self.given_up: set[str] = set()

    def sample_groups(self, group_ids: list[str], *, weights_version: int) -> SampleReport:
        assert weights_version == self.version
        self.played.append((self.version, list(group_ids)))
        kept = [group_id for group_id in group_ids if group_id not in self.given_up]
        made = [make_episode(g, i, [(3, 2)], float(i), version=self.version) for g in kept for i in range(2)]
        errors = [f"no luck with {group_id}" for group_id in group_ids if group_id not in kept]
        # Not in the order they were asked for: who was fast is nobody's business.
        return SampleReport(group_episodes(made)[::-1], errors=errors, weights_version=self.version)


class Here:
    """A group of one runner, in this process."""

    def __init__(self) -> None:
        self.local_env_runner = NumberedRunner()

    def num_remote_env_runners(self) -> int:
        return 0

    def num_healthy_remote_workers(self) -> int:
        return 0


class Version:
    """Stands for weights of which only the version counts, and whether they are gone with their machine."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.is_gone = False

    def restore(self) -> bool:
        return not self.is_gone

    def push(self, runners: Any, *, force: bool = False) -> None:
        runners.local_env_runner.version = self.version


def _source(lag: int, first: int = 0) -> tuple[FixedLag, NumberedRunner]:
    runners, numbers = Here(), itertools.count(first)
    source = FixedLag(
        runners,  # type: ignore[arg-type]
        groups_per_iteration=G,
        lag=lag,
        draw=lambda count: [str(next(numbers)) for _ in range(count)],
    )
    return source, runners.local_env_runner


def _start(source: FixedLag, version: int) -> None:
    source.start(Version(version))  # type: ignore[arg-type]


def _ids(batch: int) -> list[str]:
    return [str(number) for number in range(batch * G, (batch + 1) * G)]


def _version_of(groups: list[TrajectoryGroup]) -> int:
    (version,) = {turn.policy_version for group in groups for e in group.episodes for turn in turns(e)}
    return int(version)


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_each_batch_is_sampled_whole_by_the_weights_that_many_batches_before(lag: int) -> None:
    source, runner = _source(lag)
    _start(source, 0)
    for batch in range(8):
        groups, _ = source.take(G)
        assert [group.group_id for group in groups] == _ids(batch)
        assert _version_of(groups) == max(0, batch - lag)
        assert source.unfinished == [i for later in range(batch + 1, batch + lag + 1) for i in _ids(later)]
        source.advance(Version(batch + 1))  # type: ignore[arg-type]
    assert [played for _, played in runner.played] == [_ids(batch) for batch in range(8)]


def test_an_iteration_that_trains_nothing_moves_the_batches_on_and_not_the_versions() -> None:
    source, _ = _source(1)
    _start(source, 0)
    for batch, version in enumerate([0, 0, 0, 1]):
        groups, _ = source.take(G)
        assert (_version_of(groups), [group.group_id for group in groups]) == (version, _ids(batch))
        if batch in (1, 2):  # an update follows
            source.advance(Version(batch))  # type: ignore[arg-type]


def test_a_batch_whose_weights_are_gone_with_their_machine_is_sampled_by_the_present_ones(caplog: Any) -> None:
    source, _ = _source(2)
    versions: Any = [Version(number) for number in range(3)]
    source.start(versions[0])
    for batch, version in enumerate([0, 0, 2, 1, 2]):
        versions[0].is_gone = batch == 2  # of the batches 0 to 2, which it was to sample
        groups, _ = source.take(G)
        assert (_version_of(groups), [group.group_id for group in groups]) == (version, _ids(batch))
        source.advance(versions[min(batch + 1, 2)])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"older weights that were to sample {G} groups" in caplog.text


@pytest.mark.parametrize("lag", [1, 2])
def test_what_updates_on_other_groups_made_too_old_is_sampled_again(lag: int) -> None:
    source, _ = _source(lag)
    _start(source, 0)
    for step in range(6):
        groups, _ = source.take(G)
        assert [group.group_id for group in groups] == _ids(step)
        assert 2 * step - _version_of(groups) <= lag
        source.advance(Version(2 * step + 1))  # type: ignore[arg-type]
        source.overtake(Version(2 * step + 2))  # type: ignore[arg-type]


def test_a_state_holds_whole_what_the_present_weights_could_not_sample_again() -> None:
    source, runner = _source(2)
    _start(source, 0)
    for batch in range(3):
        source.take(G)
        source.advance(Version(batch + 1))  # type: ignore[arg-type]
    runner.given_up = {"10"}
    unfinished = source.unfinished
    state = json.loads(json.dumps(source.get_state()))
    assert [(s["version"], s["groups"] is None) for s in state["batches"]] == [(1, False), (2, False), (3, True)]
    # Taken twice, the state is the same, and nothing is played twice.
    assert json.loads(json.dumps(source.get_state())) == state
    resumed, again = _source(2, first=18)
    assert resumed.restore(state) == set(unfinished)
    _start(resumed, 3)
    assert resumed.unfinished == unfinished
    for batch in range(3, 7):
        (groups, metrics), (expected, _) = resumed.take(G), source.take(G)
        assert [group.group_id for group in groups] == [group.group_id for group in expected]
        assert _version_of(groups) == _version_of(expected) == batch - 2
        # What was played before the save is measured as if it had been played now.
        steps = [float(one[NUM_ENV_STEPS_SAMPLED_LIFETIME].peek()) for one in metrics if one]
        assert steps == ([len(groups) * 2.0] if batch < 5 else [])
        for one in (source, resumed):
            one.advance(Version(batch + 1))  # type: ignore[arg-type]
    assert [played for _, played in again.played] == [_ids(5), _ids(6)]


def test_a_smaller_lag_samples_again_what_would_be_older() -> None:
    source, _ = _source(3)
    _start(source, 0)
    for batch in range(4):
        source.take(G)
        source.advance(Version(batch + 1))  # type: ignore[arg-type]
    resumed, _ = _source(1, first=24)
    resumed.restore(source.get_state())
    _start(resumed, 4)
    for version in range(4, 10):
        groups, _ = resumed.take(G)
        assert [group.group_id for group in groups] == _ids(version)
        assert version - _version_of(groups) <= 1
        resumed.advance(Version(version + 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("line", ["{", "[]", '{"group_id": "1"}', 7])
def test_a_state_that_cannot_be_read_is_refused_in_a_sentence(line: Any) -> None:
    source, _ = _source(1)
    source.restore({"whole_batches": True, "batches": [{"version": 0, "group_ids": ["1"], "groups": [line]}]})
    with pytest.raises(CheckpointError, match=r"^restore: the checkpoint's trajectories cannot be read: "):
        _start(source, 1)


def test_a_batch_that_was_not_trained_comes_again_as_it_was() -> None:
    source, runner = _source(1)
    _start(source, 0)
    first, _ = source.take(G)
    source.put_back()
    assert source.unfinished == [*_ids(0), *_ids(1)]
    again, _ = source.take(G)
    assert [id(group) for group in first] == [id(group) for group in again]
    assert len(runner.played) == 1


def test_a_batch_of_which_nothing_could_be_played_ends_the_run_with_its_words() -> None:
    source, runner = _source(1)
    _start(source, 0)
    runner.given_up = {"1"}
    assert [group.group_id for group in source.take(G)[0]] == ["0", "2"]
    runner.given_up = set(_ids(1))
    source.advance(Version(1))  # type: ignore[arg-type]
    with pytest.raises(NoProgressError, match="no luck with 3; no luck with 4"):
        source.take(G)


def _config(path: str, *, num_env_runners: int = 0, lag: int = 1, **training: Any) -> GSPOConfig:
    made: GSPOConfig = (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", temperature=0.7, max_tokens_per_turn=6)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=8)
        .training(
            **{"group_size": 4, "groups_per_iteration": G, "num_minibatches": 2, **training},
            # By turns sampled: what a resumed run counts wrongly, it trains at another rate.
            lr=[[0, 1e-3], [400, 1e-5]],
            max_staleness=lag,
            schedule="fixed_lag",
            rollout_correction="truncate",
            rollout_correction_level="sequence_mean",
        )
        .debugging(seed=1)
    )
    return made


def _weights(algo: Any) -> dict[str, np.ndarray]:
    state = algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]
    return {name: np.array(array) for name, array in state.items()}


def _learned(result: Any) -> tuple[float, ...]:
    measured = result["learners"][DEFAULT_MODULE_ID]
    sampled = result["env_runners"]
    return (
        *(measured[name] for name in ("loss", "grad_norm", "staleness", "default_optimizer_learning_rate")),
        *(sampled[name] for name in (NUM_ENV_STEPS_SAMPLED_LIFETIME, names.NUM_TOKENS_SAMPLED)),
    )


@functools.cache
def _undisturbed(path: str, lag: int) -> tuple[list[tuple[float, ...]], dict[str, np.ndarray]]:
    algo = _config(path, lag=lag).build_algo()
    try:
        return [_learned(algo.train()) for _ in range(ITERATIONS)], _weights(algo)
    finally:
        algo.stop()


def _assert_equal(found: tuple[list[Any], dict[str, np.ndarray]], path: str, lag: int) -> None:
    results, weights = _undisturbed(path, lag)
    assert [result[2] for result in results] == [float(min(batch, lag)) for batch in range(ITERATIONS)]
    assert found[0] == results
    assert found[1].keys() == weights.keys()
    assert all(np.array_equal(found[1][name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("num_env_runners", "lag"),
    [(0, 1), *[pytest.param(*where, marks=pytest.mark.slow) for where in ((0, 2), (1, 1), (2, 2))]],
)
def test_a_run_that_is_resumed_or_whose_runners_die_is_the_same_to_the_bit(
    num_env_runners: int, lag: int, tiny_dense: str, tmp_path: pathlib.Path, ray_local: None
) -> None:
    algo = _config(tiny_dense, num_env_runners=num_env_runners, lag=lag).build_algo()
    try:
        results = [_learned(algo.train()) for _ in range(2)]
        if num_env_runners:
            fleet = Fleet.of(algo.env_runner_group)
            for worker in fleet._worker_manager.actors():
                os.kill(int(fleet._entry(worker)["Pid"]), signal.SIGKILL)
        results.append(_learned(algo.train()))
        algo.save_to_path(tmp_path / "saved")
        state = algo.get_state(components=[])
        assert len(state[UNFINISHED_GROUPS]) == (lag + 1) * G
        # In place, after more was trained; and in a new algorithm below.
        algo.train()
        algo.restore_from_path(tmp_path / "saved")
        assert _learned(algo.train()) == _undisturbed(tiny_dense, lag)[0][3]
    finally:
        algo.stop()
    resumed = GSPO.from_checkpoint(tmp_path / "saved")
    try:
        assert resumed.get_state(components=[])[UNFINISHED_GROUPS] == state[UNFINISHED_GROUPS]
        results += [_learned(resumed.train()) for _ in range(ITERATIONS - 3)]
        _assert_equal((results, _weights(resumed)), tiny_dense, lag)
    finally:
        resumed.stop()


def test_a_batch_whose_update_failed_is_trained_by_the_resumed_run(
    tiny_dense: str, tmp_path: pathlib.Path, ray_local: None
) -> None:
    algo = _config(tiny_dense).build_algo()
    try:
        results = [_learned(algo.train()) for _ in range(2)]
        update, algo.failed_updates = algo.learner_group.update, tmp_path

        def lost(**_: Any) -> Any:
            raise LearnersLostError("they are gone.")

        algo.learner_group.update = lost
        with pytest.raises(LearnersLostError, match="they are gone"):
            algo.train()
        algo.learner_group.update = update
        algo.save_to_path(tmp_path / "saved")
    finally:
        algo.stop()
    resumed = GSPO.from_checkpoint(tmp_path / "saved")
    try:
        # What the failed iteration measured is in the checkpoint's counters already, so they are not compared.
        again = [_learned(resumed.train())[:3] for _ in range(ITERATIONS - 2)]
        assert again[0] == _undisturbed(tiny_dense, 1)[0][2][:3]
        assert len(results) == 2
    finally:
        resumed.stop()


def test_a_schedule_that_could_not_be_kept_is_refused(tiny_dense: str) -> None:
    with pytest.raises(SettingError, match=r"schedule='fixed_lag' with max_staleness=0: .*Set max_staleness=1"):
        _config(tiny_dense, lag=0).validate()
    with pytest.raises(SettingError, match=r"schedule='fixed_lag' with zero_variance_groups='resample': .*'drop'"):
        _config(tiny_dense, zero_variance_groups="resample").validate()
    with pytest.raises(SettingError, match=r"weight_update is 'token', .* training\.schedule='fixed_lag': no turn"):
        _config(tiny_dense).generation(weight_update="token").validate()
    with pytest.raises(SettingError, match=r"schedule is 'fixed-lag'; .*fixed_lag"):
        _config(tiny_dense).training(schedule="fixed-lag").validate()
