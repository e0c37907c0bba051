"""One side of a comparison in a process of its own, which does a step when it is told to and reports what it cost.

The sides take turns, so that while one works the others wait and all of the machine is there for it. This module needs
nothing but psutil: it is imported in every side's own environment.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

LONGEST_STOP_S = 60

ALIKE = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Variables of every side: one thread each, no network, no reports."""


class Pace:
    """The connection of a child process to its parent: waits for the signal to do a step, reports the step's cost."""

    def __init__(self) -> None:
        # The libraries print to what used to be the standard output.
        self._channel = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._ready: dict[str, float] = {}

    def wait(self) -> bool:
        """Whether to do one more step; starts the clocks.

        The first call also takes down what it took to get here, from the start of the process.
        """
        if not self._ready:
            started = psutil.Process().create_time()
            self._ready = {"ready_wall_s": time.time() - started, "ready_cpu_s": tree_use()["cpu_s"]}
        go = bool(sys.stdin.readline())
        self._started = time.perf_counter(), tree_use()["cpu_s"]
        return go

    def done(self, **facts: float) -> None:
        """Reports the step.

        Args:
            facts: What was done in it, e.g. ``tokens=4096``.
        """
        wall, use = time.perf_counter(), tree_use()
        report = {
            "wall_s": wall - self._started[0],
            "cpu_s": use["cpu_s"] - self._started[1],
            "peak_mb": use["peak_mb"],
            **self._ready,
            **facts,
        }
        print(json.dumps(report), file=self._channel, flush=True)


def tree_use() -> dict[str, float]:
    """CPU seconds and peak resident size in MB, of this process and all its descendants."""
    cpu_s = peak_kb = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times = process.cpu_times()
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except (psutil.Error, OSError):
            continue  # it has just ended
        cpu_s += times.user + times.system
        peak_kb += next((int(line.split()[1]) for line in status if line.startswith("VmHWM")), 0)
    return {"cpu_s": cpu_s, "peak_mb": peak_kb * 1024 / 1e6}


class Child:
    """One side in a child process, as its parent sees it.

    Args:
        name: What the side is called.
        command: How the process is started.
        log: Where what it prints goes.
        environment: Variables it gets besides the parent's.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: pathlib.Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name, self._log = name, log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip

    def step(self) -> dict[str, Any]:
        """Has it do one step; what that cost.

        Raises:
            RuntimeError: The process ended.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self.name} ended early; its last lines:\n{self._log.read_text()[-3000:]}")
        cost: dict[str, Any] = json.loads(line)
        return cost

    def stop(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(timeout=LONGEST_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
