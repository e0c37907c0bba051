"""A long run with a fault every minute: whether memory, descriptors, threads or files grow, and whether it slows down.

    .venv/bin/python benchmarks/soak.py --time 8h
    .venv/bin/python benchmarks/soak.py --time 10m --only fixed_lag-2

The runs share the time, one after the other, each in a process of its own: taking turns without and with two env
runners, and overlapped by the clock and by number; two of them on the other engine, too, where vLLM is installed. Those
with runners have a learner in a process of its own. In turn, every ``--every`` seconds, a runner is killed, an
environment's process is killed, a save finds no room, a runner is stopped, and the learner is killed; where a run has
none of them, the next kind is taken.

The first quarter of a run is warm-up. Of the rest, the memory that the driver has allocated is fitted by a line, whose
slope is given with its interval of 95 %. It is what malloc has handed out and not got back, looked at every five
seconds once garbage was collected: Python's objects are among it (``PYTHONMALLOC``), what a thread keeps of freed
blocks (``GLIBC_TUNABLES``) and the soak's own notes are not. What is resident is printed beside it: that goes up by
megabytes while as much is allocated, since malloc keeps freed blocks between others.

Of what is counted (descriptors and threads of the driver, files of checkpoints, shared memory) the
medians of the first and the last third are compared; ``threads_since`` names the threads that came after the warm-up.
Throughput is groups per second of processor time, of all processes of the run, in the same thirds. Of runs shorter than
twenty minutes memory and throughput are printed and not judged. Groups that were lost or trained twice, or were too
old, are counted as in ``faults.py``. The command ends with 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

import measure
import numpy as np
import psutil
import ray
from disturbing import hit, living_learners, living_runners, processor_time, titled
from faults import Ledger, Letters, small_model

from gspo_rllib import checkpoints
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.engines.registry import available_engines
from gspo_rllib.errors import CheckpointError

RUNS = ("sync-0", "sync-2", "free-2", "fixed_lag-2", "sync-0-vllm", "free-2-vllm")
"""Schedule and number of env runners of each run, and its engine where that is not the built-in one."""

WARM_UP = 0.25
SHORTEST_S = 120.0
"""Of a shorter run nothing is said about what grows by the piece."""

LOOK_S = 5.0
"""Between two looks: one takes as long as a short iteration."""

SETTLED_S = 1200.0
"""Nor, of a run shorter than this, about memory and speed: a process that comes back costs many iterations."""

MOST_MB_PER_HOUR, LEAST_SPEED = 1.0, 0.95

COUNTED_BY_MALLOC = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""Python's objects, and no freed block that a thread has kept, which malloc takes for handed out."""


class LettersApart(Letters):
    """Letters in a process of their own, which can be killed."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "process": True}


def config(model: str, args: argparse.Namespace) -> Any:
    """What is trained."""
    schedule, runners, *engine = args.child.split("-")
    made = (
        GSPOConfig()
        .environment(LettersApart, env_config={})
        .rl_module(model_config={"path": model})
        .generation(engine=engine[0] if engine else "transformers", max_tokens_per_turn=6)
        .env_runners(num_env_runners=int(runners), num_envs_per_env_runner=2)
        .learners(num_learners=min(1, int(runners)))
        .training(group_size=2, groups_per_iteration=4, num_minibatches=2, lr=1e-4, learner_commit_every=4)
        .fault_tolerance(max_num_env_runner_restarts=1_000_000, env_runner_health_probe_timeout_s=5.0)
        .debugging(seed=1)
    )
    if schedule != "sync":
        made.training(
            max_staleness=1,
            schedule=schedule,
            rollout_correction="truncate",
            rollout_correction_level="sequence_mean",
        )
    return made


@dataclasses.dataclass
class Sample:
    """What was seen after an iteration; memory in MB, but for the soak's own notes, times in seconds."""

    at: float
    groups: int
    cpu: float
    allocated: float
    resident: float
    descriptors: int
    threads: int
    files: int
    shared: float


def thread_names() -> Counter[str]:
    """How many threads the driver has of each name, those of libraries among them; but for gRPC's own pool, which Ray
    talks through: it has a thread more where work waits, and ends it again."""
    names: Counter[str] = Counter()
    for task in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            names[(task / "comm").read_text().strip()] += 1
    names.pop("event_engine", None)
    return names


def look(begun: float, ledger: Ledger, notes: array[float], folder: pathlib.Path) -> Sample:
    """Looks at the driver, and at the processor time of everything below it."""
    measure.release_freed_memory()
    driver = psutil.Process()
    return Sample(
        at=time.monotonic() - begun,
        groups=len(ledger.trained),
        cpu=processor_time(),
        allocated=measure.allocated_mb() - (sys.getsizeof(ledger.trained) + sys.getsizeof(notes)) / 1e6,
        resident=driver.memory_full_info().uss / 1e6,
        descriptors=driver.num_fds(),
        threads=thread_names().total(),
        files=sum(1 for _ in folder.rglob("*")),
        shared=sum(path.stat().st_size for path in pathlib.Path("/dev/shm").iterdir() if path.is_file()) / 1e6,
    )


class Faults(threading.Thread):
    """Makes a fault every so often, of each kind in turn; the next one waits until every runner is back.

    Args:
        algorithm: The run.
        every: Seconds between two.
        seconds: After which there are no more.
        seed: Which of several processes is hit.

    Attributes:
        made: How often each kind was made.
        save_fails: Set for the run's own thread: the next save is to find no room.
    """

    KINDS = ("runner killed", "environment killed", "save failed", "runner stopped", "learner killed")

    def __init__(self, algorithm: Any, every: float, seconds: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._fleet = Fleet.of(algorithm.env_runner_group)
        self._team = algorithm.learner_group
        self._every = every
        self._seconds = seconds
        self._random = random.Random(seed)
        self.made = dict.fromkeys(self.KINDS, 0)
        self.save_fails = threading.Event()
        self.ended = threading.Event()

    def run(self) -> None:
        """Until the run ends."""
        turn, end = 0, time.monotonic() + self._seconds
        while not self.ended.wait(self._every) and time.monotonic() < end:
            if len(living_runners(self._fleet)) < self._fleet.num_remote_env_runners():
                continue
            for _ in self.KINDS:
                kind = self.KINDS[turn % len(self.KINDS)]
                turn += 1
                if self._make(kind):
                    self.made[kind] += 1
                    break

    def _make(self, kind: str) -> bool:
        if kind == "save failed":
            self.save_fails.set()
            return True
        if kind == "environment killed":
            return self._hit(titled("ray::_EnvProcess"), "kill")
        if kind == "learner killed":
            return self._team.is_remote and self._hit(living_learners(self._team), "kill")
        return self._hit(living_runners(self._fleet), "kill" if kind == "runner killed" else "stop")

    def _hit(self, pids: list[int], fault: str) -> bool:
        return bool(pids) and hit(self._random.choice(pids), fault)


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """Files of this process end after a few kilobytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(algorithm: Any, target: pathlib.Path, *, fails: bool) -> None:
    """Saves over the last checkpoint; a save that fails must say so, and leave that one whole."""
    if fails:
        try:
            with no_room():
                algorithm.save_to_path(target)
        except CheckpointError:
            checkpoints.verify(target)
            return
        raise SystemExit("a save without room went unnoticed")
    algorithm.save_to_path(target)


def train(model: str, folder: pathlib.Path, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """One of the runs; what was seen of it."""
    runners = int(args.child.split("-")[1])
    ray.init(address="local", num_cpus=runners + 2, include_dashboard=False, log_to_driver=False)
    algorithm = config(model, args).build_algo()
    saves = folder / "saves"
    saves.mkdir()
    try:
        ledger, faults = Ledger(algorithm), Faults(algorithm, args.every, seconds, args.seed)
        algorithm.train()
        algorithm.save_to_path(saves / "last")
        notes, looked = array("d"), -LOOK_S  # a sample after the other: objects would grow by 0.3 MB/h
        begun, iterations, next_save, threads = time.monotonic(), 0, 0.0, thread_names()
        faults.start()
        while (now := time.monotonic() - begun) < seconds:
            algorithm.train()
            iterations += 1
            fails = faults.save_fails.is_set()
            if fails or now >= next_save:
                save(algorithm, saves / "last", fails=fails)
                faults.save_fails.clear()
                next_save = now + args.every
            if now - looked >= LOOK_S:
                notes.extend(dataclasses.astuple(look(begun, ledger, notes, saves)))
                looked = now
                threads = thread_names() if now < WARM_UP * seconds else threads
        faults.ended.set()
        lost, twice = ledger.lost_and_twice(algorithm)
        return {
            "run": args.child,
            "seconds": round(seconds),
            "iterations": iterations,
            "groups": len(ledger.trained),
            "faults": faults.made,
            "lost": lost,
            "twice": twice,
            "oldest": ledger.oldest,
            "threads_since": dict(thread_names() - threads),
            **summary([Sample(*note) for note in zip(*[iter(notes)] * len(dataclasses.fields(Sample)), strict=True)]),
        }
    finally:
        algorithm.stop()
        ray.shutdown()


def summary(samples: list[Sample]) -> dict[str, Any]:
    """What grew, and what slowed down, after the warm-up."""
    warm = [sample for sample in samples if sample.at >= WARM_UP * samples[-1].at]
    third = max(1, len(warm) // 3)
    first, last = warm[:third], warm[-third:]
    hours, memory = np.array([s.at for s in warm]) / 3600, np.array([s.allocated for s in warm])
    slope, half = slope_with_interval(hours, memory)
    speeds = [(part[-1].groups - part[0].groups) / max(1e-9, processor_time_of(part)) for part in (first, last)]
    grown = {
        name: statistics.median(getattr(s, name) for s in last) - statistics.median(getattr(s, name) for s in first)
        for name in ("descriptors", "threads", "files", "shared")
    }
    return {
        "mb_per_hour": [round(slope - half, 2), round(slope, 2), round(slope + half, 2)],
        "allocated_mb": [round(warm[0].allocated, 1), round(warm[-1].allocated, 1)],
        "resident_mb": [round(warm[0].resident, 1), round(warm[-1].resident, 1)],
        "grown": {name: round(value, 2) for name, value in grown.items()},
        "speed_last_to_first": round(speeds[1] / speeds[0], 3) if speeds[0] else None,
    }


def processor_time_of(samples: list[Sample]) -> float:
    """Seconds between the first and the last, but for times between two in which a lost process took its own along.

    Example:
        >>> processor_time_of([Sample(0, 0, cpu, 0, 0, 0, 0, 0, 0) for cpu in (10.0, 12.0, 5.0, 6.0)])
        3.0
    """
    return sum(max(0.0, later.cpu - earlier.cpu) for earlier, later in itertools.pairwise(samples))


def slope_with_interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the least-squares line, and half its interval of 95 %.

    Neighbouring samples are alike, so the interval is that of the means of ten blocks.
    """
    blocks = [
        (bx.mean(), by.mean()) for bx, by in zip(np.array_split(x, 10), np.array_split(y, 10), strict=True) if len(bx)
    ]
    if len(blocks) < 3:
        return float("nan"), float("inf")
    bx, by = (np.array(column) for column in zip(*blocks, strict=True))
    slope, intercept = np.polyfit(bx, by, 1)
    residual = by - (slope * bx + intercept)
    error = np.sqrt((residual**2).sum() / (len(bx) - 2) / ((bx - bx.mean()) ** 2).sum())
    return float(slope), 2.31 * float(error)


def broken(row: dict[str, Any]) -> list[str]:
    """What did not hold, in words."""
    bound = 0 if row["run"].startswith("sync") else 1
    found = [f"{row[name]} groups {name}" for name in ("lost", "twice") if row[name]]
    found += [f"a group {row['oldest']} versions old"] if row["oldest"] > bound else []
    if row["seconds"] < SHORTEST_S:
        return found
    found += [f"{name} grew by {value}" for name, value in row["grown"].items() if value > 1]
    if row["seconds"] < SETTLED_S:
        return found
    low = row["mb_per_hour"][0]
    found += [f"allocated memory grew by at least {low} MB/h"] if low > MOST_MB_PER_HOUR else []
    speed = row["speed_last_to_first"]
    found += [f"the last third ran at {speed} of the first"] if speed is not None and speed < LEAST_SPEED else []
    return found


def seconds_of(text: str) -> float:
    """``8h``, ``10m``, ``90s``.

    Example:
        >>> seconds_of("10m")
        600.0
    """
    match = re.fullmatch(r"([0-9.]+)([hms])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number and h, m or s, such as 8h")
    return float(match[1]) * {"h": 3600.0, "m": 60.0, "s": 1.0}[match[2]]


def main() -> None:
    """Runs all, prints a line of each, and what did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time", type=seconds_of, default="8h", help="of all runs together, such as 8h or 10m")
    parser.add_argument("--only", choices=RUNS, help="one of the runs; it gets all the time")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--json", type=pathlib.Path, help="where to write what was seen")
    parser.add_argument("--child", choices=RUNS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    runs = [run for run in RUNS if "vllm" in available_engines() or not run.endswith("vllm")]
    runs = [args.only] if args.only else runs
    if args.child:
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            print(json.dumps(train(small_model(folder), folder, args.time, args)))
        return
    rows, failed = [], False
    for run in runs:
        share = f"{args.time / len(runs)}s"
        command = [sys.executable, __file__, "--child", run, "--time", share]
        command += ["--every", str(args.every), "--seed", str(args.seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **COUNTED_BY_MALLOC})
        if done.returncode:
            raise SystemExit(f"{run}: ended with {done.returncode}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        wrong = broken(rows[-1])
        failed |= bool(wrong)
        print(f"{json.dumps(rows[-1])}\n{run}: {'; '.join(wrong) or 'everything held'}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
