"""Sampling while learning: the bound on staleness, what overlaps with it, and what may fail meanwhile."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import threading
import time
from typing import Any

import numpy as np
import pytest
import ray
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import metrics as names
from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.algorithms.policy_gradient.algorithm import UNFINISHED_GROUPS
from gspo_rllib.driver.fixed_lag import FixedLag
from gspo_rllib.driver.stream import GroupStream
from gspo_rllib.engines import registry
from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.errors import NoProgressError
from gspo_rllib.types import group_episodes, turns
from tests.episodes import make_episode
from tests.toy_envs.async_envs import HalfCoinEnv, SlowCoinEnv
from tests.toy_envs.coin_env import CoinEnv
from tests.toy_envs.faulty_envs import FailingEnv

G = 4


class ScriptedRunner:
    """Plays in the driver's own time: one group ends per call, the one that the script picks.

    The stream is what is tested; in which order groups end and how old they are must be the test's to say.

    Args:
        pick: From the groups being played, oldest first, the one that ends next; None for none of them.
    """

    def __init__(self, pick: Any) -> None:
        self.pick = pick
        self.version = 0
        self.playing: dict[str, int] = {}
        self.played: list[str] = []
        self.given_up: set[str] = set()

    def sample_in_background(self, group_ids: list[str]) -> None:
        self.played += group_ids
        self.playing |= dict.fromkeys(group_ids, self.version)

    def take_finished(self, timeout_s: float) -> SampleReport:
        ended = self.pick(list(self.playing)) if self.playing else None
        episodes = []
        if ended is not None:
            version = self.playing.pop(ended)
            if ended not in self.given_up:
                episodes = [make_episode(ended, i, [(3, 2)], float(i), version=version) for i in range(2)]
        return SampleReport(
            groups=group_episodes(episodes),
            given_up=[ended] if ended in self.given_up else [],
            errors=[f"no luck with {ended}"] if ended in self.given_up else [],
            metrics={},
            weights_version=self.version,
            num_in_flight=len(self.playing),
        )

    def stop_sampling(self) -> list[str]:
        unfinished = list(self.playing)
        self.playing.clear()
        return unfinished


@dataclasses.dataclass
class Version:
    """Stands for weights of which only the version counts."""

    version: int

    def push(self, runners: Any, *, force: bool) -> list[Any]:
        runners.local_env_runner.version = self.version
        return []

    def offer(self, runners: Any, workers: Any) -> None:
        for _ in workers:
            runners.local_env_runner.version = self.version


class OneRunner:
    def __init__(self, runner: ScriptedRunner) -> None:
        self.local_env_runner = runner

    def num_remote_env_runners(self) -> int:
        return 0

    def num_healthy_remote_workers(self) -> int:
        return 0

    def foreach_env_runner(self, function: Any, local_env_runner: bool = True) -> list[Any]:
        return [function(self.local_env_runner)]


def _stream(pick, max_staleness):
    runner, numbers = ScriptedRunner(pick), itertools.count()
    stream = GroupStream(
        OneRunner(runner),
        groups_per_iteration=G,
        max_staleness=max_staleness,
        draw=lambda count: [str(next(numbers)) for _ in range(count)],
    )
    stream.start(Version(0))
    return stream, runner


def _ages(groups, version):
    return [version - turn.policy_version for group in groups for e in group.episodes for turn in turns(e)]


RANDOM = random.Random(0)
PICKS = {
    "the oldest first": lambda ids: ids[0],
    "the newest first": lambda ids: ids[-1],
    "any": RANDOM.choice,
    "now and then": lambda ids: RANDOM.choice([None, None, *ids]),
}


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 3])
@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS)
def test_no_group_is_ever_older_than_the_bound_nor_lost(pick, max_staleness):
    stream, runner = _stream(pick, max_staleness)
    taken, oldest = [], 0
    for version in range(12):
        groups, _ = stream.take(G)
        assert len(groups) == G
        oldest = max(oldest, *_ages(groups, version))
        assert oldest <= max_staleness
        taken += [group.group_id for group in groups]
        assert len(runner.played) <= (max_staleness + 1 + version) * G
        assert stream.measure()[names.NUM_GROUPS_STALE_DROPPED] == 0
        stream.advance(Version(version + 1))
    # What was drawn was trained once, or is still to come; and the bound is made use of.
    assert sorted([*taken, *stream.unfinished], key=int) == sorted(runner.played, key=int)
    assert len(set(runner.played)) == len(runner.played)
    assert oldest == max_staleness


def test_a_straggler_is_waited_for_when_it_would_be_too_old_later():
    calls = itertools.count()

    def pick(ids):
        # Group 0 takes as long as 40 others.
        return "0" if "0" in ids and next(calls) >= 40 else next((i for i in ids if i != "0"), None)

    stream, _ = _stream(pick, max_staleness=2)
    came = []
    for version in range(4):
        groups, _ = stream.take(G)
        came += [version for group in groups if group.group_id == "0"]
        stream.advance(Version(version + 1))
    assert came == [2]
    assert stream.measure()[names.NUM_GROUPS_STALE_DROPPED] == 0


def test_a_group_older_than_the_bound_is_dropped_counted_and_replaced():
    stream, runner = _stream(lambda ids: ids[0], max_staleness=1)
    stream.take(G)
    dealt = len(runner.played)
    # As if updates had happened without the groups that were dealt for them.
    stream.advance(Version(3))
    groups, _ = stream.take(G)
    assert len(groups) == G and max(_ages(groups, 3)) <= 1
    assert stream.measure()[names.NUM_GROUPS_STALE_DROPPED] == dealt - G
    assert not {group.group_id for group in groups} & set(runner.played[:dealt])


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS)
def test_updates_on_other_groups_lose_none_and_none_is_too_old(pick, max_staleness):
    stream, _ = _stream(pick, max_staleness)
    taken = []
    for version in range(0, 12, 2):
        groups, _ = stream.take(G)
        assert len(groups) == G and max(_ages(groups, version)) <= max_staleness
        taken += [group.group_id for group in groups]
        stream.advance(Version(version + 1))
        stream.overtake(Version(version + 2))
    assert stream.measure()[names.NUM_GROUPS_STALE_DROPPED] == 0
    assert sorted([*taken, *stream.unfinished], key=int) == [str(n) for n in range(len(taken) + len(stream.unfinished))]


def test_a_state_holds_whole_what_is_finished_and_it_is_not_played_again():
    stream, _ = _stream(lambda ids: ids[-1], max_staleness=2)
    trained = [group.group_id for group in stream.take(G)[0]]
    for _ in range(3):  # as a take that was interrupted leaves them
        for worker, report in stream._collect():
            stream._keep(worker, report)
    unfinished = stream.unfinished
    state = json.loads(json.dumps(stream.get_state()))
    finished = {group_id for saved in state["batches"] for group_id in saved["group_ids"]}
    assert len(finished) == 3
    resumed, runner = _stream(lambda ids: ids[0], max_staleness=2)
    resumed.stop()
    known = resumed.restore(state)
    assert known == finished
    names_left = iter([group_id for group_id in unfinished if group_id not in known] + [str(n) for n in range(12, 99)])
    resumed._draw = lambda count: [next(names_left) for _ in range(count)]
    resumed.start(Version(1))
    for version in range(1, 4):
        groups, _ = resumed.take(G)
        assert max(_ages(groups, version)) <= 2
        trained += [group.group_id for group in groups]
        resumed.advance(Version(version + 1))
    assert finished < set(trained)
    assert not finished & set(runner.played)
    assert len(set(trained)) == len(trained)
    assert set(unfinished) <= {*trained, *resumed.unfinished}
    # A schedule by number has no use for it: the names are played again.
    assert FixedLag(OneRunner(runner), groups_per_iteration=G, lag=1, draw=lambda count: []).restore(state) == set()


def test_groups_given_up_leave_an_iteration_with_fewer_or_none():
    stream, runner = _stream(lambda ids: ids[0], max_staleness=1)
    runner.given_up = {"1", "2"}
    groups, _ = stream.take(G)
    assert [group.group_id for group in groups] == ["0", "3"]
    stream.advance(Version(1))
    runner.given_up = set(map(str, range(100)))
    with pytest.raises(NoProgressError, match="no luck with 4; no luck with 5"):
        stream.take(G)


def test_a_group_that_is_given_up_takes_no_place_of_one_that_is_due():
    stream, runner = _stream(lambda ids: ids[-1], max_staleness=1)
    trained, runner.given_up = [], {"8", "9", "10", "11"}
    for version in range(4):
        trained += [group.group_id for group in stream.take(G)[0]]
        stream.advance(Version(version + 1))
        assert stream.measure()[names.NUM_GROUPS_STALE_DROPPED] == 0
    assert {str(number) for number in range(8)} <= set(trained)


def _config(path, *, max_staleness=1, num_env_runners=0, num_learners=0, env=CoinEnv, env_config=None, **training):
    config = (
        GSPOConfig()
        .environment(env, env_config=env_config or {})
        .rl_module(model_config={"path": str(path)})
        .generation(engine="transformers", temperature=0.7, max_tokens_per_turn=6)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=8)
        .learners(num_learners=num_learners)
        .training(
            **{"group_size": 4, "groups_per_iteration": G, "num_minibatches": 2, "lr": 1e-3, **training},
            max_staleness=max_staleness,
        )
        .debugging(seed=1)
    )
    if max_staleness:
        config.training(rollout_correction="truncate", rollout_correction_level="sequence_mean")
    return config


def _parameters(algo):
    state = algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]
    return {name: np.array(array) for name, array in state.items()}


def _equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _learned(result):
    return result["learners"][DEFAULT_MODULE_ID]


def _spy(algo):
    """Names of the groups that every iteration takes from now on."""
    trained: list[list[str]] = []
    update = algo.learner_group.update

    def watched(**kwargs):
        trained.append([group.group_id for group in group_episodes(kwargs["training_data"].episodes)])
        return update(**kwargs)

    algo.learner_group.update = watched
    return trained


def _assert_nothing_lost(algo, trained):
    """Every group drawn was trained once or is still to come."""
    state = algo.get_state(components=[])
    known = [*itertools.chain(*trained), *state[UNFINISHED_GROUPS]]
    assert sorted(known, key=int) == [str(i) for i in range(state["next_group"])]


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_bound_of_zero_gives_the_synchronous_numbers_bit_for_bit(num_env_runners, tiny_dense, ray_local):
    runs = {}
    for streamed in (False, True):
        algo = _config(tiny_dense, max_staleness=0, num_env_runners=num_env_runners).build_algo()
        try:
            if streamed:
                algo._source = GroupStream(
                    algo.env_runner_group, groups_per_iteration=G, max_staleness=0, draw=algo._draw_groups
                )
                algo._source.start(algo._weights)
            results = [algo.train() for _ in range(3)]
            runs[streamed] = [_learned(r)["loss"] for r in results], _parameters(algo)
            assert [_learned(r)["staleness"] for r in results] == [0.0] * 3
        finally:
            algo.stop()
    assert runs[True][0] == runs[False][0]
    assert _equal(runs[True][1], runs[False][1])


@pytest.mark.parametrize(
    ("num_env_runners", "num_learners"),
    [(0, 0), pytest.param(2, 0, marks=pytest.mark.slow), pytest.param(1, 2, marks=pytest.mark.slow)],
    ids=["local", "two runners", "two learners"],
)
def test_sampling_overlaps_learning_within_the_bound(num_env_runners, num_learners, tiny_dense, ray_local):
    algo = _config(tiny_dense, num_env_runners=num_env_runners, num_learners=num_learners).build_algo()
    trained = _spy(algo)
    try:
        results = [algo.train() for _ in range(4)]
        _assert_nothing_lost(algo, trained)
    finally:
        algo.stop()
    # Twice an iteration's groups were dealt with the first weights.
    assert _learned(results[0])["staleness"] == 0.0
    assert all(0.0 <= _learned(result)["staleness"] <= 1.0 for result in results)
    assert sum(_learned(result)["staleness"] for result in results) > 0.0
    for result in results:
        assert _learned(result)["num_trajectories"] == 4 * G
        assert result[names.GROUP_STREAM][names.NUM_GROUPS_STALE_DROPPED] == 0
        assert 0 <= result[names.GROUP_STREAM][names.NUM_GROUPS_IN_FLIGHT] <= G
        assert result[names.GROUP_STREAM][names.GROUP_WAIT_S] >= 0.0
        # The engine's own log-probs are not below the ratio, or it would not start at 1.
        assert _learned(result)["correction_weight_mean"] > 0.0


def test_a_run_without_staleness_reports_no_stream(tiny_dense, ray_local):
    algo = _config(tiny_dense, max_staleness=0).build_algo()
    try:
        assert names.GROUP_STREAM not in algo.train()
    finally:
        algo.stop()


@pytest.mark.slow
def test_a_runner_that_dies_while_playing_loses_no_group(tiny_dense, ray_local):
    algo = _config(tiny_dense, num_env_runners=2, env=SlowCoinEnv).build_algo()
    trained = _spy(algo)
    try:
        algo.train()
        assert algo._source.unfinished
        for victim in algo.env_runner_group._worker_manager.actors().values():
            ray.kill(victim, no_restart=False)
            result = algo.train()
            assert _learned(result)["num_trajectories"] == 4 * G
            assert _learned(result)["staleness"] <= 1.0
        # The others go on meanwhile: nobody waits for one that is being built anew.
        deadline = time.monotonic() + 60.0
        while algo.env_runner_group.num_healthy_remote_workers() < 2 and time.monotonic() < deadline:
            algo.train()
        assert algo.env_runner_group.num_healthy_remote_workers() == 2
        _assert_nothing_lost(algo, trained)
    finally:
        algo.stop()


@pytest.mark.slow
def test_a_checkpoint_taken_while_playing_loses_no_group(tiny_dense, tmp_path, ray_local):
    algo = _config(tiny_dense, env=SlowCoinEnv).build_algo()
    trained = _spy(algo)
    try:
        algo.train()
        algo.train()
        saved, before = algo.save_to_path(str(tmp_path / "checkpoint")), _parameters(algo)
        unfinished, at_save = algo.get_state(components=[])[UNFINISHED_GROUPS], len(trained)
        assert len(unfinished) == 2 * G
        algo.train()
        # Rolling back in place: the groups that were being played belong to a future that is gone.
        algo.restore_from_path(saved)
        assert _equal(_parameters(algo), before)
        assert algo.get_state(components=[])[UNFINISHED_GROUPS] == unfinished
        del trained[at_save:]
        algo.train()
        algo.train()
        assert set(itertools.chain(*trained[at_save:])) == set(unfinished)
        _assert_nothing_lost(algo, trained)
    finally:
        algo.stop()
    resumed = GSPO.from_checkpoint(saved)
    again = _spy(resumed)
    try:
        assert _equal(_parameters(resumed), before)
        for _ in range(2):
            assert _learned(resumed.train())["staleness"] <= 1.0
        assert set(itertools.chain(*again)) == set(unfinished)
    finally:
        resumed.stop()


def test_evaluation_in_the_same_process_pauses_what_is_played(tiny_dense, ray_local):
    config = _config(tiny_dense, env=SlowCoinEnv, env_config={"seconds": 0.05}).evaluation(
        evaluation_interval=1, evaluation_duration=6, evaluation_config=GSPOConfig.overrides(explore=False)
    )
    algo = config.build_algo()
    trained = _spy(algo)
    try:
        for _ in range(3):
            result = algo.train()
            assert result["evaluation"]["env_runners"]["num_episodes"] == 6
            assert _learned(result)["staleness"] <= 1.0
            assert algo.env_runner._evaluator.get_weights_version() == algo._weights.version
        assert algo.env_runner._engine is algo.env_runner._evaluator._engine
        again = [algo.evaluate()["env_runners"]["episode_return_mean"] for _ in range(2)]
        assert again[0] == again[1]
        _assert_nothing_lost(algo, trained)
    finally:
        algo.stop()
    assert not registry._held


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_evaluation_without_runners_of_its_own_loses_no_group(num_env_runners, tiny_dense, ray_local):
    config = _config(tiny_dense, num_env_runners=num_env_runners, env=SlowCoinEnv, env_config={"seconds": 0.05})
    algo = config.build_algo()
    trained = _spy(algo)
    try:
        algo.train()
        assert algo.evaluate()["env_runners"]["num_episodes"] > 0
        algo.train()
        _assert_nothing_lost(algo, trained)
    finally:
        algo.stop()


def test_groups_without_variance_are_replaced_by_others(tiny_dense, ray_local):
    algo = _config(tiny_dense, env=HalfCoinEnv, zero_variance_groups="resample").build_algo()
    try:
        results = [algo.train() for _ in range(4)]
    finally:
        algo.stop()
    for result in results:
        assert _learned(result)["num_trajectories"] == 4 * G
        assert _learned(result)["staleness"] <= 1.0
    selection = [result[names.GROUP_SELECTION] for result in results]
    assert sum(counts[names.NUM_GROUPS_DROPPED] for counts in selection) > 0
    for counts in selection:
        assert counts[names.NUM_GROUPS_RESAMPLED] >= counts[names.NUM_GROUPS_DROPPED]


def test_an_environment_that_always_fails_ends_the_run_with_its_own_words(tiny_dense, ray_local):
    algo = _config(tiny_dense, env=FailingEnv, env_config={"fault": "raise"}).build_algo()
    try:
        with pytest.raises(NoProgressError, match="fault raise on task"):
            algo.train()
    finally:
        algo.stop()


def test_an_interrupted_run_ends_with_every_thread_it_started(tiny_dense, ray_local, monkeypatch):
    before = set(threading.enumerate())
    algo = _config(tiny_dense, env=SlowCoinEnv).build_algo()
    trained = _spy(algo)
    try:
        algo.train()

        def interrupted(timeout_s):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(algo.env_runner, "take_finished", interrupted)
            with pytest.raises(KeyboardInterrupt):
                algo.train()
        algo.train()
        _assert_nothing_lost(algo, trained)
    finally:
        algo.stop()
    deadline = time.monotonic() + 60.0
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [thread.name for thread in left if "play" in thread.name.lower()]
    assert not registry._held
