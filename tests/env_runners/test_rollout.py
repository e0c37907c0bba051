"""The rollout loop on a real engine: complete groups, tokens in and out, budgets, and environments that misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.util.debug import reset_log_once

from gspo_rllib.cli.evaluate import summary
from gspo_rllib.engines.protocol import EngineSpec, Generation
from gspo_rllib.engines.transformers import TransformersEngine
from gspo_rllib.env_pool.calls import EnvAnswer
from gspo_rllib.env_pool.factory import check_language_env_spec
from gspo_rllib.env_pool.pool import EnvPool
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.first_observations import FirstObservations
from gspo_rllib.env_runners.group_scheduler import Assignment
from gspo_rllib.env_runners.rollout import Rollout
from gspo_rllib.env_runners.rollout_stats import RolloutStats
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import WeightSyncError
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.types import GROUP, TRUNCATED_BY, ChatSpec, TrajectoryGroup, group_episodes, turns
from tests.env_runners.recording_engine import MAX_MODEL_LEN, RecordingEngine
from tests.episodes import make_episode
from tests.toy_envs import faulty_envs


def token_ids(episodes: list[SingleAgentEpisode]) -> list[list[list[int]]]:
    return [[t.action_token_ids.tolist() for t in turns(episode)] for episode in episodes]


def test_groups_are_complete_of_one_task_and_their_trajectories_differ(play: Callable) -> None:
    episodes, stats = play(faulty_envs.EchoEnv)
    groups = group_episodes(episodes)
    assert [group.group_id for group in groups] == ["it/0", "it/1"]
    for group in groups:
        assert [e.custom_data[GROUP].index for e in group.episodes] == [0, 1, 2]
        assert len({e.get_observations(0) for e in group.episodes}) == 1
        assert len({str(ids) for ids in token_ids(group.episodes)}) == 3
        assert all(e.is_terminated and not e.is_truncated and len(e) == 3 for e in group.episodes)
    assert groups[0].episodes[0].get_observations(0) != groups[1].episodes[0].get_observations(0)
    assert (len(stats.groups), stats.num_turns, stats.given_up) == (2, 18, [])
    assert stats.tokens_sampled == sum(len(ids) for e in token_ids(episodes) for ids in e)


def test_the_turns_of_a_trajectory_concatenate_to_exactly_what_the_engine_saw(
    play: Callable, engine: RecordingEngine
) -> None:
    episodes, _ = play(faulty_envs.EchoEnv)
    for episode in episodes:
        member = episode.custom_data[GROUP]
        context: list[int] = []
        for number, turn in enumerate(turns(episode)):
            context += turn.prompt_token_ids.tolist()
            request = engine.requests[f"{member.group_id}/0/{member.index}/0/{number}"]
            assert request.prompt_token_ids == context
            context += turn.action_token_ids.tolist()
            assert turn.policy_version == 4
            assert turn.action_logp.dtype == np.float32
            assert len(turn.action_logp) == len(turn.action_token_ids) <= 6
            assert (turn.action_logp <= 0).all()


def test_actions_are_the_decoded_samples_and_a_cut_turn_is_played_as_it_is(
    play: Callable, renderer: ChatRenderer
) -> None:
    made: list[faulty_envs.EchoEnv] = []

    def make() -> faulty_envs.EchoEnv:
        made.append(faulty_envs.EchoEnv())
        return made[-1]

    [episode], stats = play(make, groups=1, group_size=1)
    actions = [renderer.decode(turn.action_token_ids.tolist()) for turn in turns(episode)]
    assert made[0].actions == actions == episode.get_actions()
    assert "length" in {turn.finish_reason for turn in turns(episode)}
    assert stats.num_turns == 3


def test_a_turn_frames_the_observation_after_the_reply_it_answers(play: Callable, tiny_dense: str) -> None:
    [episode], _ = play(faulty_envs.ChattyEnv, groups=1, group_size=1)
    tokenizer = load_tokenizer(tiny_dense)
    first, second, _ = (tokenizer.decode(turn.prompt_token_ids) for turn in turns(episode))
    assert "You echo." in first
    assert episode.get_observations(0) in first
    assert episode.get_observations(1) in second
    assert "tool" in second or "user" in second
    assert "You echo." not in second


def test_results_do_not_depend_on_how_many_trajectories_run_at_a_time(play: Callable) -> None:
    one, _ = play(faulty_envs.EchoEnv, slots=1)
    many, _ = play(faulty_envs.EchoEnv, slots=6)
    threaded, _ = play(faulty_envs.ThreadedEchoEnv, slots=4, blocking=True)
    assert token_ids(one) == token_ids(many) == token_ids(threaded)
    assert [e.get_observations() for e in one] == [e.get_observations() for e in many]


def test_temperature_zero_makes_the_members_of_a_group_equal(play: Callable) -> None:
    episodes, _ = play(faulty_envs.EchoEnv, groups=1, temperature=0.0)
    first, *others = token_ids(episodes)
    assert all(other == first for other in others)


def test_a_slow_environment_never_holds_back_a_fast_one(
    play: Callable, engine: RecordingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow member answers its first step only once the fast ones have finished all of theirs."""
    poll = EnvPool.poll

    def late_poll(pool: EnvPool, *, wait: bool) -> list[EnvAnswer]:
        time.sleep(0.02)  # the threads of the two fast ones answer at once, but not in the same instant
        return poll(pool, wait=wait)

    monkeypatch.setattr(EnvPool, "poll", late_poll)
    finished = threading.Semaphore(0)
    done: list[str] = []

    class Paced(faulty_envs.ThreadedEchoEnv):
        slow = False

        def step(self, action: str) -> Any:
            if self.slow and not self.actions:
                for _ in range(2):
                    assert finished.acquire(timeout=60), "the fast environments were held back"
            answer = super().step(action)
            if answer[2]:
                done.append("slow" if self.slow else "fast")
                finished.release()
            return answer

    made: list[Paced] = []
    lock = threading.Lock()

    def make() -> Paced:
        with lock:
            made.append(Paced(turns=4))
            made[-1].slow = len(made) == 1
            return made[-1]

    episodes, _ = play(make, groups=1, blocking=True)
    assert done == ["fast", "fast", "slow"]
    assert len(episodes) == 3
    # Two fast ones side by side, then the slow one's last three turns alone: eight turns of forward passes in all.
    assert engine.steps <= 8 * 6


def test_trajectories_share_forward_passes(play: Callable, engine: RecordingEngine) -> None:
    episodes, stats = play(faulty_envs.EchoEnv, groups=2, group_size=3, slots=6)
    tokens = sum(len(ids) for e in token_ids(episodes) for ids in e)
    assert stats.engine_steps == engine.steps
    assert engine.steps < tokens / 3


def test_a_trajectory_is_truncated_exactly_where_the_next_turn_no_longer_fits(
    play: Callable, engine: RecordingEngine, renderer: ChatRenderer
) -> None:
    class Ragged(faulty_envs.EchoEnv):
        """Observations of another length in every task, so that contexts end at every distance from the limit."""

        def step(self, action: str) -> Any:
            self.observation_chars = self.task % 23
            return super().step(action)

    episodes, stats = play(lambda: Ragged(turns=None), groups=10, group_size=1, max_tokens_per_turn=12)
    assert not stats.failures
    assert len(episodes) == 10
    for episode in episodes:
        assert episode.is_truncated
        assert not episode.is_terminated
        assert episode.custom_data[TRUNCATED_BY] == "context"
        context = [i for t in turns(episode) for ids in (t.prompt_token_ids, t.action_token_ids) for i in ids.tolist()]
        ended = context[-1] in renderer.stop_token_ids
        unsent = renderer.next_prompt(episode.get_observations(-1), reply_ended=ended)
        assert len(context) <= MAX_MODEL_LEN <= len(context) + len(unsent)
    for request in engine.requests.values():
        assert 1 <= request.max_tokens <= 12
        assert len(request.prompt_token_ids) + request.max_tokens <= MAX_MODEL_LEN
    assert any(request.max_tokens < 12 for request in engine.requests.values())


def test_a_first_prompt_without_room_for_a_reply_fails_its_group_and_says_what_to_raise(play: Callable) -> None:
    class Wordy(faulty_envs.EchoEnv):
        def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
            return "z" * 2000, super().reset(**kwargs)[1]

    episodes, stats = play(Wordy, groups=1)
    assert episodes == []
    assert stats.failures["context"] == 4
    assert stats.num_retries == 0
    assert "max_model_len" in stats.errors[0]


def test_the_turn_budget_truncates_a_trajectory(play: Callable) -> None:
    episodes, _ = play(lambda: faulty_envs.EchoEnv(turns=None), max_turns=2)
    assert len(episodes) == 6
    for episode in episodes:
        assert len(episode) == 2
        assert episode.is_truncated
        assert episode.custom_data[TRUNCATED_BY] == "turns"


def test_an_episode_that_ends_on_its_last_allowed_turn_is_not_truncated(play: Callable) -> None:
    episodes, _ = play(lambda: faulty_envs.EchoEnv(turns=2), max_turns=2)
    assert all(e.is_terminated and TRUNCATED_BY not in e.custom_data for e in episodes)


class FramedEnv(faulty_envs.EchoEnv):
    """An environment with limits of its own."""

    def __init__(self, **framing: Any) -> None:
        super().__init__(turns=None)
        self.chat = ChatSpec(**framing)


@pytest.mark.parametrize(("of_run", "of_env", "smaller"), [(2, 4, 2), (4, 2, 2), (None, 3, 3), (3, None, 3)])
def test_the_smaller_turn_limit_of_run_and_environment_holds(play: Callable, of_run, of_env, smaller) -> None:
    episodes, _ = play(lambda: FramedEnv(max_turns=of_env), groups=1, max_turns=of_run)
    assert {len(episode) for episode in episodes} == {smaller}
    assert {episode.custom_data[TRUNCATED_BY] for episode in episodes} == {"turns"}


@pytest.mark.parametrize(("of_run", "of_env", "smaller"), [(3, 5, 3), (5, 3, 3), (4, None, 4)])
def test_the_smaller_token_limit_of_run_and_environment_holds(
    play: Callable, engine: RecordingEngine, of_run, of_env, smaller
) -> None:
    play(lambda: FramedEnv(max_tokens_per_turn=of_env, max_turns=2), groups=1, max_tokens_per_turn=of_run)
    assert {request.max_tokens for request in engine.requests.values()} == {smaller}


def test_a_stop_string_ends_a_turn_and_the_next_prompt_closes_it(
    play: Callable, engine: RecordingEngine, renderer: ChatRenderer
) -> None:
    stop = tuple("aeinorst")
    episodes, _ = play(lambda: FramedEnv(stop=stop, max_turns=3), max_tokens_per_turn=20)
    stopped = 0
    for episode in episodes:
        played = list(turns(episode))
        for number, turn in enumerate(played):
            ids = turn.action_token_ids.tolist()
            action = episode.get_actions(number)
            assert action == renderer.decode(ids)
            assert not any(one in renderer.decode(ids[:-1]) for one in stop)
            assert len(turn.action_logp) == len(ids)
            ended_by_string = any(one in action for one in stop)
            ended_by_id = ids[-1] in renderer.stop_token_ids
            assert (turn.finish_reason == "stop") == (ended_by_string or ended_by_id)
            if number + 1 < len(played):
                observation = episode.get_observations(number + 1)
                expected = renderer.next_prompt(observation, reply_ended=ended_by_id)
                assert played[number + 1].prompt_token_ids.tolist() == expected
            stopped += ended_by_string
    assert stopped > 5, "no turn was ended by a string: this shows nothing"
    assert {request.stop for request in engine.requests.values()} == {stop}


@pytest.mark.parametrize(
    ("said", "recorded"), [(None, "env"), ("turns", "turns"), ("time", "time"), ("fatigue", "env")]
)
def test_an_environment_may_truncate_and_say_why(play: Callable, said: str | None, recorded: str) -> None:
    episodes, _ = play(lambda: faulty_envs.TruncatingEnv(said), groups=1)
    assert {e.custom_data[TRUNCATED_BY] for e in episodes} == {recorded}
    assert all(e.is_truncated and not e.is_terminated for e in episodes)


def test_a_trajectory_that_fails_once_is_retried_with_its_task(play: Callable) -> None:
    faulty_envs.FailingEnv.failures.clear()
    episodes, stats = play(lambda: faulty_envs.FailingEnv("raise_step", times=1), groups=1)
    assert len(episodes) == 3
    assert stats.num_retries == 1
    assert stats.num_replaced == 0
    assert stats.failures["raised"] == 1
    assert len({e.get_observations(0) for e in episodes}) == 1


def test_a_task_that_always_fails_is_replaced_with_its_whole_group(play: Callable) -> None:
    episodes, stats = play(lambda: faulty_envs.FailingEnv("nan_reward", every=2), groups=4, slots=5)
    tasks = [int(group.episodes[0].get_observations(0).split()[1]) for group in group_episodes(episodes)]
    assert len(tasks) == 4
    assert all(task % 2 for task in tasks)
    assert stats.num_replaced > 0
    assert stats.failures["invalid"] >= 2 * stats.num_replaced
    assert all(np.isfinite(episode.get_rewards()).all() for episode in episodes)
    for group in group_episodes(episodes):
        assert len({e.get_observations(0) for e in group.episodes}) == 1


def test_failures_do_not_make_results_depend_on_concurrency(play: Callable) -> None:
    def results(slots: int) -> list[list[list[int]]]:
        faulty_envs.FailingEnv.failures.clear()
        return token_ids(play(lambda: faulty_envs.FailingEnv("raise_step", every=2), groups=4, slots=slots)[0])

    assert results(1) == results(7)


def test_a_ragged_group_is_yielded_without_the_member_that_failed(play: Callable) -> None:
    faulty_envs.FailingEnv.failures.clear()
    # One trajectory at a time: both attempts of the first member fail, then the environment recovers.
    episodes, stats = play(
        lambda: faulty_envs.FailingEnv("raise_step", times=2), groups=1, group_size=4, slots=1, ragged=True
    )
    assert [e.custom_data[GROUP].index for e in episodes] == [1, 2, 3]
    assert len({e.get_observations(0) for e in episodes}) == 1
    assert (len(stats.groups), stats.num_ragged, stats.num_retries, stats.num_replaced) == (1, 1, 1, 0)
    assert stats.failures["raised"] == 2


def test_a_ragged_group_whose_task_always_fails_is_replaced(play: Callable) -> None:
    episodes, stats = play(lambda: faulty_envs.FailingEnv("nan_reward", every=2), groups=4, slots=5, ragged=True)
    assert [len(group.episodes) for group in group_episodes(episodes)] == [3] * 4
    assert all(int(e.get_observations(0).split()[1]) % 2 for e in episodes)
    assert stats.num_replaced > 0
    assert stats.num_ragged == 0


def test_ragged_groups_do_not_depend_on_concurrency(play: Callable) -> None:
    class Picky(faulty_envs.EchoEnv):
        """Breaks on one action in three, so that which members are lost follows from what was sampled."""

        def step(self, action: str) -> Any:
            if sum(map(ord, action)) % 3 == 0:
                raise ValueError("not this action")
            return super().step(action)

    def results(slots: int) -> tuple[list[tuple[str, int]], list[list[list[int]]], int]:
        episodes, stats = play(lambda: Picky(turns=2), groups=4, group_size=4, slots=slots, ragged=True)
        members = [(e.custom_data[GROUP].group_id, e.custom_data[GROUP].index) for e in episodes]
        return members, token_ids(episodes), stats.num_ragged

    one = results(1)
    assert one[-1] > 0, "no group became ragged: this shows nothing"
    assert one == results(7)


def test_an_environment_that_always_fails_yields_nothing_and_the_reasons(play: Callable) -> None:
    episodes, stats = play(lambda: faulty_envs.FailingEnv("bytes_observation"), groups=3)
    assert episodes == []
    assert sorted(stats.given_up) == ["it/0", "it/1", "it/2"]
    assert stats.errors == ["step() returned the observation b'no' (bytes); it must be a str."]


def test_a_hung_environment_costs_a_retry_and_nothing_else(play: Callable) -> None:
    faulty_envs.FailingEnv.failures.clear()
    episodes, stats = play(
        lambda: faulty_envs.ThreadedFailingEnv("hang", times=1, hang_s=5.0),
        groups=1,
        blocking=True,
        timeout=2.0,
    )
    assert len(episodes) == 3
    assert stats.failures == {"timeout": 1}
    assert stats.num_retries == 1


def test_unusable_log_probabilities_never_reach_a_group(play: Callable, engine: RecordingEngine) -> None:
    poisoned: list[str] = []

    def poison(generation: Generation) -> Generation:
        if poisoned:
            return generation
        poisoned.append(generation.request_id)
        logp = np.full(len(generation.token_ids), np.nan, dtype=np.float32)
        return Generation(generation.request_id, generation.token_ids, logp, generation.finish_reason)

    engine.change = poison
    episodes, stats = play(faulty_envs.EchoEnv, groups=1)
    assert len(episodes) == 3
    assert stats.failures == {"engine": 1}
    assert all(np.isfinite(t.action_logp).all() for e in episodes for t in turns(e))


def test_a_framing_that_cannot_be_rendered_fails_its_task_only(play: Callable) -> None:
    class Misframed(faulty_envs.EchoEnv):
        chat: ChatSpec | None = None

        def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
            answer = super().reset(**kwargs)
            self.chat = ChatSpec(template_kwargs={"tokenize": True}) if self.task % 2 == 0 else None
            return answer

    episodes, stats = play(Misframed, groups=4)
    assert len(episodes) == 12
    assert stats.failures["invalid"] > 0
    assert stats.num_retries == 0
    assert "could not be rendered" in stats.errors[0]


def test_a_group_whose_environment_ignores_its_seed_is_counted(play: Callable) -> None:
    _, stats = play(faulty_envs.SeedlessEnv, groups=2)
    assert len(stats.mixed_tasks) == 2
    _, stats = play(faulty_envs.EchoEnv, groups=2)
    assert stats.mixed_tasks == set()


class HidesItsTask(faulty_envs.EchoEnv):
    """Says the same first in every trajectory, and draws what it asks for from a counter instead of from its seed."""

    count: ClassVar[list[int]] = [0]

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        answer = super().reset(**kwargs)
        self.count[0] += 1
        self.number = self.count[0]
        return answer

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return observation, float(self.number), *rest


def test_a_group_whose_environment_hides_a_task_of_its_own_in_each_trajectory_is_counted(
    play: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    reset_log_once("gspo_rllib_mixed_answers")
    _, stats = play(HidesItsTask, groups=2, temperature=0.0)  # so that all say the same
    assert len(stats.mixed_tasks) == 2
    assert "to the same first reply" in caplog.text
    _, stats = play(faulty_envs.EchoEnv, groups=2, temperature=0.0)
    assert stats.mixed_tasks == set()


@pytest.mark.parametrize("deterministic", [True, False])
def test_equal_replies_may_be_answered_otherwise_where_chance_is_declared(deterministic: bool) -> None:
    spec = check_language_env_spec(HidesItsTask)
    assert spec.deterministic
    watched = FirstObservations(deterministic=deterministic)
    members = [Assignment("g", index, attempt=0, replacement=0, task_seed=0) for index in range(3)]
    answers = [EnvAnswer(0, 0, observation="on", reward=reward) for reward in (1.0, 1.0, 2.0)]
    differ = [watched.answers_differ(*both) for both in zip(members, ["a"] * 3, answers, strict=True)]
    assert differ == [False, False, deterministic]


def test_an_interrupted_rollout_leaves_no_request_behind(play: Callable, engine: RecordingEngine) -> None:
    def interrupt(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    engine.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        play(faulty_envs.EchoEnv)
    assert not engine.has_work()


def test_an_observer_hears_of_every_episode(play: Callable) -> None:
    heard: list[str] = []
    play(faulty_envs.EchoEnv, groups=1, group_size=1, observer=lambda event, episode, slot: heard.append(event))
    assert heard == ["on_episode_created", "on_episode_start", *["on_episode_step"] * 3, "on_episode_end"]


def test_an_engine_without_weights_is_refused(tiny_dense: str, renderer: ChatRenderer) -> None:
    engine = TransformersEngine(EngineSpec("transformers", tiny_dense, "float32", 64, 1, renderer.stop_token_ids))
    pool = EnvPool(faulty_envs.EchoEnv, 1, blocking=False, step_timeout_s=1.0)
    with pytest.raises(WeightSyncError, match="no weights"):
        Rollout(engine, pool, lambda chat: renderer, GenerationSettings(), run_seed=0)
    engine.close()


def test_an_environment_that_says_success_only_when_it_succeeds_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    reset_log_once("gspo_rllib_silent_about_success")
    episodes = [make_episode("0", index, [(3, 2)], 1.0) for index in range(3)]
    episodes[0].infos[-1]["success"] = True
    RolloutStats(groups=[TrajectoryGroup("0", episodes)]).log(MetricsLogger(root=False))
    assert "2 of 3 trajectories ended without info['success'], and success_mean is of the others" in caplog.text
    assert summary(episodes, 1.0)["success"] == "1.000 of the 1 that said whether they succeeded"


def test_a_task_that_was_passed_over_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    reset_log_once("gspo_rllib_replaced_group")
    for _ in range(2):
        RolloutStats(num_replaced=2, errors=["the verifier raised"]).log(MetricsLogger(root=False))
    (said,) = caplog.messages
    assert said.startswith("2 groups were given another task, as theirs could not be played: the verifier raised. ")


def test_a_metric_that_is_no_finite_number_is_passed_over() -> None:
    episode = make_episode("0", 0, [(3, 2)], 1.0)
    episode.infos[-1]["metrics"] = {"size": 10**400, "share": float("nan"), "steps": 3}
    logger = MetricsLogger(root=False)
    RolloutStats(groups=[TrajectoryGroup("0", [episode])]).log(logger)
    assert {name: float(value) for name, value in logger.peek("env_metrics").items()} == {"steps": 3.0}
