"""The environment pool: answers in any order, failures as data, nothing waits for a hung environment."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.env_pool.answers import MakePool, collect
from tests.toy_envs.faulty_envs import (
    RAISED,
    ChattyEnv,
    EchoEnv,
    FailingEnv,
    RaisingEnv,
    SpeechlessError,
    ThreadedEchoEnv,
    UnpicklableInfoEnv,
)

PATIENCE_S = 60.0


@pytest.mark.parametrize("blocking", [True, False])
def test_an_episode_is_answered_call_by_call(make_pool: MakePool, blocking: bool) -> None:
    pool = make_pool(lambda: EchoEnv(turns=2), blocking=blocking)
    slot = pool.acquire()
    assert slot is not None
    first = pool.reset(slot, 7)
    [reset] = collect(pool)
    assert (reset.ticket, reset.is_reset, reset.reward, reset.failure) == (first, True, 0.0, None)
    assert reset.observation == f"task {reset.info['task']}"
    pool.step(slot, "a")
    [step] = collect(pool)
    assert (step.is_reset, step.reward, step.terminated, step.truncated) == (False, 1.0, False, False)
    pool.step(slot, "b")
    assert collect(pool)[0].terminated


def test_a_quick_environment_runs_in_the_calling_thread(make_pool: MakePool) -> None:
    earlier = set(threading.enumerate())
    pool = make_pool(EchoEnv, blocking=False)
    pool.reset(pool.acquire() or 0, 1)
    [answer] = pool.poll(wait=False)
    assert answer.failure is None
    assert not set(threading.enumerate()) - earlier


def test_a_slow_environment_does_not_delay_the_answer_of_another(make_pool: MakePool) -> None:
    release = threading.Event()

    class Gate(ThreadedEchoEnv):
        def step(self, action: str):
            if action == "wait":
                release.wait(20)
            return super().step(action)

    pool = make_pool(Gate, 2)
    slow, fast = pool.acquire(), pool.acquire()
    assert slow is not None
    assert fast is not None
    pool.reset(slow, 0)
    pool.reset(fast, 0)
    assert len(collect(pool)) == 2
    pool.step(slow, "wait")
    for _ in range(3):
        pool.step(fast, "go")
        answers = pool.poll(wait=True)
        assert [answer.slot for answer in answers] == [fast]
    release.set()
    assert [answer.slot for answer in collect(pool)] == [slow]


@pytest.mark.parametrize("fault", [*FailingEnv.FAULTS, "raise_step", "exit"])
@pytest.mark.parametrize("blocking", [True, False])
def test_a_broken_step_becomes_data_and_names_what_was_wrong(make_pool: MakePool, fault: str, blocking: bool) -> None:
    pool = make_pool(lambda: FailingEnv(fault), blocking=blocking)
    slot = pool.acquire()
    assert slot is not None
    pool.reset(slot, 0)
    collect(pool)
    pool.step(slot, "a")
    [answer] = collect(pool)
    assert answer.failure is not None
    assert answer.failure.kind == ("invalid" if fault in FailingEnv.FAULTS else "raised")
    words = {
        "nan_reward": "nan",
        "none_reward": "None",
        "str_reward": "'1.0'",
        "bytes_observation": "b'no'",
        "four_values": "terminated bool",
        "none_info": "info None",
        "int_flag": "'no'",
        "unknown_role": "user, tool",
        "raise_step": "ValueError: fault raise_step",
        "exit": "must not end the process",
    }
    assert words.get(fault, "step()") in answer.failure.message


def test_after_a_failure_the_slot_gets_a_fresh_environment(make_pool: MakePool) -> None:
    made: list[FailingEnv] = []

    def make() -> FailingEnv:
        made.append(FailingEnv("raise_reset", times=1))
        return made[-1]

    FailingEnv.failures.clear()
    pool = make_pool(make)
    slot = pool.acquire()
    assert slot is not None
    pool.reset(slot, 3)
    assert collect(pool)[0].failure is not None
    pool.reset(slot, 3)
    assert collect(pool)[0].failure is None
    assert len(made) == 2


def test_a_failing_constructor_is_data_too(make_pool: MakePool) -> None:
    pool = make_pool(lambda: FailingEnv(**{"fault": "hang", "wrong": 1}))
    pool.reset(pool.acquire() or 0, 0)
    [answer] = collect(pool)
    assert answer.failure is not None
    assert "unexpected keyword argument 'wrong'" in answer.failure.message


def test_a_hung_step_is_abandoned_and_its_late_answer_ignored(make_pool: MakePool) -> None:
    let_go, finished, hanging = threading.Event(), threading.Event(), []

    class Hanging(ThreadedEchoEnv):
        def step(self, action: str) -> Any:
            hanging.append(threading.current_thread())
            assert let_go.wait(PATIENCE_S)
            return super().step(action)

        def close(self) -> None:
            finished.set()

    pool = make_pool(Hanging, timeout=1.0)
    slot = pool.acquire()
    assert slot is not None
    pool.reset(slot, 0)
    collect(pool)
    pool.step(slot, "a")
    [answer] = collect(pool)
    assert answer.failure is not None
    assert answer.failure.kind == "timeout"
    assert "step_timeout_s=1" in answer.failure.message
    pool.reset(slot, 0)
    [fresh] = collect(pool)
    assert fresh.is_reset
    let_go.set()
    assert finished.wait(PATIENCE_S), "an abandoned environment is closed once its call returns"
    hanging[0].join(PATIENCE_S)
    assert pool.poll(wait=False) == []


def test_a_waiting_poll_can_be_woken_even_if_it_had_not_begun_to_wait(make_pool: MakePool) -> None:
    answer = threading.Event()

    class Waiting(ThreadedEchoEnv):
        def reset(self, **kwargs: Any) -> Any:
            assert answer.wait(2 * PATIENCE_S)
            return super().reset(**kwargs)

    pool = make_pool(Waiting, 1, timeout=2 * PATIENCE_S)
    slot = pool.acquire()
    assert slot is not None
    ticket = pool.reset(slot, 0)
    started = time.monotonic()
    pool.wake()
    assert pool.poll(wait=True) == []
    timer = threading.Timer(0.05, pool.wake)
    timer.start()
    assert pool.poll(wait=True) == []
    assert time.monotonic() - started < PATIENCE_S, "it was woken, and not out of time"
    answer.set()
    assert [a.ticket for a in pool.poll(wait=True)] == [ticket]
    timer.join()


def test_releasing_a_slot_that_owes_an_answer_gives_a_free_one_back(make_pool: MakePool) -> None:
    release, waiting = threading.Event(), threading.Event()
    made: list[EchoEnv] = []

    class FirstOneWaits(ThreadedEchoEnv):
        def reset(self, **kwargs):
            made.append(self)
            if len(made) == 1:
                waiting.set()
                release.wait(60)
            return super().reset(**kwargs)

    pool = make_pool(FirstOneWaits)
    slot = pool.acquire()
    assert slot is not None
    assert pool.acquire() is None
    pool.reset(slot, 0)
    assert waiting.wait(60)
    pool.release(slot)
    assert not pool.is_waiting
    again = pool.acquire()
    assert again is not None
    ticket = pool.reset(again, 1)
    answers = collect(pool)
    release.set()
    assert [(answer.ticket, answer.failure) for answer in answers] == [(ticket, None)]


def test_framing_and_plain_info_come_along_and_foreign_objects_stay_behind(make_pool: MakePool) -> None:
    chatty = make_pool(ChattyEnv)
    chatty.reset(chatty.acquire() or 0, 0)
    [answer] = collect(chatty)
    assert answer.chat is not None
    assert answer.chat.system_prompt == "You echo."
    odd = make_pool(UnpicklableInfoEnv)
    odd.reset(odd.acquire() or 0, 0)
    assert set(collect(odd)[0].info) == {"task"}


def test_a_hung_environment_does_not_block_the_end_of_the_process() -> None:
    program = """
import time
from gspo_rllib.env_pool.pool import EnvPool
from tests.toy_envs.faulty_envs import ThreadedFailingEnv
pool = EnvPool(lambda: ThreadedFailingEnv("hang", hang_s=600), 1, blocking=True, step_timeout_s=1.0)
slot = pool.acquire()
pool.reset(slot, 0)
while not pool.poll(wait=True): pass
pool.step(slot, "a")
while not (answers := pool.poll(wait=True)): pass
print(answers[0].failure.kind)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "timeout", done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize("where", ["make", "reset", "step", "chat"])
@pytest.mark.parametrize("blocking", [True, False])
def test_whatever_an_environment_raises_is_the_failure_of_its_trajectory(make_pool, what, where, blocking) -> None:
    pool = make_pool(lambda: RaisingEnv(what, where, blocking), blocking=blocking)
    slot = pool.acquire() or 0
    pool.reset(slot, 0)
    [answer] = collect(pool)
    if where == "step":
        assert answer.failure is None
        pool.step(slot, "a")
        [answer] = collect(pool)
    assert answer.failure is not None
    assert answer.failure.kind == "raised"
    assert answer.failure.message.startswith(RAISED[what][1])
    assert "[_raise, " in answer.failure.message, "it says where"
    assert len(answer.failure.message) < 1000


@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize("blocking", [True, False])
def test_an_environment_that_cannot_be_closed_makes_room_for_the_next(make_pool, what, blocking) -> None:
    class Closing(RaisingEnv):
        def step(self, action: str):
            raise ValueError("a reason to close it")

    pool = make_pool(lambda: Closing(what, "close", blocking), blocking=blocking)
    slot = pool.acquire() or 0
    for _ in range(2):
        pool.reset(slot, 0)
        assert collect(pool)[0].failure is None
        pool.step(slot, "a")
        [answer] = collect(pool)
        assert answer.failure is not None
        assert answer.failure.message.startswith("ValueError: a reason to close it")


def test_ctrl_c_ends_the_run_unless_an_environment_in_a_thread_raised_it(make_pool: MakePool) -> None:
    class Interrupted(EchoEnv):
        def step(self, action: str):
            raise KeyboardInterrupt("here")

    pool = make_pool(Interrupted, blocking=False)
    pool.reset(pool.acquire() or 0, 0)
    collect(pool)
    with pytest.raises(KeyboardInterrupt):
        pool.step(0, "a")
    pool = make_pool(Interrupted, blocking=True)
    pool.reset(pool.acquire() or 0, 0)
    collect(pool)
    pool.step(0, "a")
    [answer] = collect(pool)
    assert answer.failure is not None
    assert (answer.failure.kind, answer.failure.message[:23]) == ("raised", "KeyboardInterrupt: here")


def test_what_an_environment_returns_need_not_be_printable(make_pool: MakePool) -> None:
    class Odd(EchoEnv):
        def step(self, action: str):
            return SpeechlessError(), 1.0, False, False, {}

    pool = make_pool(Odd, blocking=False)
    pool.reset(pool.acquire() or 0, 0)
    pool.step(0, "a")
    [_, answer] = collect(pool)
    assert answer.failure is not None
    assert answer.failure.kind == "invalid"
    assert answer.failure.message.startswith("step() returned the observation (it cannot be shown: TimeLimitError)")


def test_a_reward_beyond_all_floats_breaks_the_contract(make_pool: MakePool) -> None:
    class Rich(EchoEnv):
        def step(self, action: str):
            return "ok", 10**400, False, False, {}

    pool = make_pool(Rich, blocking=False)
    pool.reset(pool.acquire() or 0, 0)
    pool.step(0, "a")
    [_, answer] = collect(pool)
    assert answer.failure is not None
    assert (answer.failure.kind, "it must be a finite number" in answer.failure.message) == ("invalid", True)
