"""Playing in a thread: the episodes of sampling, weights taken up on the way, pauses, failures, and a clean end."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback

from gspo_rllib import metrics as names
from gspo_rllib.engines.process_state import torch_random_state_kept
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.errors import EngineError, SettingError, WeightSyncError
from gspo_rllib.types import GROUP, group_episodes, turns
from tests.env_runners.small_runner import Weights, logp, runner_config, same_samples, shifted
from tests.toy_envs import faulty_envs

PATIENCE_S = 60.0


class Gated(faulty_envs.ThreadedEchoEnv):
    """Waits at one of its steps until the test lets it go on."""

    gate = threading.Event()
    waiting = threading.Semaphore(0)
    at_step = 2

    def step(self, action: str) -> Any:
        if len(self.actions) + 1 == self.at_step:
            self.waiting.release()
            assert self.gate.wait(PATIENCE_S)
        return super().step(action)


@pytest.fixture(autouse=True)
def gated() -> Iterator[type[Gated]]:
    Gated.gate, Gated.waiting, Gated.at_step = threading.Event(), threading.Semaphore(0), 2
    yield Gated
    Gated.gate.set()


@pytest.fixture
def make_runner(tiny_dense: str) -> Iterator[Callable[..., LanguageEnvRunner]]:
    runners: list[LanguageEnvRunner] = []

    def make(env: Any = faulty_envs.EchoEnv, **changes: Any) -> LanguageEnvRunner:
        config = runner_config(tiny_dense, env, **({"step_timeout_s": PATIENCE_S} | changes))
        runners.append(LanguageEnvRunner(config=config))
        return runners[-1]

    yield make
    Gated.gate.set()
    for runner in runners:
        runner.stop()


def take_all(runner: LanguageEnvRunner) -> SampleReport:
    """Everything that is being played, as one report; metrics are those of the last one."""
    episodes, given_up, errors = [], [], []
    while True:
        report = runner.take_finished(PATIENCE_S)
        episodes += report.episodes
        given_up += report.given_up
        errors += report.errors
        if not report.num_in_flight:
            version = report.weights_version
            return SampleReport(group_episodes(episodes), given_up, errors, report.metrics, version)
        assert report.episodes or report.given_up, "no group was finished in time"


def by_name(episodes: list) -> list:
    return sorted(episodes, key=lambda e: (e.custom_data[GROUP].group_id, e.custom_data[GROUP].index))


def play_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gspo-background-sampler"]


def offer_at_step(runner: LanguageEnvRunner, number: int, weights: Weights, version: int) -> None:
    """Offers weights just before a step of the engine."""
    engine: Any = runner._engine
    step, steps = engine.step, itertools.count()

    def offering_step() -> Any:
        if next(steps) == number:
            runner.offer_weights(weights, version)
        return step()

    engine.step = offering_step


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.002)


def test_play_gives_exactly_the_episodes_of_sample(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner()
    runner.set_weights(weights, 1)
    group_ids = [f"it/{n}" for n in range(5)]
    sampled = runner.sample(group_ids=group_ids)
    runner.sample_in_background(group_ids[:3])
    runner.sample_in_background(group_ids[3:])
    played = by_name(take_all(runner).episodes)
    assert same_samples(played, by_name(sampled))
    assert [e.get_observations() for e in played] == [e.get_observations() for e in by_name(sampled)]
    assert [e.get_rewards() for e in played] == [e.get_rewards() for e in by_name(sampled)]
    assert {turn.policy_version for e in played for turn in turns(e)} == {1}
    assert all(turn.token_versions is None for e in played for turn in turns(e))


def test_a_report_is_of_whole_groups_and_its_metrics_are_theirs(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner(faulty_envs.ChattyEnv)
    runner.set_weights(weights, 3)
    assert runner.take_finished(0.0) == SampleReport(weights_version=3)
    runner.sample_in_background(["a", "b", "c"])
    seen, totals = [], {names.NUM_GROUPS: 0, "num_episodes": 0, names.NUM_TOKENS_SAMPLED: 0}
    for _ in range(3):
        report = runner.take_finished(PATIENCE_S)
        groups = group_episodes(report.episodes)
        assert all(len(group.episodes) == 2 for group in groups)
        seen += [group.group_id for group in groups]
        for name in totals:
            totals[name] += report.metrics[name].peek() if report.metrics else 0
        if report.metrics:
            assert 0 < report.metrics[names.ENGINE_BUSY_S].peek() < report.metrics[names.SAMPLE_S].peek()
            assert report.metrics["weights_seq_no"].peek() == report.weights_version == 3
        if not report.num_in_flight:
            break
    assert sorted(seen) == ["a", "b", "c"]
    assert (totals[names.NUM_GROUPS], totals["num_episodes"]) == (3, 6)
    assert totals[names.NUM_TOKENS_SAMPLED] > 0
    assert runner.num_env_steps_sampled_lifetime == 18
    assert runner.take_finished(PATIENCE_S).episodes == [], "nothing is waited for when nothing is played"


def test_groups_added_while_others_are_played_fill_the_free_slots(make_runner: Callable, weights: Weights) -> None:
    """One group waits in its environments; two added later are played to their end beside it, in the other slots."""
    runner = make_runner(Gated, env_config={"turns": 3})
    runner.set_weights(weights, 1)
    runner.sample_in_background(["first"])
    assert Gated.waiting.acquire(timeout=PATIENCE_S)
    assert Gated.waiting.acquire(timeout=PATIENCE_S)
    Gated.at_step = -1
    runner.sample_in_background(["second", "third"])
    finished: list[str] = []
    while len(finished) < 2:
        report = runner.take_finished(PATIENCE_S)
        finished += [group.group_id for group in group_episodes(report.episodes)]
        assert report.num_in_flight == 3 - len(finished)
    assert sorted(finished) == ["second", "third"]
    assert runner.take_finished(0.0).num_in_flight == 1
    Gated.gate.set()
    assert [e.custom_data[GROUP].group_id for e in take_all(runner).episodes] == ["first", "first"]


@pytest.mark.parametrize("uptake", ["turn", "token"])
def test_offered_weights_are_taken_up_inside_trajectories(
    make_runner: Callable, weights: Weights, tiny_dense: str, uptake: str
) -> None:
    """Each token's log-probability is that of the weights it is stamped with; a turn is as old as its oldest token."""
    from transformers import AutoModelForCausalLM

    models = {1: AutoModelForCausalLM.from_pretrained(tiny_dense, dtype=torch.float32)}
    models[2] = AutoModelForCausalLM.from_pretrained(tiny_dense, dtype=torch.float32)
    models[2].load_state_dict({name: torch.tensor(value) for name, value in shifted(weights).items()})
    runner = make_runner(env_config={"turns": 4}, weight_update=uptake, max_tokens_per_turn=24, group_size=4)
    runner.set_weights(weights, 1)
    offer_at_step(runner, 30, shifted(weights), 2)
    runner.sample_in_background(["a"])
    report = take_all(runner)
    assert report.weights_version == 2
    assert report.metrics[names.NUM_WEIGHT_UPDATES].peek() == 1
    assert 0 < report.metrics[names.WEIGHT_UPDATE_S].peek() < report.metrics[names.SAMPLE_S].peek()
    mixed, seen = 0, set()
    for episode in report.episodes:
        context: list[int] = []
        for turn in turns(episode):
            context += turn.prompt_token_ids.tolist()
            ids = turn.action_token_ids.tolist()
            versions = turn.token_versions
            if versions is None:
                versions = np.full(len(ids), turn.policy_version)
            else:
                mixed += 1
            assert turn.policy_version == versions.min()
            seen |= set(versions.tolist())
            for version in set(versions.tolist()):
                with torch.no_grad():
                    logits = models[version](torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
                expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1).numpy()
                assert np.abs(expected - turn.action_logp)[versions == version].max() < 1e-4
            context += ids
        per_turn = [turn.policy_version for turn in turns(episode)]
        assert per_turn == sorted(per_turn)
    assert seen == {1, 2}
    assert report.metrics[names.NUM_TURNS_MIXED_VERSIONS].peek() == mixed
    assert (mixed > 0) == (uptake == "token")


def test_groups_played_after_an_offer_start_with_it(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner()
    with pytest.raises(WeightSyncError, match="offer_weights"):
        runner.sample_in_background(["a"])
    runner.offer_weights(weights, 1)
    runner.sample_in_background(["a"])
    runner.offer_weights(shifted(weights), 2)
    runner.sample_in_background(["b"])
    played = {g.group_id: g.episodes for g in group_episodes(take_all(runner).episodes)}
    assert {turn.policy_version for e in played["b"] for turn in turns(e)} == {2}
    runner.offer_weights(shifted(weights), 3)
    runner.offer_weights(weights, 4)
    runner.sample_in_background(["c"])
    assert {turn.policy_version for e in take_all(runner).episodes for turn in turns(e)} == {4}
    assert runner.get_weights_version() == 4
    assert not same_samples(runner.sample(group_ids=["b"]), played["b"])


def test_groups_may_be_taken_while_weights_are_being_loaded(
    make_runner: Callable, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner()
    runner.set_weights(weights, 1)
    runner.sample_in_background(["0"])
    engine: Any = runner._engine
    loading, go_on, load = threading.Event(), threading.Event(), engine.load_weights

    def slowly(*args: Any, **kwargs: Any) -> None:
        engine.weights_version = None  # as vLLM's is meanwhile
        loading.set()
        assert go_on.wait(PATIENCE_S)
        load(*args, **kwargs)

    while runner._sampler is not None and runner._sampler._in_flight:
        time.sleep(0.01)
    monkeypatch.setattr(engine, "load_weights", slowly)
    runner.offer_weights(weights, 2)
    assert loading.wait(PATIENCE_S)
    report = runner.take_finished(0.0)
    go_on.set()
    assert len(report.episodes) > 1
    assert report.weights_version == 1
    assert report.metrics["weights_seq_no"].peek() == 1
    runner.pause_sampling()
    assert runner.get_weights_version() == 2


def test_an_engine_that_cannot_update_while_running_waits_for_the_turn(
    make_runner: Callable, weights: Weights, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner(weight_update="token", max_tokens_per_turn=20)
    runner.set_weights(weights, 1)
    monkeypatch.setattr(runner._engine, "can_update_while_running", False)
    running: list[bool] = []
    load = runner._engine.load_weights

    def load_weights(*args: Any, **kwargs: Any) -> None:
        running.append(runner._engine.has_work())
        load(*args, **kwargs)

    monkeypatch.setattr(runner._engine, "load_weights", load_weights)
    runner.sample_in_background(["a", "b"])
    until(runner._engine.has_work)
    runner.offer_weights(weights, 2)
    assert all(turn.token_versions is None for e in take_all(runner).episodes for turn in turns(e))
    assert running == [False]
    assert "weight_update='token'" in caplog.text


@pytest.mark.usefixtures("ray_local")
def test_offered_weights_may_lie_in_rays_object_store(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner()
    runner.offer_weights(ray.put(weights), 5)
    runner.sample_in_background(["a"])
    assert {turn.policy_version for e in take_all(runner).episodes for turn in turns(e)} == {5}


def test_a_pause_lets_another_runner_use_the_engine_and_change_its_weights(
    make_runner: Callable, weights: Weights
) -> None:
    Gated.at_step = 5  # so that nothing finishes before it may
    runner = make_runner(Gated, env_config={"turns": 6})
    evaluation = make_runner(in_evaluation=True, explore=False, group_size=1)
    runner.set_weights(weights, 1)
    assert evaluation.set_weights(weights, 1) == 1
    assert evaluation._engine is runner._engine
    runner.sample_in_background(["a", "b"])
    for refused in (
        lambda: evaluation.sample(num_episodes=1),
        lambda: runner.sample(group_ids=["x"]),
        lambda: runner.set_weights(weights, 9),
        lambda: evaluation.set_weights(weights, 9),
        lambda: evaluation.sample_in_background(["y"]),
    ):
        with pytest.raises(EngineError, match=r"pause_sampling|stop_sampling"):
            refused()
    assert Gated.waiting.acquire(timeout=PATIENCE_S), "one has played its first turns"
    runner.pause_sampling()
    assert not runner._engine.has_work()
    assert runner.take_finished(PATIENCE_S).num_in_flight == 2, "a paused player is not waited for"
    first = evaluation.sample(num_episodes=2)
    assert len(first) == 2
    evaluation.set_weights(shifted(weights), 2)
    assert not same_samples(evaluation.sample(num_episodes=2), first)
    Gated.at_step = -1
    assert len(runner.sample(group_ids=["own"])) == 2
    runner.resume_sampling()
    Gated.gate.set()
    episodes = take_all(runner).episodes
    versions = {turn.policy_version for e in episodes for turn in turns(e)}
    assert versions == {1, 2}
    assert len(episodes) == 4
    assert all(len(e) == 6 for e in episodes)


def test_what_was_offered_before_a_pause_is_loaded_before_it_begins(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner(env_config={"turns": 30})
    runner.set_weights(weights, 1)
    runner.sample_in_background(["a"])
    until(runner._engine.has_work)
    runner.offer_weights(shifted(weights), 2)
    runner.pause_sampling()
    assert runner.get_weights_version() == 2
    runner.offer_weights(weights, 3)
    time.sleep(0.05)
    assert runner.get_weights_version() == 2, "the engine is left alone during a pause"
    runner.resume_sampling()
    assert take_all(runner).weights_version == 3


def test_a_failed_trajectory_costs_a_retry_and_a_hopeless_group_is_given_up(
    make_runner: Callable, weights: Weights
) -> None:
    faulty_envs.FailingEnv.failures.clear()
    runner = make_runner(faulty_envs.FailingEnv, env_config={"fault": "nan_reward", "every": 2})
    runner.set_weights(weights, 1)
    group_ids = [f"g{n}" for n in range(4)]
    sampled = runner.sample(group_ids=group_ids)
    runner.get_metrics()
    runner.sample_in_background(group_ids)
    report = take_all(runner)
    assert same_samples(by_name(report.episodes), by_name(sampled))
    assert report.given_up == sorted(set(group_ids) - {group.group_id for group in group_episodes(sampled)})
    assert "finite number" in report.errors[0]
    broken = make_runner(faulty_envs.FailingEnv, env_config={"fault": "raise_reset"})
    runner.stop_sampling()
    broken.set_weights(weights, 1)
    broken.sample_in_background(["a", "b"])
    report = take_all(broken)
    assert (sorted(report.given_up), report.episodes) == (["a", "b"], [])
    assert "the game server is away" in report.errors[0]
    assert report.metrics[names.NUM_GROUPS_GIVEN_UP].peek() >= 1


def test_what_fails_in_the_thread_is_raised_where_results_are_asked_for(
    make_runner: Callable, weights: Weights
) -> None:
    class Broken(RLlibCallback):
        def on_episode_step(self, **kwargs: Any) -> None:
            raise ZeroDivisionError("the callback broke")

    runner = make_runner(callbacks_class=Broken)
    runner.set_weights(weights, 1)
    runner.sample_in_background(["a", "b"])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="the callback broke"):
            runner.take_finished(PATIENCE_S)
    with pytest.raises(ZeroDivisionError, match="the callback broke"):
        runner.sample_in_background(["c"])
    runner.pause_sampling()
    runner.resume_sampling()
    assert not runner._engine.has_work()
    assert runner.stop_sampling() == ["a", "b"]
    runner._callbacks._objects = []
    runner.sample_in_background(["a"])
    assert len(take_all(runner).episodes) == 2


def test_weights_that_cannot_be_loaded_end_play_with_the_reason(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner()
    runner.set_weights(weights, 1)
    runner.offer_weights({}, 2)
    until(lambda: not play_threads())
    with pytest.raises(WeightSyncError, match="lacks"):
        runner.sample_in_background(["a"])
    with pytest.raises(WeightSyncError, match="lacks"):
        runner.take_finished(0.0)


def test_stopping_abandons_everything_and_leaves_no_thread(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner(Gated)
    runner.set_weights(weights, 1)
    assert play_threads() == []
    runner.sample_in_background(["a", "b", "c"])
    assert len(play_threads()) == 1
    with pytest.raises(SettingError, match="once"):
        runner.sample_in_background(["b"])
    assert Gated.waiting.acquire(timeout=PATIENCE_S)
    engine = runner._engine
    started = time.monotonic()
    assert runner.stop_sampling() == ["a", "b", "c"]
    assert time.monotonic() - started < PATIENCE_S / 2, "it waited for the environments"
    assert play_threads() == []
    assert not engine.has_work()
    assert runner.stop_sampling() == []
    runner.sample_in_background(["a"])
    runner.stop()
    assert play_threads() == []
    assert runner.get_weights_version() is None


def test_what_was_finished_but_never_taken_is_named_by_stop(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner()
    runner.set_weights(weights, 1)
    runner.sample_in_background(["a"])
    until(lambda: not runner._sampler._in_flight)
    assert runner.stop_sampling() == ["a"]


def test_callbacks_come_one_at_a_time_and_their_metrics_arrive(make_runner: Callable, weights: Weights) -> None:
    busy, heard = threading.Lock(), []

    class Listener(RLlibCallback):
        def on_episode_end(self, *, metrics_logger: Any, **kwargs: Any) -> None:
            assert busy.acquire(blocking=False)
            heard.append(threading.current_thread().name)
            metrics_logger.log_value("mine", 1, reduce="sum")
            busy.release()

        def on_sample_end(self, *, samples: list, **kwargs: Any) -> None:
            assert busy.acquire(blocking=False)
            heard.append(len(samples))
            busy.release()

    runner = make_runner(callbacks_class=Listener, group_size=2)
    runner.set_weights(weights, 1)
    runner.sample_in_background([f"g{n}" for n in range(8)])
    mine = 0.0
    while True:
        report = runner.take_finished(PATIENCE_S)
        mine += report.metrics["mine"].peek() if report.metrics else 0
        if not report.num_in_flight:
            break
    assert heard.count("gspo-background-sampler") == 16
    assert sum(count for count in heard if isinstance(count, int)) == 16
    assert mine == 16


def test_a_slow_environment_is_waited_for_asleep(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner(Gated, group_size=1)
    runner.set_weights(weights, 1)
    runner.sample_in_background(["a"])
    assert Gated.waiting.acquire(timeout=PATIENCE_S)
    until(lambda: not runner._engine.has_work())
    [thread] = play_threads()
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    assert thread.is_alive()
    runner.offer_weights(shifted(weights), 2)
    until(lambda: runner.get_weights_version() == 2)
    Gated.gate.set()
    [episode] = take_all(runner).episodes
    assert {turn.policy_version for turn in turns(episode)} == {1, 2}


def test_nothing_of_a_finished_group_is_kept(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner()
    runner.set_weights(weights, 1)
    for round_ in range(3):
        runner.sample_in_background([f"{round_}/{n}" for n in range(4)])
        assert len(take_all(runner).episodes) == 8
    runner.pause_sampling()
    player = runner._sampler
    rollout, scheduler = player._rollout, player._scheduler
    kept = [player._in_flight, player._added, player._finished.groups, scheduler._groups, scheduler._complete]
    kept += [rollout._running, rollout._by_ticket, rollout._by_request, rollout._held, rollout._stats.groups]
    kept += [rollout._first_observations._first, runner._engine._versions._spans]
    assert [len(one) for one in kept] == [0] * len(kept)


def training(path: str) -> Callable[[], torch.Tensor]:
    """A forward and backward pass on a model of its own, to be repeated: all gradients as one row."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.arange(60).reshape(2, 30) * 5

    def gradients() -> torch.Tensor:
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    return gradients


def test_a_learner_beside_the_thread_keeps_its_gradients_and_never_meets_a_random_number_twice(
    make_runner: Callable, weights: Weights, tiny_dense: str
) -> None:
    gradients = training(tiny_dense)
    alone = gradients()
    runner = make_runner(env_config={"turns": 40})
    runner.set_weights(weights, 1)
    runner.sample_in_background(["a", "b"])
    until(runner._engine.has_work)
    for _ in range(5):
        assert torch.equal(gradients(), alone)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    runner.stop_sampling()


def test_the_random_state_is_kept_on_the_main_thread_and_never_turned_back_beside_it() -> None:
    torch.manual_seed(0)
    with torch_random_state_kept():
        first = torch.rand(1)
    assert torch.equal(torch.rand(1), first)
    entered, leave = threading.Event(), threading.Event()

    def beside() -> None:
        with torch_random_state_kept():
            entered.set()
            leave.wait(PATIENCE_S)

    thread = threading.Thread(target=beside)
    thread.start()
    entered.wait(PATIENCE_S)
    drawn = torch.rand(4)
    leave.set()
    thread.join()
    assert not torch.equal(torch.rand(4), drawn), "a learner would have dropped out the same units again"


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_made_in_the_main_thread_plays_in_another_beside_training(
    make_runner: Callable, weights: Weights, tiny_dense: str
) -> None:
    pytest.importorskip("vllm")
    gradients = training(tiny_dense)
    alone = gradients()
    runner = make_runner(engine="vllm", weight_update="token", env_config={"turns": 10}, max_tokens_per_turn=16)
    runner.set_weights(weights, 1)
    group_ids = [f"g{n}" for n in range(4)]
    sampled = runner.sample(group_ids=group_ids)
    runner.sample_in_background(group_ids)
    until(runner._engine.has_work)
    while runner._engine.has_work():
        assert torch.equal(gradients(), alone)
    assert same_samples(by_name(take_all(runner).episodes), by_name(sampled))
    offer_at_step(runner, 20, shifted(weights), 2)
    runner.sample_in_background(group_ids)
    episodes = take_all(runner).episodes
    assert {turn.policy_version for e in episodes for turn in turns(e)} == {1, 2}
    assert np.isfinite(logp(episodes)).all()
    runner.pause_sampling()
    assert same_samples(runner.sample(group_ids=["x"]), runner.sample(group_ids=["x"]))
