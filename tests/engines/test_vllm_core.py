"""Calls of vLLM's core fail once its process has ended; a client of the same form stands in for vLLM's."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from gspo_rllib.engines.vllm_core import WatchedCore, killed_at_start
from gspo_rllib.errors import EngineError, EngineLostError

FORK = multiprocessing.get_context("fork")


class Client:
    """Waits for answers as ``SyncMPClient`` does: in a queue, or for a future."""

    is_dp = False

    def __init__(self, program: Callable[[], Any]) -> None:
        process = FORK.Process(target=program)
        process.start()
        self.resources = SimpleNamespace(engine_manager=SimpleNamespace(processes=[process]), engine_dead=False)
        self.outputs_queue: queue.Queue[Any] = queue.Queue()
        self.utility_results: dict[int, Future[Any]] = {}
        self.asked = threading.Event()

    def get_output(self) -> Any:
        self.asked.set()
        answer = self.outputs_queue.get(timeout=30.0)
        if isinstance(answer, Exception):
            raise RuntimeError("dead") if self.resources.engine_dead else answer
        return answer

    def collective_rpc(self, method: str) -> Any:
        future = self.utility_results[len(self.utility_results)] = Future()
        self.asked.set()
        return future.result(timeout=30.0)

    def shutdown(self, timeout: float | None = None) -> None:
        self.resources.engine_manager.processes[0].kill()


def _sleep() -> None:
    time.sleep(60.0)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(_sleep)
    yield made
    made.shutdown()


def _kill_once_asked(client: Client) -> None:
    def kill() -> None:
        client.asked.wait(30.0)
        os.kill(client.resources.engine_manager.processes[0].pid, signal.SIGKILL)

    threading.Thread(target=kill).start()


@pytest.mark.parametrize("call", [lambda core: core.get_output(), lambda core: core.collective_rpc("load")])
def test_whoever_waits_for_a_core_that_is_killed_is_told_and_whoever_asks_later(client: Client, call: Any) -> None:
    core = WatchedCore(client)
    _kill_once_asked(client)
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(EngineLostError, match="ended by SIGKILL"):
            call(core)
        assert time.monotonic() - begun < 5.0


def test_a_core_that_ends_by_itself_is_no_lost_one_for_another_would_do_the_same() -> None:
    client = Client(lambda: os._exit(3))
    with pytest.raises(EngineError, match="exit code 3") as failed:
        WatchedCore(client).get_output()
    assert not isinstance(failed.value, EngineLostError)


def test_what_a_living_core_answers_or_refuses_is_passed_on(client: Client) -> None:
    core = WatchedCore(client)
    client.outputs_queue.put("tokens")
    assert core.get_output() == "tokens"
    assert core.is_dp is False
    client.outputs_queue.put(KeyError("unknown request"))
    with pytest.raises(KeyError, match="unknown request"):
        core.get_output()


def test_a_core_that_was_closed_is_not_mourned(client: Client) -> None:
    core = WatchedCore(client)
    core.shutdown()
    for thread in threading.enumerate():
        if thread.name == "gspo-engine-core-watch":
            thread.join(5.0)
    assert client.outputs_queue.empty()
    assert not client.resources.engine_dead


@pytest.mark.parametrize(("text", "signal_name"), [("{'EngineCore_0': -9}", "SIGKILL"), ("{'EngineCore_0': 1}", None)])
def test_a_core_that_is_killed_while_it_is_built_is_told_from_one_that_cannot_be(text: str, signal_name: Any) -> None:
    found = killed_at_start(RuntimeError(f"Engine core initialization failed. Failed core proc(s): {text}"))
    assert (found is None) == (signal_name is None)
    assert signal_name is None or signal_name in str(found)
