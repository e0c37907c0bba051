"""What this machine can do, which every result is to be read with: processor, its short formats, its parallelism.

    .venv/bin/python benchmarks/machine.py

*Parallelism* is how much two processes get done together, in units of what one gets done alone: 2.0 where each has a
core of its own and nothing else runs, little more than 1.0 where the two cores are one core's two threads, or where
other programs use the machine. The work is what these benchmarks consist of: a decode step (many narrow matrices,
attention over a cache) and a learner step (a wide matrix forward and backward), float32, one thread.
"""

from __future__ import annotations

import functools
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

ROUNDS = 3
ROUND_S = 0.4


def processor() -> str:
    """The name of this machine's processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def short_formats() -> dict[str, bool]:
    """Whether the processor multiplies bfloat16: in vectors (``avx512_bf16``) and in tiles (``amx_bf16``)."""
    flags = set((_cpuinfo("flags") or "").split())
    return {name: name in flags for name in ("avx512_bf16", "amx_bf16")}


def _cpuinfo(field: str) -> str | None:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == field), None)


@functools.cache
def parallelism() -> float:
    """What two processes get done together ÷ what one gets done alone; measured once per process, in some 5 s."""
    workers = [_Worker(), _Worker()]
    try:
        ratios = []
        for _ in range(ROUNDS):
            workers[0].start()
            alone = workers[0].result()
            for worker in workers:
                worker.start()
            ratios.append(sum(worker.result() for worker in workers) / alone)
    finally:
        for worker in workers:
            worker.close()
    return statistics.median(ratios)


def facts() -> dict[str, Any]:
    """All of it, as it is kept with a result."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "parallelism": round(parallelism(), 2),
        **short_formats(),
    }


@functools.cache
def sentence() -> str:
    """All of it, as it is printed with a result."""
    formats = [name for name, there in short_formats().items() if there] or ["no bfloat16 arithmetic"]
    return (
        f"{processor()}, {os.cpu_count()} cores, {', '.join(formats)}; two processes do {parallelism():.2f} times the "
        "work of one"
    )


class _Worker:
    """A process that says how often per second it gets through the work."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.result()  # imports done

    def start(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> float:
        assert self._process.stdout
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _work() -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    torch.set_num_threads(1)
    decoded, narrow = torch.randn(64, 256), torch.randn(256, 256)
    query, cache = torch.randn(64, 4, 1, 32), torch.randn(64, 4, 256, 32)
    trained, wide = torch.randn(512, 256), torch.randn(256, 2048, requires_grad=True)

    def once() -> None:
        with torch.inference_mode():
            state = decoded
            for _ in range(12):
                state = torch.tanh(state @ narrow)
            scaled_dot_product_attention(query, cache, cache)
        (trained @ wide).square().mean().backward()

    once()
    print(1.0, flush=True)
    while sys.stdin.readline():
        started, rounds = time.perf_counter(), 0
        while time.perf_counter() - started < ROUND_S:
            once()
            rounds += 1
        print(rounds / (time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--work"]:
        _work()
    else:
        print(sentence())
