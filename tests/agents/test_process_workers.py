"""Agents in processes of their own: they play as in threads, and bring nobody down with them."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.agent_thread import Outcome
from gspo_rllib.agents.process_workers import AgentProcess, ProcessWorkers, importable_name
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.agents.workers import Job
from gspo_rllib.errors import SettingError
from tests.agents import process_agents
from tests.agents.serving import Served, served

AGENTS = "tests.agents.process_agents"
Play = Callable[..., tuple[Any, "queue.Queue[Any]"]]


@pytest.fixture
def one(rich_renderer: MessageRenderer) -> Iterator[Served]:
    with served(rich_renderer) as session:
        yield session


@pytest.fixture
def play(one: Served) -> Iterator[Play]:
    """Has an agent play; returns the running trajectory and the queue of what is told of it."""
    workers: dict[str, ProcessWorkers] = {}

    def start(name: str, **task: Any) -> tuple[Any, queue.Queue[Any]]:
        told: queue.Queue[Any] = queue.Queue()
        agent = AgentSession(one.endpoint.find(one.key).door, one.endpoint, key=one.key, seed=5)
        job = Job(0, 0, task, agent, one.session, lambda: told.put("began"), told.put)
        pool = workers.setdefault(name, ProcessWorkers(f"{AGENTS}:{name}"))
        return pool.start(job), told

    yield start
    for pool in workers.values():
        pool.close()


def _outcome(told: queue.Queue[Any]) -> Outcome:
    assert told.get(timeout=60) == "began"
    outcome: Outcome = told.get(timeout=60)
    return outcome


def test_a_process_plays_one_trajectory_after_the_other_as_a_thread_does(one: Served, play: Play) -> None:
    one.text = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    _, told = play("behaves", part="ä\ud800", big="x" * 200_000)
    result = _outcome(told).returned
    assert result == AgentResult(result.reward, [5.0] * 4, True, {"ä\ud800": 1.0}, "time")
    calls = one.session.trained_calls()
    assert [call.parent for call in calls] == [None, *[calls[0]] * 3] and result.reward != os.getpid()
    one.text = "<tool_call>{"
    again, told = play("behaves", part="b", malformed=True)
    assert _outcome(told).returned.reward == result.reward
    assert again.cancel() is False
    os.kill(int(result.reward), signal.SIGKILL)
    # Before its last thread has ended nobody can tell that it has, and the trajectory would be played again.
    _wait_until(lambda: not Path(f"/proc/{int(result.reward)}").exists())
    _, told = play("behaves", part="c", malformed=True)
    assert _outcome(told).returned.reward not in (result.reward, os.getpid())


def test_a_process_that_dies_as_it_is_chosen_loses_the_trajectory_and_not_for_ever(
    one: Served, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.text = "4"
    _, told = play("repeats", question="2 + 2?")
    assert _outcome(told).failure is None

    def dies(child: AgentProcess) -> bool:
        child.kill()
        return True

    monkeypatch.setattr(AgentProcess, "is_free", property(dies))
    _, told = play("repeats", question="2 + 2?")
    failure = told.get(timeout=60).failure
    assert failure.lost_process and failure.message == "the agent's process has ended before the agent returned."


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("raises", "raised", "the agent raised ValueError: boom ("),
        ("exits", "raised", "the agent raised SystemExit: 4 ("),
        ("leaves", "raised", "the agent's process exited with status 3 before the agent returned."),
        ("crashes", "raised", "the agent's process was ended by SIGSEGV before the agent returned."),
        ("says_it_is_worth_nan", "invalid", "the agent returned nan; it must return a finite number or an AgentResult"),
        ("is_refused", "raised", "the agent raised RequestRefused: messages[0].role is 'nobody'"),
        ("is_nowhere", "raised", "in its own process, agent.play='tests.agents.process_agents:is_nowhere'"),
    ],
)
def test_whatever_happens_in_it_is_a_failed_trajectory(play: Play, name: str, kind: str, words: str) -> None:
    failure = _outcome(play(name)[1]).failure
    assert failure is not None and failure.kind == kind
    assert failure.message.startswith(words)
    assert failure.lost_process is words.endswith("before the agent returned.")


def test_who_is_not_waited_for_is_killed_with_what_it_started(play: Play, tmp_path: Path) -> None:
    running, told = play("never_ends", file=str(tmp_path / "pids"))
    assert told.get(timeout=60) == "began"
    pids = _written(tmp_path / "pids")
    assert running.cancel() is True
    _wait_until(lambda: all(map(_is_gone, pids)))
    assert told.empty()


SCRIPT = """
import sys, time
from tests.agents.process_agents import never_ends
from gspo_rllib.agents.process_workers import ProcessWorkers
from gspo_rllib.agents.workers import Job

class Agent:
    base_url, api_key, seed, name = "http://127.0.0.1:1/v1", "", 0, ""

workers = ProcessWorkers("tests.agents.process_agents:never_ends")
workers.start(Job(0, 0, {"file": sys.argv[1]}, Agent(), None, lambda: None, print))
time.sleep(600)
"""


def test_no_process_survives_its_env_runner_even_when_that_is_killed(tmp_path: Path) -> None:
    path = os.pathsep.join(sys.path)
    runner = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "pids")], env={**os.environ, "PYTHONPATH": path}
    )
    try:
        pids = _written(tmp_path / "pids")
        assert not any(map(_is_gone, pids))
    finally:
        runner.kill()
        runner.wait()
    _wait_until(lambda: all(map(_is_gone, pids)))


def test_a_function_is_sent_by_its_name_alone() -> None:
    name = f"{AGENTS}:raises"
    assert importable_name(name) == importable_name(process_agents.raises) == name

    async def here(task: Any, session: Any) -> float:
        return 0.0

    for unnamed in (here, pytest.MonkeyPatch):
        with pytest.raises(SettingError, match="cannot be found by a name in another process"):
            importable_name(unnamed)  # type: ignore[arg-type]


def _written(file: Path) -> list[int]:
    _wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    return [int(pid) for pid in file.read_text().split()]


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
