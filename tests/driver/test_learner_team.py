"""Learners that are killed, stopped, hang or raise: what was trained is what would have been, to the bit."""

from __future__ import annotations

import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.driver import learner_watch
from gspo_rllib.driver.learner_team import LearnerTeam
from gspo_rllib.driver.learner_watch import LearnerWatch
from gspo_rllib.driver.processes import actor_entry, stands_still_anywhere
from gspo_rllib.errors import LearnersLostError, SettingError
from gspo_rllib.metrics import NUM_LEARNER_REBUILDS, RECOVERY
from tests.toy_envs.coin_env import CoinEnv


class LightTeam(LearnerTeam):
    """Learners that hold one array, in processes that import neither torch nor RLlib."""

    def _make_learners(self) -> None:
        class Light:
            """By value, so that its process needs no file of the tests."""

            def __init__(self) -> None:
                self.weights, self.seen = np.zeros(3), 0

            def apply(self, func: Callable[..., Any], **kwargs: Any) -> Any:
                return func(self, **kwargs)

            def stream(self, function: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
                yield from function(self)

            def kept_state(self) -> Iterator[Any]:
                yield (self.seen,)
                yield self.weights

            def set_kept_state(self, seen: int, arrays: Iterator[np.ndarray]) -> None:
                self.weights, self.seen = next(arrays).copy(), seen

            def update(self, batch: float, fault: str | None = None, error: Exception | None = None) -> int:
                import os
                import pathlib
                import signal
                import time

                # In place, as optimisers do: a commit must not be what is trained on.
                self.weights += batch
                if fault is not None and pathlib.Path(fault).exists():
                    kind = pathlib.Path(fault).read_text()
                    if "always" not in kind:
                        pathlib.Path(fault).unlink()
                    if error is not None:
                        raise error
                    if "hang" in kind:
                        time.sleep(60)
                    os.kill(os.getpid(), signal.SIGKILL if "die" in kind else signal.SIGSTOP)
                    time.sleep(1)
                self.weights *= 1.5
                self.seen += 1
                return self.seen

        self.config = self._built_with["config"]
        self._backend_executor = None
        self._is_shut_down = True
        self._workers = [ray.remote(num_cpus=0)(Light).remote() for _ in range(self.config.num_learners)]


@pytest.fixture
def make_team(ray_local: None) -> Iterator[Callable[..., LightTeam]]:
    made: list[LightTeam] = []

    def make(count: int = 2, *, every: int | None = 3, sharding: str = "none") -> LightTeam:
        config = SimpleNamespace(
            num_learners=count, learner_commit_every=every, env_runner_health_probe_timeout_s=1.0, sharding=sharding,
            num_cpus_per_learner=0, num_gpus_per_learner=0, custom_resources_per_learner=None,
        )  # fmt: skip
        made.append(LightTeam(config=config))
        return made[-1]

    yield make
    for team in made:
        team._end()


def train(
    team: LightTeam, numbers: range, *, fault: Any = None, on: int = 0, error: Exception | None = None
) -> list[int]:
    """Updates on batches of these numbers as RLlib calls for them; one rank has a fault at the second."""
    seen = []
    for place, number in enumerate(numbers):
        each: list[dict[str, Any]] = [{"batch": float(number)} for _ in team._workers]
        if place == 1 and fault is not None:
            each[on] |= {"fault": str(fault), "error": error}
        answers = [result.get() for result in team._worker_manager.foreach_actor("update", kwargs=each)]
        assert len(set(answers)) == 1
        seen.append(answers[0])
    return seen


def weights(team: LightTeam) -> list[float]:
    states = [result.get() for result in team.foreach_learner(lambda learner: learner.weights.copy())]
    assert all(np.array_equal(state, states[0]) for state in states)
    return [float(value) for value in states[0]]


def expected(numbers: range) -> list[float]:
    held = np.zeros(3)
    for number in numbers:
        held = (held + number) * 1.5
    return [float(value) for value in held]


def test_learners_that_share_a_model_are_asked_together_and_one_that_raises_keeps_nobody_waiting(
    make_team: Callable[..., LightTeam], monkeypatch: pytest.MonkeyPatch
) -> None:
    team = make_team(2, sharding="fsdp2")
    team.commit()

    def count(learner: Any) -> int:
        learner.asked = getattr(learner, "asked", 0) + 1
        return int(learner.asked)

    assert [result.get() for result in team.foreach_learner(count, remote_actor_ids=[0])] == [1]
    assert [ray.get(values) for values in team.stream(lambda learner: (count(learner) for _ in range(1)))] == [[2], [2]]
    assert [result.get() for result in team.foreach_learner(lambda learner: learner.asked)] == [2, 2]
    monkeypatch.setattr(learner_watch, "OTHERS_WAIT_S", 0.5)

    def fail_alone(learner: Any) -> str:
        import time

        number = getattr(learner, "number", None)
        if number == 0:
            raise ValueError("mine alone")
        time.sleep(60 if number else 0)
        return "asked again"

    team.ask(lambda learner, number: setattr(learner, "number", number), [{"number": 0}, {"number": 1}], [0, 1])
    # They are rebuilt, without their numbers.
    assert [result.get() for result in team.foreach_learner(fail_alone)] == ["asked again"] * 2
    assert team.num_rebuilds == 1


@pytest.mark.parametrize("kind", ["die", pytest.param("stop", marks=pytest.mark.slow), "raise"])
def test_an_update_in_which_a_learner_is_lost_is_made_once_more_and_nothing_differs(
    kind: str, make_team: Callable[..., LightTeam], tmp_path: pathlib.Path
) -> None:
    team = make_team(2 if kind == "die" else 1)
    assert train(team, range(5)) == [1, 2, 3, 4, 5]
    (tmp_path / "fault").write_text(kind)
    error = MemoryError("no room") if kind == "raise" else None
    assert train(team, range(5, 9), fault=tmp_path / "fault", on=-1, error=error) == [6, 7, 8, 9]
    assert weights(team) == expected(range(9))
    # Committed after the third and the sixth: the fault was in the seventh.
    assert (team.num_rebuilds, team.num_updates_repeated) == (1, 0)


@pytest.mark.slow
def test_updates_since_the_commit_are_repeated_each_time_they_are_lost(make_team: Callable[..., LightTeam]) -> None:
    team = make_team(1, every=10)
    train(team, range(4))
    # The second time from the same commit, which nothing may have been trained on meanwhile.
    for lost in (1, 2):
        os.kill(int(actor_entry(team._workers[0])["Pid"]), signal.SIGKILL)
        assert weights(team) == expected(range(4))
        assert (team.num_rebuilds, team.num_updates_repeated) == (lost, 4 * lost)


def test_the_second_failure_at_a_step_ends_it_and_what_came_before_is_there(
    make_team: Callable[..., LightTeam], tmp_path: pathlib.Path
) -> None:
    team = make_team(1)
    team.saved(pathlib.Path("/runs/iteration_000002"))
    (tmp_path / "fault").write_text("always")
    with pytest.raises(
        LearnersLostError,
        match=r"^learner 0 raised ValueError: no gradient \(<?.*:\d+\)\. It is the second time at the same step; the "
        r"first: learner 0 raised ValueError.*The last checkpoint is /runs/iteration_000002\.$",
    ):
        train(team, range(2), fault=tmp_path / "fault", error=ValueError("no gradient"))
    assert weights(team) == expected(range(1))
    assert train(team, range(1, 3)) == [2, 3]
    assert weights(team) == expected(range(3))


def test_an_update_that_hangs_is_ended_at_its_deadline(
    make_team: Callable[..., LightTeam], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_watch, "LEAST_DEADLINE_S", 1.0)
    team = make_team(1)
    (tmp_path / "fault").write_text("hang")
    begun = time.monotonic()
    assert train(team, range(3), fault=tmp_path / "fault") == [1, 2, 3]
    assert time.monotonic() - begun < 30
    assert weights(team) == expected(range(3))
    assert team.num_rebuilds == 1


def test_the_deadline_is_ten_medians_and_a_minute_at_least() -> None:
    watch = LearnerWatch(1.0)
    assert watch.deadline_s == float("inf")
    watch._durations.extend([1.0, 2.0, 90.0])
    assert watch.deadline_s == 60.0
    watch._durations.extend([80.0, 70.0])
    assert watch.deadline_s == 700.0


def test_a_refusal_is_raised_as_it_is_and_its_update_undone(
    make_team: Callable[..., LightTeam], tmp_path: pathlib.Path
) -> None:
    team = make_team(1)
    (tmp_path / "fault").write_text("once")
    with pytest.raises(SettingError, match=r"^no such rate$"):
        train(team, range(2), fault=tmp_path / "fault", error=SettingError("no such rate"))
    assert weights(team) == expected(range(1))


def test_what_a_call_raises_that_is_no_update_costs_no_learner_its_life(make_team: Callable[..., LightTeam]) -> None:
    team = make_team(1)
    train(team, range(2))
    (result,) = team.foreach_learner(lambda learner: learner.no_such_thing)
    assert not result.ok
    assert isinstance(result.get(), AttributeError)
    with pytest.raises(ZeroDivisionError):
        team.keep(lambda learner: 1 / 0)
    assert weights(team) == expected(range(2))
    assert team.num_rebuilds == 0


def test_without_commits_what_was_lost_is_lost_and_the_sentence_says_what_there_is(
    make_team: Callable[..., LightTeam],
) -> None:
    team = make_team(1, every=None)
    train(team, range(2))
    os.kill(int(actor_entry(team._workers[0])["Pid"]), signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(
            LearnersLostError,
            match=r"^learner 0 died \(ActorDiedError\)\. Nothing was kept that they could be rebuilt from\. There is "
            r"no checkpoint\.$",
        ):
            weights(team)
    team.forget()  # as before a restore
    assert weights(team) == [0.0, 0.0, 0.0]
    begun = time.monotonic()
    os.kill(int(actor_entry(team._workers[0])["Pid"]), signal.SIGSTOP)
    while not stands_still_anywhere(team._workers[0]):  # it is stopped when the kernel comes to it
        assert time.monotonic() - begun < 10
    team.shutdown()
    assert time.monotonic() - begun < 10


def _config(path: str, num_learners: int, **training: Any) -> GSPOConfig:
    made: GSPOConfig = (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", temperature=0.7, max_tokens_per_turn=6)
        .env_runners(num_envs_per_env_runner=8)
        .learners(num_learners=num_learners)
        .fault_tolerance(env_runner_health_probe_timeout_s=2.0)
        .training(**{"group_size": 4, "groups_per_iteration": 4, "num_minibatches": 2, "lr": 1e-3, **training})
        .debugging(seed=1)
    )
    return made


def _arrays(tree: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    for key, value in items:
        yield from _arrays(value, f"{name}/{key}")
    if hasattr(tree, "shape") or isinstance(tree, (float, int)):
        yield name, np.asarray(tree)


def _held(algo: Any) -> dict[str, np.ndarray]:
    """Weights, optimiser and counters."""
    return dict(_arrays(algo.learner_group.get_state(not_components="learner/metrics_logger")["learner"]))


def _differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    assert one.keys() == other.keys()
    assert len(one) > 20
    return [name for name in one if not np.array_equal(one[name], other[name], equal_nan=True)]


def _in_next_loss(algo: Any, fault: Callable[[], None], rank: int) -> None:
    """Has one learner meet a fault in the second micro-batch that it computes the loss of from now on."""

    def arm(learner: Any) -> None:
        compute, calls = learner.compute_loss_for_module, [0]

        def fails(**kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == 2:
                fault()
            return compute(**kwargs)

        learner.compute_loss_for_module = fails

    algo.learner_group.foreach_learner(arm, remote_actor_ids=[rank])


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stand_still() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _no_memory() -> None:
    raise MemoryError("CUDA out of memory")


@pytest.mark.slow
@pytest.mark.parametrize("num_learners", [1, 2])
def test_a_run_whose_learners_are_killed_stopped_or_out_of_memory_trains_as_if_nothing_had_been(
    num_learners: int, tiny_dense: str, tmp_path: pathlib.Path, ray_local: None
) -> None:
    faults = {1: _die, 2: _stand_still, 4: _no_memory}
    disturbed = _config(tiny_dense, num_learners, learner_commit_every=3).build_algo()
    try:
        for iteration in range(6):
            if iteration in faults:
                _in_next_loss(disturbed, faults[iteration], rank=num_learners - 1)
            if iteration == 5:
                os.kill(int(actor_entry(disturbed.learner_group._workers[0])["Pid"]), signal.SIGKILL)
            result = disturbed.train()
        assert result[RECOVERY][NUM_LEARNER_REBUILDS] == 4
        found = _held(disturbed)
        # Mid-save, and between a save and what is saved.
        _die_while_saved(disturbed)
        disturbed.save_to_path(tmp_path / "saved")
        assert disturbed.learner_group.num_rebuilds == 5
        lifetime = result["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"]
    finally:
        disturbed.stop()
    undisturbed = _config(tiny_dense, num_learners if num_learners > 1 else 0).build_algo()
    try:
        for _ in range(6):
            result = undisturbed.train()
        assert _differing(_held(undisturbed), found) == []
        assert result["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"] == lifetime
        before = undisturbed.train()["learners"][DEFAULT_MODULE_ID]["loss"]
        undisturbed.restore_from_path(tmp_path / "saved")
        assert _differing(_held(undisturbed), found) == []
        assert undisturbed.train()["learners"][DEFAULT_MODULE_ID]["loss"] == before
    finally:
        undisturbed.stop()


def _die_while_saved(algo: Any) -> None:
    def arm(learner: Any) -> None:
        learner.get_checkpointable_components = _die

    algo.learner_group.foreach_learner(arm, remote_actor_ids=[0])


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_of_an_adapter_the_model_below_is_not_kept_and_nothing_differs_after_a_loss(
    sharding: str, tiny_dense: str, ray_local: None
) -> None:
    held = []
    for is_disturbed in (True, False):
        config = _config(tiny_dense, 2, learner_commit_every=2).learners(sharding=sharding)
        algo = config.rl_module(model_config={"path": tiny_dense, "lora": {"rank": 4, "alpha": 8}}).build_algo()
        try:
            for iteration in range(4):
                if is_disturbed and iteration == 3:
                    os.kill(int(actor_entry(algo.learner_group._workers[1])["Pid"]), signal.SIGKILL)
                algo.train()
            assert algo.learner_group.num_rebuilds == is_disturbed
            held.append(_held(algo))
            kept = sum(ray.get(array).nbytes for of in algo.learner_group._commit for array in of[1:])
            assert 0 < kept < sum(array.nbytes for name, array in held[-1].items() if "/rl_module/" in name) / 2
        finally:
            algo.stop()
    assert _differing(*held) == []


@pytest.mark.slow
def test_without_commits_learners_are_rebuilt_from_the_last_checkpoint(
    tiny_dense: str, tmp_path: pathlib.Path, ray_local: None
) -> None:
    algo = _config(tiny_dense, 1, learner_commit_every=None).build_algo()
    try:
        algo.train()
        algo.save_to_path(tmp_path / "one")
        for _ in range(2):
            algo.train()
        os.kill(int(actor_entry(algo.learner_group._workers[0])["Pid"]), signal.SIGKILL)
        algo.train()
        assert (algo.learner_group.num_rebuilds, algo.learner_group.num_updates_repeated) == (1, 2)
        found = _held(algo)
        (tmp_path / "one" / "state.json").write_text("{}")
        os.kill(int(actor_entry(algo.learner_group._workers[0])["Pid"]), signal.SIGSTOP)
        with pytest.raises(LearnersLostError, match=r"could not be rebuilt.*The last checkpoint is .*/one\."):
            algo.save_to_path(tmp_path / "two")
        assert not (tmp_path / "two").exists()
    finally:
        begun = time.monotonic()
        algo.stop()
        assert time.monotonic() - begun < 30
    undisturbed = _config(tiny_dense, 0).build_algo()
    try:
        for _ in range(4):
            undisturbed.train()
        assert _differing(_held(undisturbed), found) == []
    finally:
        undisturbed.stop()
