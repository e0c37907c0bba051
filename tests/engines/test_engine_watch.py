"""A call of an engine that takes too long is seen, once, and no other."""

from __future__ import annotations

import queue
import time

import pytest

from gspo_rllib.engines.engine_watch import EngineWatch


def test_a_call_that_takes_too_long_is_told_once_while_it_goes_on() -> None:
    late: queue.Queue[float] = queue.Queue()
    watch = EngineWatch(0.05, late.put)
    for _ in range(2):
        with watch.call():
            with watch.call():
                time.sleep(0.01)
            assert 0.05 <= late.get(timeout=5.0) < 5.0
            time.sleep(0.05)
    watch.close()
    assert late.empty()


def test_calls_that_answer_are_not_told_however_many_there_are() -> None:
    late: list[float] = []
    watch = EngineWatch(5.0, late.append)
    for _ in range(1000):
        with watch.call():
            pass
    with pytest.raises(ZeroDivisionError), watch.call():
        raise ZeroDivisionError
    assert watch._since is None
    watch.close()
    assert not late
