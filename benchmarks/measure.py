"""How every benchmark here measures: the things compared run alternately in one run, and medians of their ratios count.

Ratios merge into ``benchmarks/latest.json``, each with its goal, date, repetitions and command, and with what the
machine could do at that time (``machine.py``).
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import json
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import machine

LATEST = pathlib.Path(__file__).parent / "latest.json"

KEYS: Mapping[str, tuple[float, str]] = {
    "learner_over_bare": (
        0.85,
        "learner ÷ bare forward and backward with the head on sampled tokens, tokens/s, 32k vocabulary",
    ),
    "learning_over_trl": (
        0.97,
        "our mean return ÷ TRL's over the same tasks and as many iterations, Arithmetic, one turn",
    ),
    "learner_over_trl": (5.0, "learner ÷ TRL's loss path, tokens/s, 32k vocabulary"),
    "learner_memory_over_trl": (0.25, "learner's peak memory ÷ TRL's, over the model's own"),
    "rollout_over_vllm": (0.9, "env runner ÷ raw vLLM, tokens/s, concurrency 32, 10 turns"),
    "continuous_over_lockstep": (1.5, "continuous ÷ lock-step rollout, tokens/s, log-normal turns, 64 trajectories"),
    "loop_over_ideal": (0.8, "ideal time ÷ the whole synchronous loop's"),
    "long_turns_over_agilerl": (40.0, "AgileRL's CPU seconds per iteration ÷ ours, Recall, 140 turns"),
    "long_turns_over_trl": (15.0, "TRL's CPU seconds per iteration ÷ ours, Recall, 140 turns"),
    "loop_over_trl": (3.0, "TRL's time per optimisation step ÷ ours, single turn"),
    "many_turns_over_agilerl": (15.0, "AgileRL's CPU seconds per iteration ÷ ours, Calculator, 7 to 14 turns"),
    "many_turns_over_trl": (8.0, "TRL's CPU seconds per iteration ÷ ours, Calculator, 7 to 14 turns"),
    "start_up_over_trl": (
        0.94,
        "TRL's wall seconds from the start of its process to its first iteration ÷ ours",
    ),
    "async_over_sync": (1.5, "async ÷ sync, tokens/s, one core each for engine and learner"),
}
"""What is recorded: the goal (memory: at most, all others: at least) and what the ratio is."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of one thing.

    Attributes:
        wall_s: Seconds on the clock; others on the machine count.
        cpu_s: Seconds of CPU of this process, all its threads; others do not count.
    """

    wall_s: float
    cpu_s: float


def timed(function: Callable[[], Any]) -> Timing:
    """Runs a function once, after collecting garbage."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(
    functions: Mapping[str, Callable[[], Any]], repetitions: int, warm_up: int = 1
) -> dict[str, list[Timing]]:
    """Runs the functions in turn, ``warm_up + repetitions`` rounds, and keeps the last ``repetitions``."""
    timings: dict[str, list[Timing]] = {name: [] for name in functions}
    for round_number in range(warm_up + repetitions):
        for name, function in functions.items():
            timing = timed(function)
            if round_number >= warm_up:
                timings[name].append(timing)
    return timings


def ratios(above: list[Timing], below: list[Timing], clock: str = "cpu_s") -> list[float]:
    """``above ÷ below`` for each pair of neighbouring runs."""
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(above, below, strict=True)]


def median(timings: list[Timing], clock: str = "cpu_s") -> float:
    """The median on one clock, in seconds."""
    seconds: list[float] = [getattr(timing, clock) for timing in timings]
    return statistics.median(seconds)


def peak_rss_mb() -> float:
    """The largest resident size this process ever had, in MB; only ever grows."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def release_freed_memory() -> None:
    """Collects garbage and has the allocator give freed blocks back, so that what is resident is held; glibc only."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


_MALLINFO2 = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class _Mallinfo2(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in _MALLINFO2]


def allocated_mb() -> float:
    """What malloc has handed out to this process and not got back, in MB; glibc only."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    info: Any = mallinfo2()
    return int(info.uordblks + info.hblkhd) / 1e6


def peak_over_mb(function: Callable[[], Any]) -> float:
    """How far the resident size rises during a call above what it was before, in MB; Linux only."""
    release_freed_memory()  # which would hide what the call takes
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_kb("VmRSS")
    function()
    return (_status_kb("VmHWM") - before) / 1e3


def _status_kb(name: str) -> int:
    return int(pathlib.Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def record(key: str, values: list[float], *, command: str, **details: Any) -> None:
    """Merges one ratio into ``benchmarks/latest.json`` and prints it beside its goal.

    Args:
        key: One of ``KEYS``.
        values: The ratio of each repetition; their median is recorded, with the lowest and the highest.
        command: The command that measures this ratio.
        details: Anything else worth keeping, e.g. ``tokens=4096``.
    """
    goal, meaning = KEYS[key]
    ratio = statistics.median(values)
    latest = json.loads(LATEST.read_text()) if LATEST.exists() else {}
    latest[key] = {
        "ratio": round(ratio, 3),
        "lowest": round(min(values), 3),
        "highest": round(max(values), 3),
        "goal": goal,
        "what": meaning,
        "repetitions": len(values),
        "date": datetime.date.today().isoformat(),
        **machine.facts(),
        "command": command,
        **details,
    }
    LATEST.write_text(json.dumps(dict(sorted(latest.items())), indent=1, ensure_ascii=False) + "\n")
    met = ratio <= goal if "memory" in key else ratio >= goal
    print(f"{key}: {ratio:.2f} ({min(values):.2f} to {max(values):.2f}), goal {goal}: {'met' if met else 'NOT met'}")
    print(f"  measured on {machine.sentence()}")
