"""What a result says about the machine is measured, not believed."""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks import machine


def test_it_names_the_processor_and_its_short_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {"model name": "Some CPU @ 2 GHz", "flags": "fpu avx512_bf16 amx_tile"}
    monkeypatch.setattr(machine, "_cpuinfo", lines.get)
    assert machine.processor() == "Some CPU @ 2 GHz"
    assert machine.short_formats() == {"avx512_bf16": True, "amx_bf16": False}


@pytest.mark.parametrize(("together", "expected"), [(60.0, 1.2), (100.0, 2.0)])
def test_parallelism_is_what_two_get_done_over_what_one_does(
    together: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[Any] = []

    class Worker:
        def start(self) -> None:
            running.append(self)

        def result(self) -> float:
            return 100.0 if len(running) % 3 == 1 else together  # one alone, then both

        def close(self) -> None: ...

    monkeypatch.setattr(machine, "_Worker", Worker)
    machine.parallelism.cache_clear()
    try:
        assert machine.parallelism() == pytest.approx(expected)
    finally:
        machine.parallelism.cache_clear()


@pytest.mark.slow
def test_two_real_processes_do_no_less_than_half_of_one_and_no_more_than_twice() -> None:
    machine.parallelism.cache_clear()
    facts = machine.facts()
    assert 0.5 < facts["parallelism"] < 3.0 and facts["cores"] == os.cpu_count()
    assert facts["processor"] in machine.sentence() and f"{machine.parallelism():.2f}" in machine.sentence()
