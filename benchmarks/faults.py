"""What killing and stopping env runners or learners changes: nothing. Counts what is lost, and compares.

    .venv/bin/python benchmarks/faults.py --kills 200 --stops 20
    .venv/bin/python benchmarks/faults.py --kills 200 --stops 20 --max-staleness 1
    .venv/bin/python benchmarks/faults.py --kills 10 --stops 2 --learners 2 --runners 0 --pause 20

With ``--learners`` it is those that are hit, in place of env runners. A thread kills (SIGKILL) or stops (SIGSTOP) a
random runner at random moments: while the driver samples, learns (runners of a run that takes turns are idle then) or
hands out weights, while the runner is being built after the last time, and all of them at once.

It is done in parts of a few minutes, each a run from the beginning with faults at other moments, which ends when its
time is over and every runner is back. Taking turns, the same iterations are also run undisturbed in this process, once
for all parts: weights, optimiser and sampled ids must be equal to the bit (two learners are compared with two).
Overlapped, the ages of what was trained are checked against the bound, and groups trained per second after the last
fault are compared with those before the first: of this run, and of a twin that nobody disturbs, measured in turn with
it, so that a machine that is slower meanwhile is slower for both. ``--json FILE`` keeps what each part saw, so that a
command that was interrupted, or given few ``--parts``, goes on.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import signal
import statistics
import tempfile
import time
from array import array
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

import gymnasium as gym
import numpy as np
import ray
import torch
from disturbing import Disturber, living_runners, processor_time
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.types import turns
from gspo_rllib.warmstart.models import build_model

SEED = 1
"""Of every run; the moments of the faults have seeds of their own."""

LEAST_SPEED = 0.95


class Letters(gym.Env):  # type: ignore[misc]  # gymnasium is not looked into here
    """Two turns; each pays the share of a letter in the reply, and takes some milliseconds."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    observation_space = action_space = gym.spaces.Text(max_length=1000, min_length=0)

    def __init__(self, seconds: float = 0.02) -> None:
        self._seconds = seconds

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        """Draws the letter."""
        super().reset(seed=seed)
        self._letter, self._turn = "abcdef"[int(self.np_random.integers(6))], 0
        return f"say {self._letter}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Counts it."""
        time.sleep(self._seconds)
        self._turn += 1
        return "again", action.count(self._letter) / max(len(action), 1), self._turn == 2, False, {}


def config(model: str, num_env_runners: int, args: argparse.Namespace, *, seed: int, num_learners: int = 0) -> Any:
    """What is trained, disturbed or not."""
    made = (
        GSPOConfig()
        .environment(Letters)
        .rl_module(model_config={"path": model})
        .generation(engine="transformers", max_tokens_per_turn=6)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=8)
        .learners(num_learners=num_learners)
        .training(group_size=4, groups_per_iteration=args.groups, num_minibatches=2, lr=2e-4, learner_commit_every=4)
        .fault_tolerance(max_num_env_runner_restarts=1_000_000, env_runner_health_probe_timeout_s=args.patience)
        .debugging(seed=seed)
    )
    if args.max_staleness:
        made.training(
            max_staleness=args.max_staleness,
            rollout_correction="truncate",
            rollout_correction_level="sequence_mean",
        )
    return made


class Ledger:
    """What was trained: groups by number, a hash of what was sampled, and the largest age."""

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm
        self.trained = array("Q")  # eight bytes each: a soak looks at what is allocated
        self.oldest = 0
        self.ids = hashlib.sha256()
        update = algorithm.learner_group.update

        def watched(**kwargs: Any) -> Any:
            for group in kwargs["training_data"].groups:
                self.trained.append(int(group.group_id))
                for turn in (turn for episode in group.episodes for turn in turns(episode)):
                    self.ids.update(turn.action_token_ids.tobytes() + turn.action_logp.tobytes())
                    self.oldest = max(self.oldest, algorithm._weights.version - turn.policy_version)
            return update(**kwargs)

        algorithm.learner_group.update = watched

    def lost_and_twice(self, algorithm: Any) -> tuple[int, int]:
        """Groups drawn and neither trained nor still to come; groups trained more than once."""
        state = algorithm.get_state(components=[])
        known = {*self.trained, *map(int, state["unfinished_groups"])}
        return state["next_group"] - len(known), len(self.trained) - len(set(self.trained))


def iter_arrays(tree: Any) -> Any:
    """Every array in nested dicts, by name."""
    if isinstance(tree, dict):
        for name in sorted(tree, key=str):
            yield from iter_arrays(tree[name])
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from iter_arrays(item)
    elif isinstance(tree, (np.ndarray, torch.Tensor, float, int)):
        yield np.asarray(tree)


def digest_of_weights(algorithm: Any) -> str:
    """Of weights and optimiser."""
    learner, digest = algorithm.learner_group.get_state()["learner"], hashlib.sha256()
    for each in iter_arrays([learner["rl_module"][DEFAULT_MODULE_ID], learner["optimizer"]]):
        digest.update(np.ascontiguousarray(each).tobytes())
    return digest.hexdigest()


def digests_of(ledger: Ledger) -> list[str]:
    """What must be equal: of weights and optimiser, of what was sampled, and of the names of the groups."""
    groups = hashlib.sha256(ledger.trained)
    return [digest_of_weights(ledger.algorithm), ledger.ids.hexdigest(), groups.hexdigest()]


def train(ledgers: list[Ledger], iterations: int) -> list[tuple[int, float, float]]:
    """Trains runs in turn, a quarter of the iterations each time; groups, seconds and processor seconds of each."""
    seen = [(0, 0.0, 0.0)] * len(ledgers)
    for turn in range(4):
        for number, ledger in enumerate(ledgers):
            begun, used, before = time.monotonic(), processor_time(), len(ledger.trained)
            for _ in range((iterations + turn) // 4):
                ledger.algorithm.train()
            now = (len(ledger.trained) - before, time.monotonic() - begun, processor_time() - used)
            seen[number] = tuple(map(sum, zip(seen[number], now, strict=True)))  # type: ignore[assignment]
    return seen


def disturbed(model: str, faults: list[str], args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Trains until every fault was made, or the time is over, and every runner is back; what was seen.

    Args:
        model: Folder of the policy.
        faults: What is done, in this order.
        args: The command line.
        seed: Seeds the moments.
    """
    algorithm = config(model, args.runners, args, seed=SEED, num_learners=args.learners).build_algo()
    twin = config(model, args.runners, args, seed=SEED).build_algo() if args.max_staleness else None
    try:
        ledger = Ledger(algorithm)
        measured = [ledger, *([Ledger(twin)] if twin else [])]
        disturber = Disturber(algorithm, faults, pause=args.pause, seconds=args.part_time, seed=seed)
        longest, short = 0.0, 0
        train(measured, 4)
        before, started = train(measured, args.measured), time.monotonic()
        disturber.start()
        while disturber.is_alive() or algorithm.env_runner_group.num_healthy_remote_workers() < args.runners:
            begun, trained = time.monotonic(), len(ledger.trained)
            algorithm.train()
            short += len(ledger.trained) - trained < args.groups
            longest = max(longest, time.monotonic() - begun)
        took = time.monotonic() - started
        # A process that has just begun imports and fills caches with its first groups.
        train(measured, 4)
        after = train(measured, args.measured)
        lost, twice = ledger.lost_and_twice(algorithm)
        seen = {
            "seed": seed,
            "kills": sum(fault == "kill" for _, fault in disturber.done),
            "stops": sum(fault == "stop" for _, fault in disturber.done),
            "moments": dict(collections.Counter(moment for moment, _ in disturber.done)),
            "seconds": round(took),
            "iterations": algorithm.iteration,
            "longest_s": round(longest, 1),
            "groups": len(ledger.trained),
            "lost": lost,
            "twice": twice,
            "short_iterations": short,
            "oldest": ledger.oldest,
            "before": before,
            "after": after,
        }
        if args.learners:
            team = algorithm.learner_group
            seen |= {"rebuilt": team.num_rebuilds, "repeated": team.num_updates_repeated}
        seen["digests"] = digests_of(ledger)
        begun = time.monotonic()
    finally:
        algorithm.stop()
        stop_s = round(time.monotonic() - begun, 1)
        if twin:
            twin.stop()
    return {**seen, "stop_s": stop_s}


def stopped_all(model: str, args: argparse.Namespace) -> None:
    """How long ``stop()`` takes when every runner is stopped."""
    algorithm = config(model, args.runners, args, seed=1).build_algo()
    algorithm.train()
    for pid in living_runners(Fleet.of(algorithm.env_runner_group)):
        os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    algorithm.stop()
    print(f"stop() with all {args.runners} runners stopped took {time.monotonic() - begun:.1f} s")


def small_model(folder: pathlib.Path) -> str:
    """Builds a policy of two layers, whose samples differ, in a folder; its path."""
    sizes: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
    more: dict[str, Any] = {"intermediate_size": 128, "vocab_size": 320, "initializer_range": 0.3, "seed": 7}
    return str(build_model(folder / "model", **sizes, **more, max_position_embeddings=512))


def undisturbed(model: str, iterations: int, args: argparse.Namespace) -> list[list[str]]:
    """Runs so many iterations in this process, undisturbed; what must be equal, after each."""
    learners = args.learners if args.learners > 1 else 0
    algorithm = config(model, 0, args, seed=SEED, num_learners=learners).build_algo()
    try:
        ledger, digests = Ledger(algorithm), []
        for _ in range(iterations):
            algorithm.train()
            digests.append(digests_of(ledger))
    finally:
        algorithm.stop()
    return digests


def kept_speed(parts: list[dict[str, Any]], clock: int) -> float:
    """Groups per second after the faults over before, over the same of the twin: the geometric mean of the parts.

    Args:
        parts: What was seen of each.
        clock: 1 for seconds, 2 for those of the processor.
    """

    def change(part: dict[str, Any], whose: int) -> float:
        before, after = (part[when][whose] for when in ("before", "after"))
        return float(after[0] / after[clock] / (before[0] / before[clock]))

    return statistics.geometric_mean(change(part, 0) / change(part, 1) for part in parts)


def report(parts: list[dict[str, Any]], args: argparse.Namespace) -> bool:
    """Prints what all parts together saw; whether everything held."""

    def total(name: str) -> int:
        return sum(part[name] for part in parts)

    moments = sum((collections.Counter(part["moments"]) for part in parts), collections.Counter[str]())
    oldest = max(part["oldest"] for part in parts)
    whom = f"{args.learners} learners" if args.learners else f"{args.runners} runners"
    print(
        f"{total('kills')} of {args.kills} kills and {total('stops')} of {args.stops} stops of {whom} in {len(parts)} "
        f"runs of {total('iterations')} iterations and {total('seconds')} s together (the longest iteration took "
        f"{max(part['longest_s'] for part in parts):.0f} s), when: {dict(moments)}\n"
        f"{total('lost')} groups of {total('groups')} lost, {total('twice')} trained twice, "
        f"{total('short_iterations')} short iterations; oldest {oldest} (bound {args.max_staleness}); stop() took at "
        f"most {max(part['stop_s'] for part in parts):.1f} s"
    )
    if args.learners:
        print(f"the learners were rebuilt {total('rebuilt')} times, {total('repeated')} updates repeated")
    held = not (total("lost") or total("twice") or total("short_iterations") or oldest > args.max_staleness)
    if args.max_staleness:
        wall, cpu = (kept_speed(parts, clock) for clock in (1, 2))
        print(f"groups per second after ÷ before, over the twin's: {wall:.3f}; per second of processor time {cpu:.3f}")
        return held and cpu >= LEAST_SPEED
    names = ("weights and optimiser", "sampled ids and log-probs", "names of groups")
    differ = {name: sum(not part["equal"][k] for part in parts) for k, name in enumerate(names)}
    longest = max(part["iterations"] for part in parts)
    print(f"against {longest} undisturbed iterations, of {len(parts)} runs differ: {differ}")
    return held and not any(differ.values())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--runners", type=int, default=6)
    parser.add_argument("--learners", type=int, default=0, help="learners in processes of their own, which are hit")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--max-staleness", type=int, default=0)
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds between two faults")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds after which a stopped runner is replaced")
    parser.add_argument("--measured", type=int, default=20, help="iterations of each throughput")
    parser.add_argument("--part-time", type=float, default=120.0, help="seconds of faults in one part")
    parser.add_argument("--parts", type=int, default=1000, help="no more parts than this now")
    parser.add_argument("--json", type=pathlib.Path, help="a line per part is added here, and those there are counted")
    return parser.parse_args()


class Record:
    """What parts of a command have seen, in this process or, where there is a file, in earlier ones.

    Args:
        file: A line is added to it for each.
        settings: Those of the runs; lines of others are not read.

    Attributes:
        parts: One of each run with faults.
        expected: What is equal in an undisturbed run, after each iteration.
    """

    def __init__(self, file: pathlib.Path | None, settings: dict[str, Any]) -> None:
        self._file, self._settings = file, settings
        self.parts: list[dict[str, Any]] = []
        self.expected: list[list[str]] = []
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        for row in map(json.loads, lines):
            if row["settings"] == settings:
                self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        if "undisturbed" in row:
            self.expected = max(self.expected, row["undisturbed"], key=len)
        else:
            self.parts.append(row)

    def add(self, row: dict[str, Any]) -> None:
        """Takes a part, or ``undisturbed``, and writes it down."""
        row = {"settings": self._settings, **row}
        self._take(row)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(f"{json.dumps(row)}\n")

    def left(self, args: argparse.Namespace) -> list[str]:
        """Faults that are still to be made."""
        kills, stops = (getattr(args, n) - sum(part[n] for part in self.parts) for n in ("kills", "stops"))
        return ["kill"] * kills + ["stop"] * stops


def main() -> None:
    """Makes parts until there were faults enough; prints what was lost, and whether anything differs."""
    args = arguments()
    names = ("runners", "learners", "groups", "max_staleness", "patience")
    record = Record(args.json, {name: getattr(args, name) for name in names})
    torch.set_num_threads(1)
    ray.init(
        address="local", num_cpus=2 * args.runners + args.learners + 1, include_dashboard=False, log_to_driver=False
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = small_model(pathlib.Path(folder))
            for _ in range(args.parts):
                faults, seed = record.left(args), 1 + len(record.parts)
                if not faults:
                    break
                random.Random(seed).shuffle(faults)
                seen = disturbed(model, faults, args, seed)
                if not args.max_staleness:
                    if len(record.expected) < seen["iterations"]:
                        record.add({"undisturbed": undisturbed(model, seen["iterations"], args)})
                    pairs = zip(seen["digests"], record.expected[seen["iterations"] - 1], strict=True)
                    seen["equal"] = [one == other for one, other in pairs]
                record.add(seen)
                print(f"part {seed}: {json.dumps(seen)}", flush=True)
            held = report(record.parts, args)
            if args.stops and args.runners and not record.left(args):
                stopped_all(model, args)
    finally:
        ray.shutdown()
    if not held:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
