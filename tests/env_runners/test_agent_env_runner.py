"""Agents of the user's own behind the env runner's calls: the same groups, seeds, samples, failures and weights."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_rllib import metrics as names
from gspo_rllib.agents import env_agent
from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.env_runners.agent_env_runner import AgentEnvRunner
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.errors import EngineError, SettingError
from gspo_rllib.knobs import default_of
from gspo_rllib.types import GROUP, TASK, TRUNCATED_BY, group_episodes, turns
from tests.agents import process_agents
from tests.env_runners import agents
from tests.env_runners.small_runner import Weights, runner_config, same_samples, shifted

CALCULATOR = {"env": "gspo_rllib.envs:gspo_rllib/Calculator-v0", "env_config": {"operations": 2}}
DEFAULTS = {
    "tasks": None,
    "history": "sampled",
    "trajectory_timeout_s": 60.0,
    "idle_timeout_s": 60.0,
}


@pytest.fixture
def make_runner(tiny_dense: str, weights: Weights) -> Iterator[Callable[..., AgentEnvRunner]]:
    runners: list[AgentEnvRunner] = []

    def make(play: Any = agents.two_turns, **changes: Any) -> AgentEnvRunner:
        config = runner_config(tiny_dense, None, play=play, **(DEFAULTS | changes))
        runners.append(AgentEnvRunner(config=config, worker_index=0, num_workers=0))
        runners[-1].set_weights(weights, 1)
        return runners[-1]

    yield make
    for runner in runners:
        runner.stop()


def _counts(runner: AgentEnvRunner) -> Callable[[Any], float]:
    measured = runner.get_metrics()

    def count(name: Any) -> float:
        value = measured
        for key in name if isinstance(name, tuple) else (name,):
            value = value[key]
        return value.peek()

    return count


@pytest.mark.parametrize(
    ("play", "max_model_len", "cut_by"),
    [(env_agent.play, 350, "context"), (env_agent.play, 400, "turns"), (env_agent.play_over_http, 350, "context")],
)
def test_an_environment_played_as_an_agent_is_sampled_token_for_token_alike(
    make_runner: Callable, tiny_dense: str, weights: Weights, play: Any, max_model_len: int, cut_by: str
) -> None:
    config = runner_config(
        tiny_dense, CALCULATOR["env"], env_config=CALCULATOR["env_config"], max_model_len=max_model_len
    )
    env_runner = LanguageEnvRunner(config=config, worker_index=0, num_workers=0)
    env_runner.set_weights(weights, 1)
    expected = env_runner.sample(group_ids=["0/0", "0/1", "0/2"])
    env_runner.stop()
    agent = make_runner(play, tasks=[CALCULATOR], max_model_len=max_model_len)
    episodes = agent.sample(group_ids=["0/0", "0/1", "0/2"])
    assert same_samples(episodes, expected)
    assert sum(len(episode) for episode in episodes) > 20
    assert {episode.custom_data[TRUNCATED_BY] for episode in episodes} == {cut_by}
    for mine, its in zip(episodes, expected, strict=True):
        assert [t.prompt_token_ids.tolist() for t in turns(mine)] == [t.prompt_token_ids.tolist() for t in turns(its)]
        assert mine.get_actions() == its.get_actions() and mine.get_rewards() == its.get_rewards()
        assert mine.custom_data == {**its.custom_data, TASK: CALCULATOR} and mine.is_truncated == its.is_truncated
    count = _counts(agent)
    assert count(names.NUM_NEW_SEGMENTS) == 0
    assert count(names.NUM_TOKENS_DISCARDED) == 0


def test_groups_are_whole_and_share_their_task(make_runner: Callable) -> None:
    tasks = [{"question": f"question {n}"} for n in range(5)]
    runner = make_runner(tasks=tasks)
    episodes = runner.sample(group_ids=["3/1", "3/0", "3/2", "3/3"], weights_version=1)
    groups = group_episodes(episodes)
    assert [(group.group_id, len(group.episodes)) for group in groups] == [
        ("3/1", 2),
        ("3/0", 2),
        ("3/2", 2),
        ("3/3", 2),
    ]
    asked = [{episode.get_observations(0) for episode in group.episodes} for group in groups]
    assert asked == [{e.custom_data[TASK]["question"] for e in group.episodes} for group in groups]
    assert all(len(questions) == 1 for questions in asked)
    assert len(set.union(*asked)) > 1
    assert all(episode.is_done and not episode.is_numpy for episode in episodes)
    assert {turn.policy_version for episode in episodes for turn in turns(episode)} == {1}
    assert [episode.custom_data[GROUP].index for episode in episodes] == [0, 1] * 4
    assert runner.last_errors() == []
    again = make_runner(tasks=tasks).sample(group_ids=["3/3"])
    assert same_samples(again, episodes[-2:])


def test_calls_at_the_same_time_are_branches(make_runner: Callable) -> None:
    runner = make_runner(agents.three_at_once)
    for episode in runner.sample(group_ids=["a"]):
        assert [turn.starts_segment for turn in turns(episode)] == [False, False, True, True]
        first = next(turns(episode))
        for branch in list(turns(episode))[2:]:
            shared = [*first.prompt_token_ids, *first.action_token_ids]
            assert branch.prompt_token_ids[: len(shared)].tolist() == shared
    count = _counts(runner)
    assert count(names.NUM_NEW_SEGMENTS) == 4 and count(names.SEGMENTS_MEAN) == 3.0


def test_fields_without_effect_are_counted_by_name(make_runner: Callable) -> None:
    runner = make_runner(agents.sends_what_has_no_effect)
    runner.sample(group_ids=["a", "b"])
    count = _counts(runner)
    assert [count((names.NUM_FIELDS_PASSED_OVER, name)) for name in ("temperature", "other")] == [8, 4]


@pytest.mark.parametrize("play", [agents.cancels_a_call, agents.leaves_a_call_running])
def test_a_call_that_nobody_waits_for_is_not_trained(make_runner: Callable, play: Any) -> None:
    # Many steps of the engine, so that an agent on a busy machine has ended before its other call has.
    episodes = make_runner(play, max_tokens_per_turn=200).sample(group_ids=["a", "b"])
    assert [episode.get_observations(0) for episode in episodes] == ["kept"] * 4
    assert [len(episode) for episode in episodes] == [1] * 4


@pytest.mark.parametrize(
    ("play", "kind", "words"),
    [
        (agents.raises, "raised", "the agent raised ValueError: boom ("),
        (agents.interrupts, "raised", "the agent raised KeyboardInterrupt"),
        (agents.returns_nothing, "invalid", "the agent returned None; it must return a finite number"),
        (agents.never_calls, "invalid", "without having received a single reply"),
        (agents.says_too_much, "context", "maximum context length is 256 tokens"),
    ],
)
def test_an_agent_that_fails_fails_its_trajectory_then_its_group(
    make_runner: Callable, play: Any, kind: str, words: str
) -> None:
    runner = make_runner(play)
    assert runner.sample(group_ids=["a"]) == []
    assert words in runner.last_errors()[0]
    count = _counts(runner)
    assert count((names.NUM_TRAJECTORY_FAILURES, kind)) >= 8
    assert count(names.NUM_GROUPS_GIVEN_UP) == 1


@pytest.mark.parametrize(
    ("play", "limit", "words"),
    [
        (agents.sleeps, "idle_timeout_s", "the agent neither called nor returned for idle_timeout_s=0.3 seconds."),
        (agents.sleeps, "trajectory_timeout_s", "the agent did not return within trajectory_timeout_s=0.3 seconds."),
        (agents.blocks, "idle_timeout_s", "the agent neither called nor returned for idle_timeout_s=0.3 seconds."),
    ],
)
def test_an_agent_that_hangs_is_left_behind(make_runner: Callable, play: Any, limit: str, words: str) -> None:
    agents.blocked.clear()
    runner = make_runner(play, trajectory_retries=0, **{limit: 0.3})
    started = time.monotonic()
    assert runner.sample(group_ids=["a"]) == []
    assert time.monotonic() - started < 30
    assert runner.last_errors() == [words]
    agents.blocked.set()


def _refuse(request: Any) -> None:
    raise EngineError("no room")


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("kind", ["agent", "environment"])
def test_an_engine_that_refuses_a_legal_request_ends_the_run(
    make_runner: Callable, tiny_dense: str, weights: Weights, kind: str, background: bool
) -> None:
    runner: LanguageEnvRunner = make_runner()
    if kind == "environment":
        runner = LanguageEnvRunner(config=runner_config(tiny_dense), worker_index=0, num_workers=0)
        runner.set_weights(weights, 1)
    engine = runner._acquire_engine()
    submit = engine.submit
    vars(engine)["submit"] = _refuse
    if background:
        runner.sample_in_background(["a"])
        with pytest.raises(EngineError, match="no room"):
            runner.take_finished(20.0)
        runner.stop_sampling()
    else:
        with pytest.raises(EngineError, match="no room"):
            runner.sample(group_ids=["a"])
    vars(engine)["submit"] = submit
    assert not engine.has_work()
    assert len(runner.sample(group_ids=["a"])) == 2
    runner.stop()


@pytest.mark.parametrize("play", [agents.says_too_much, agents.stops_at_nothing, agents.asks_for_no_tokens])
def test_a_bad_call_is_the_agents_fault_and_never_reaches_the_engine(make_runner: Callable, play: Any) -> None:
    runner = make_runner(play)
    vars(runner._acquire_engine())["submit"] = _refuse
    assert runner.sample(group_ids=["a"]) == []
    del vars(runner._acquire_engine())["submit"]


def test_an_engine_that_returns_no_usable_sample_fails_trajectories_and_no_thread(make_runner: Callable) -> None:
    runner = make_runner()
    engine = runner._acquire_engine()
    step = engine.step
    vars(engine)["step"] = lambda: [
        dataclasses.replace(done, logp=np.full(len(done.token_ids), np.nan, np.float32)) for done in step()
    ]
    assert runner.sample(group_ids=["a"]) == []
    assert "every one must be finite" in runner.last_errors()[0]
    vars(engine)["step"] = step
    assert not engine.has_work()
    assert len(runner.sample(group_ids=["a"])) == 2


def test_a_failed_attempt_is_played_again_with_other_samples(make_runner: Callable) -> None:
    runner = make_runner(agents.Unreliable())
    episodes = runner.sample(group_ids=["a"])
    assert [episode.get_return() for episode in episodes] == [1.0, 1.0]
    assert _counts(runner)(names.NUM_TRAJECTORY_RETRIES) == 2


def test_limits_are_told_to_the_agent(make_runner: Callable) -> None:
    assert [len(episode) for episode in make_runner(agents.shortens).sample(group_ids=["a"])] == [1, 1]
    cut = make_runner(agents.calls_until_refused, max_turns=3).sample(group_ids=["a"])
    assert [(len(e), e.is_truncated, e.custom_data[TRUNCATED_BY]) for e in cut] == [(3, True, "turns")] * 2


def test_a_call_that_takes_too_long_is_refused_and_its_trajectory_goes_on(make_runner: Callable) -> None:
    runner = make_runner(agents.goes_on_without_a_reply, call_timeout_s=0.5, max_tokens_per_turn=200)
    runner.sample(group_ids=["first use"])
    engine = runner._acquire_engine()
    step = engine.step

    def slowly() -> Any:
        time.sleep(0.02)
        return step()

    vars(engine)["step"] = slowly
    episodes = runner.sample(group_ids=["a"])
    assert [episode.get_return() for episode in episodes] == [0.5, 0.5]
    assert [episode.get_observations(0) for episode in episodes] == ["short"] * 2
    assert runner.last_errors() == [] and not engine.has_work()
    vars(engine)["step"] = step


@pytest.mark.parametrize("weight_update", ["turn", "token"])
def test_weights_that_come_while_a_session_is_played_are_those_of_its_next_call(
    make_runner: Callable, weights: Weights, weight_update: str
) -> None:
    replied, goes_on = threading.Semaphore(0), threading.Semaphore(0)

    async def play(task: dict[str, Any], session: AgentSession) -> float:
        messages = [agents.user("a")]
        for _ in range(4):
            reply = await session.chat(messages, max_tokens=4)
            messages += [reply.message, agents.user("go on")]
            replied.release()
            assert goes_on.acquire(timeout=60)
        return 1.0

    runner = make_runner(play, weight_update=weight_update, num_envs_per_env_runner=2)
    runner.sample_in_background(["a"])
    for version in (2, 3, 4, 5):
        assert all(replied.acquire(timeout=60) for _ in range(2))
        if version < 5:
            runner.offer_weights(weights if version % 2 else shifted(weights), version)
            while runner.get_weights_version() < version:
                time.sleep(0.01)
        goes_on.release(2)
    (group,) = runner.take_finished(60.0).groups
    for episode in group.episodes:
        assert [turn.policy_version for turn in turns(episode)] == [1, 2, 3, 4]
        assert all(turn.token_versions is None for turn in turns(episode))
    assert runner.stop_sampling() == []


def test_a_pause_stops_the_clocks_and_an_evaluation_may_play_meanwhile(make_runner: Callable) -> None:
    runner = make_runner(trajectory_timeout_s=2.0, idle_timeout_s=2.0, num_envs_per_env_runner=2)
    runner.sample_in_background([f"g/{n}" for n in range(8)])
    runner.pause_sampling()
    assert len(runner.sample(group_ids=["other"])) == 2
    time.sleep(2.5)
    runner.resume_sampling()
    groups = []
    while len(groups) < 8:
        groups += runner.take_finished(5.0).groups
    assert not any("timeout" in error for error in runner.last_errors())


def test_processes_are_sampled_token_for_token_like_threads_and_a_crash_is_played_again(make_runner: Callable) -> None:
    tasks = [{"question": f"question {n}"} for n in range(5)]
    expected = make_runner(process_agents.repeats, tasks=tasks).sample(group_ids=["a", "b"])
    settings = {"workers": "process", "num_envs_per_env_runner": 2, "tasks": tasks}
    runner = make_runner(process_agents.repeats, **settings)
    episodes = runner.sample(group_ids=["a", "b"])
    assert same_samples(episodes, expected)
    assert [e.get_return() for e in episodes] == [e.get_return() for e in expected]
    runner.stop()
    runner = make_runner("tests.agents.process_agents:crashes_at_first", **settings)
    assert len(runner.sample(group_ids=["a"])) == 2
    assert runner.last_errors() == ["the agent's process exited with status 3 before the agent returned."]
    assert _counts(runner)(names.NUM_TRAJECTORY_RETRIES) == 1


def test_stopping_leaves_no_agent_behind(make_runner: Callable) -> None:
    runner = make_runner(agents.sleeps)
    runner.sample_in_background(["a", "b"])
    deadline = time.monotonic() + 30
    while not _agent_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(runner.stop_sampling()) == ["a", "b"]
    while _agent_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _agent_threads()


def _agent_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gspo-agent-")]


def test_evaluation_is_greedy(make_runner: Callable) -> None:
    one, other = make_runner().sample(num_episodes=2, explore=False)
    ids = [np.concatenate([t.action_token_ids for t in turns(e)]).tolist() for e in (one, other)]
    assert ids[0] == ids[1]


PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)


@pytest.mark.parametrize("block", [block for block in BLOCKS if "async def play" in block])
def test_the_agents_on_the_page_play(make_runner: Callable, block: str) -> None:
    names: dict[str, Any] = {}
    exec(compile(block, "agents.md", "exec", dont_inherit=True), names)
    rows = [json.loads(line) for line in re.findall(r"^```json\n(.*?)^```", PAGE, flags=re.M | re.S)[0].splitlines()]
    runner = make_runner(names["play"], tasks=rows)
    assert len(runner.sample(group_ids=["a", "b"])) == 4, runner.last_errors()


def test_the_page_shows_every_setting_with_its_default() -> None:
    shown = dict(re.findall(r"^\| `([a-z_]+)` \| `?([^`|]+?)`? \|", PAGE.partition("## Settings")[2], flags=re.M))
    defaults = {field.name: default_of(field) for field in dataclasses.fields(AgentSettings)}
    written = {name: f"{value:g}" if isinstance(value, float) else value for name, value in defaults.items()}
    assert shown == {
        name: f'"{value}"' if name in ("history", "workers", "host") else str(value) for name, value in written.items()
    }
    config = next(block for block in BLOCKS if ".agent(" in block)
    names: dict[str, Any] = {}
    exec(config, names)
    assert names["config"].env_runner_cls is AgentEnvRunner and names["config"].play == "my_package.bot:play"


def test_an_agent_that_cannot_be_found_is_refused_when_the_runner_is_made(tiny_dense: str) -> None:
    config = runner_config(tiny_dense, None, play="tests.env_runners.agents:two_turn", **DEFAULTS)
    with pytest.raises(SettingError, match=r"has no 'two_turn'\. Did you mean 'two_turns'"):
        AgentEnvRunner(config=config, worker_index=0, num_workers=0)
