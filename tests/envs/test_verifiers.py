"""What counts as the right answer."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gspo_rllib.envs.answer_table import EXACT, NUMERIC
from gspo_rllib.envs.dataset import DatasetEnv
from gspo_rllib.envs.verifiers import exact, final_answer, judge, math_verify, numeric, score
from gspo_rllib.errors import EnvError

GSM8K = str(Path(__file__).parents[1] / "data" / "gsm8k_format.jsonl")


@pytest.mark.parametrize(
    ("reply", "task", "earned"),
    [
        ("3 * 4 = 12, and 12 + 5 = 17", 0, 1.0),
        ("#### 17", 0, 1.0),
        ("The answer is: $17.00.", 0, 1.0),
        ("12", 0, 0.0),
        ("17 or 18", 0, 0.0),
        ("", 0, 0.0),
        ("6000 eggs", 3, 1.0),
        ("\\boxed{-5}", 6, 1.0),
        ("5", 6, 0.0),
        ("3/4 of a pizza", 7, 1.0),
        ("1/0", 7, 0.0),
        ("9" * 10_000, 0, 0.0),
    ],
)
def test_a_number_is_right_however_it_is_written(reply, task, earned) -> None:
    env = gymnasium.make("gspo_rllib.envs:gspo_rllib/Dataset-v0", path=GSM8K, verifier="numeric")
    env.reset(options={"task_id": str(task)})
    observation, reward, terminated, truncated, info = env.step(reply)
    assert (reward, terminated, truncated, info["success"]) == (earned, True, False, earned == 1.0)
    assert observation == ("right" if earned else "wrong")


def test_exact_answers_ignore_case_and_white_space_only() -> None:
    assert exact("Answer: New\nYork", "new york", {})
    assert not exact("York", "New York", {})
    assert not exact("New York City", "New York", {})


def test_formulas_are_equal_by_value() -> None:
    pytest.importorskip("math_verify")
    assert math_verify(r"so it is \boxed{\frac{2}{4}}", r"$\frac{1}{2}$", {})
    assert math_verify("x = 3", "3", {})
    assert not math_verify(r"\boxed{\frac{2}{3}}", r"\frac{1}{2}", {})


@given(st.text(max_size=200), st.sampled_from([exact, numeric]))
def test_no_reply_upsets_a_verifier(reply, verifier) -> None:
    assert verifier(reply, "#### 42", {}) in (True, False)
    final_answer(reply)


@pytest.mark.parametrize(("reply", "gold", "right"), NUMERIC)
def test_a_number_is_what_a_mathematician_reads(reply, gold, right) -> None:
    assert numeric(reply, gold, {}) is right


@pytest.mark.parametrize(("reply", "gold", "right"), EXACT)
def test_exact_is_what_is_stated(reply, gold, right) -> None:
    assert exact(reply, gold, {}) is right


def test_the_specification_is_one() -> None:
    assert len(NUMERIC) >= 60


@pytest.mark.parametrize(
    "piece",
    [
        *["9", "123,", "1 123", "answer", "answer is ", "answer ", " ", "<think>", "[THINK]", "</think>", "{", "$"],
        *["\\boxed{", "\\frac{", "\\frac", "\\text{", "1^", "10^{", "5/", "½", "٣", "*", "-", "\n", "1e", "####", "."],
        *["\\\\", "\\", "^", "_", "1,", "1{,}", "一", "\ud800", "minus ", "1:", "%"],
    ],
)
def test_a_hostile_reply_costs_little_and_earns_nothing(piece) -> None:
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    assert [verifier(reply, "42", {}) for verifier in (numeric, exact) for reply in (text, text + "}" * 99)] == [
        False
    ] * 4
    assert time.process_time() - started < 4.0


def test_a_function_judges_the_whole_reply() -> None:
    assert score(lambda reply, answer, row: len(reply) == 300_001, "x" * 300_001, "1", {}) == 1.0


def test_a_function_may_return_numbers_of_numpy() -> None:
    for earned in (np.True_, np.float32(1), np.int64(1)):
        assert score(lambda reply, answer, row, earned=earned: earned, "", "1", {}) == 1.0
    with pytest.raises(EnvError, match="must return a number from 0 to 1"):
        score(lambda reply, answer, row: np.float32("nan"), "", "1", {})


class Speechless(BaseException):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (asyncio.CancelledError(), "raised CancelledError for the reply"),
        (GeneratorExit("over"), "raised GeneratorExit: over for the reply"),
        (Speechless(), r"raised Speechless: \(its message cannot be shown: RuntimeError\) for the reply"),
        (ValueError("x" * 10**6), "raised ValueError: x{300}… for the reply"),
    ],
)
def test_whatever_a_verifier_raises_is_an_error_that_names_it(error, said) -> None:
    def broken(reply: str, answer: str, row: dict) -> float:
        raise error

    with pytest.raises(EnvError, match=f"verifier .*broken {said}"):
        score(broken, "x", "1", {})


def test_what_a_verifier_returns_need_not_be_printable() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise SystemExit

    with pytest.raises(EnvError, match=r"returned \(it cannot be shown: SystemExit\); it must return a number"):
        score(lambda *_: Odd(), "x", "1", {})


def test_ctrl_c_is_no_fault_of_a_verifier() -> None:
    def interrupted(reply: str, answer: str, row: dict) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(interrupted, "x", "1", {})


LATE = "the answer was not judged: it takes too long to judge"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.setattr("gspo_rllib.envs.judge.CPU_S", 0.3)


@pytest.mark.parametrize(
    "formula",
    ["9^{9^{9}}", "10^{100000000} + 1 - 10^{100000000}", "10000000!", r"\sum_{i=1}^{10^{12}} i!", "(" * 4000],
)
def test_a_formula_that_takes_for_ever_is_wrong_and_says_why(hurried, formula) -> None:
    env = DatasetEnv(rows=[{"question": "1?", "answer": "1"}], verifier="math_verify")
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(rf"\boxed{{{formula}}}")
    assert (reward, terminated, info["success"], info["reason"]) == (0.0, True, False, LATE)
    assert math_verify(r"\boxed{\frac{2}{2}}", "1", {}) is True, "the next answer is judged"
    assert env.metadata["blocking"] is True, "a slow verdict must delay nobody"


def test_reasons_say_why_there_was_nothing_to_judge() -> None:
    pytest.importorskip("math_verify")
    assert judge(numeric, "<think>42", "42", {}).reason == "the reply ends within its reasoning"
    assert judge(exact, "", "42", {}).reason == "the reply states no answer"
    assert judge(numeric, "no idea", "42", {}).reason == "the answer is no number"
    assert judge(numeric, "41", "42", {}).reason is None
    assert judge(math_verify, r"<think>\boxed{42}", "42", {}).reason == "the reply ends within its reasoning"
    assert judge(math_verify, rf"\boxed{{{'1+' * 9999}1}}", "42", {}).reason == (
        "the answer was not judged: it is longer than 10,000 characters"
    )


def test_threads_judge_at_the_same_time_each_its_own_formula(hurried) -> None:
    verdicts: dict[int, bool] = {}

    def judge_some(thread: int) -> None:
        if thread == 3:
            verdicts[thread] = math_verify(r"\boxed{9^{9^{9}}}", "1", {}) is False
        else:
            numbers = range(thread, 400, 8)
            verdicts[thread] = all(
                math_verify(rf"\boxed{{\frac{{{n}}}{{7}}}}", rf"{n}/7", {}) for n in numbers
            ) and not any(math_verify(rf"\boxed{{{n}}}", rf"{n + 1}", {}) for n in numbers)

    threads = [threading.Thread(target=judge_some, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == dict.fromkeys(range(8), True)


def test_a_fork_has_judges_of_its_own(hurried) -> None:
    assert math_verify("1", "1", {})
    pid = os.fork()
    if pid == 0:
        os._exit(0 if math_verify("3", "3", {}) and not math_verify("3", "4", {}) else 1)
    assert math_verify("2", "2", {}) and not math_verify("2", "3", {})
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert math_verify("2", "2", {})


PROGRAM = r"""
import glob, os, sys, threading
from gspo_rllib.envs.verifiers import math_verify

assert math_verify("1", "1", {})
hang = threading.Thread(target=math_verify, args=(r"\boxed{9^{9^{9}}}", "1", {}), daemon=True)
if sys.argv[1] == "killed":
    hang.start()
def children(pid):
    return [int(child) for task in glob.glob(f"/proc/{pid}/task/*/children") for child in open(task).read().split()]


waiting = children(os.getpid())
found = waiting + [child for pid in waiting for child in children(pid)]
print(*found, flush=True)
if sys.argv[1] == "killed":
    sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("end", ["killed", "exits"])
def test_no_judge_outlives_the_process_that_asked(end) -> None:
    pytest.importorskip("math_verify")
    root = Path(__file__).parents[2]
    asking = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, end], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert asking.stdout is not None
    judges = [int(pid) for pid in asking.stdout.readline().split()]
    assert len(judges) == 2, "one that waits, and one that judges"
    if end == "killed":
        asking.send_signal(signal.SIGKILL)
    asking.communicate()
    patience = time.monotonic() + 30
    while any(_runs(pid) for pid in judges) and time.monotonic() < patience:
        time.sleep(0.02)
    assert not any(_runs(pid) for pid in judges)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
