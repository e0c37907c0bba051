"""What killing and stopping env runners or learners changes: nothing. Counts what is lost, and compares.

    .venv/bin/python benchmarks/faults.py --kills 200 --stops 20
    .venv/bin/python benchmarks/faults.py --kills 200 --stops 20 --max-staleness 1
    .venv/bin/python benchmarks/faults.py --kills 10 --stops 2 --learners 2 --runners 0 --pause 20

With ``--learners`` it is those that are hit, in place of env runners. A thread kills (SIGKILL) or stops (SIGSTOP) a
random runner at random moments, one time in ten all of them: while they sample, load weights, are idle, or are still
being built after the last time. The run ends when all of that was done and every runner is back. Taking turns, the same
iterations are then run undisturbed in this process: weights, optimiser and sampled ids must be equal to the bit (two
learners are compared with two). Overlapped, the ages of what was trained are checked against the bound, and groups
trained per second after the last fault are compared with those before the first.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import pathlib
import random
import signal
import tempfile
import threading
import time
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

import gymnasium as gym
import numpy as np
import psutil
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.driver.processes import actor_entry
from gspo_rllib.types import turns
from gspo_rllib.warmstart.models import build_model


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


def config(model: str, num_env_runners: int, args: argparse.Namespace, *, num_learners: int = 0) -> Any:
    """What is trained, disturbed or not."""
    made = (
        GSPOConfig()
        .environment(Letters)
        .rl_module(model_config={"path": model})
        .generation(engine="transformers", max_tokens_per_turn=6)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=8)
        .learners(num_learners=num_learners)
        .training(group_size=4, groups_per_iteration=args.groups, num_minibatches=2, lr=1e-3, learner_commit_every=4)
        .fault_tolerance(max_num_env_runner_restarts=1_000_000, env_runner_health_probe_timeout_s=args.patience)
        .debugging(seed=1)
    )
    if args.max_staleness:
        made.training(
            max_staleness=args.max_staleness,
            rollout_correction="truncate",
            rollout_correction_level="sequence_mean",
        )
    return made


class Ledger:
    """What was trained: names of groups, a hash of what was sampled, and the largest age."""

    def __init__(self, algorithm: Any) -> None:
        self.trained: list[str] = []
        self.oldest = 0
        self.ids = hashlib.sha256()
        update = algorithm.learner_group.update

        def watched(**kwargs: Any) -> Any:
            for group in kwargs["training_data"].groups:
                self.trained.append(group.group_id)
                for turn in (turn for episode in group.episodes for turn in turns(episode)):
                    self.ids.update(turn.action_token_ids.tobytes() + turn.action_logp.tobytes())
                    self.oldest = max(self.oldest, algorithm._weights.version - turn.policy_version)
            return update(**kwargs)

        algorithm.learner_group.update = watched

    def lost_and_twice(self, algorithm: Any) -> tuple[int, int]:
        """Groups drawn and neither trained nor still to come; groups trained more than once."""
        state = algorithm.get_state(components=[])
        known = {*self.trained, *state["unfinished_groups"]}
        return state["next_group"] - len(known), len(self.trained) - len(set(self.trained))


class Disturber(threading.Thread):
    """Kills and stops runners, or learners."""

    def __init__(self, algorithm: Any, args: argparse.Namespace) -> None:
        super().__init__(daemon=True)
        self._fleet = Fleet.of(algorithm.env_runner_group)
        self._team = algorithm.learner_group
        self._pause = args.pause
        self._random = random.Random(args.seed)
        self._faults = ["kill"] * args.kills + ["stop"] * args.stops
        self._random.shuffle(self._faults)
        self.done: list[str] = []

    def run(self) -> None:
        """Until every fault was made."""
        while len(self.done) < len(self._faults):
            time.sleep(self._random.uniform(0, 2 * self._pause))
            alive = [pid for pid in self._processes() if pid]
            self._random.shuffle(alive)
            for pid in alive if self._random.random() < 0.1 else alive[:1]:
                if len(self.done) < len(self._faults) and self._hit(pid, self._faults[len(self.done)]):
                    self.done.append(self._faults[len(self.done)])

    def _processes(self) -> list[int]:
        """Of runners that run, and of those that are being built; or of learners."""
        if self._team.is_remote:
            # While they are rebuilt there is none: a run ends where an update fails twice.
            return [] if self._team._is_healing else [int(actor_entry(w).get("Pid") or 0) for w in self._team._workers]
        entries = [self._fleet._entry(worker) for worker in self._fleet._worker_manager.actors()]
        return [int(entry.get("Pid") or 0) for entry in entries if entry.get("State") in ("ALIVE", "RESTARTING")]

    @staticmethod
    def _hit(pid: int, fault: str) -> bool:
        try:
            if psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                return False
            os.kill(pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        except (psutil.Error, ProcessLookupError):
            return False
        return True


def weights_of(algorithm: Any) -> dict[str, Any]:
    """Weights and the optimiser's state, flat."""
    learner = algorithm.learner_group.get_state()["learner"]
    flat = {name: np.asarray(value) for name, value in learner["rl_module"][DEFAULT_MODULE_ID].items()}
    for number, moments in enumerate(iter_arrays(learner["optimizer"])):
        flat[f"optimizer/{number}"] = moments
    return flat


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


def disturbed(model: str, args: argparse.Namespace) -> tuple[int, Ledger, dict[str, Any]]:
    """Trains until every fault was made and every runner is back; iterations, what was trained, and weights."""
    algorithm = config(model, args.runners, args, num_learners=args.learners).build_algo()
    try:
        ledger, disturber = Ledger(algorithm), Disturber(algorithm, args)
        rates, longest, iterations = {"before": 0.0, "after": 0.0}, 0.0, 0
        short = 0

        def train() -> None:
            nonlocal iterations, longest, short
            begun, before = time.monotonic(), len(ledger.trained)
            algorithm.train()
            iterations += 1
            short += len(ledger.trained) - before < args.groups
            longest = max(longest, time.monotonic() - begun)

        def measure(when: str) -> None:
            begun, before = time.monotonic(), len(ledger.trained)
            for _ in range(args.measured):
                train()
            rates[when] = (len(ledger.trained) - before) / (time.monotonic() - begun)

        train()
        measure("before")
        started = time.monotonic()
        disturber.start()
        while disturber.is_alive() or algorithm.env_runner_group.num_healthy_remote_workers() < args.runners:
            train()
        took = time.monotonic() - started
        train()
        measure("after")
        lost, twice = ledger.lost_and_twice(algorithm)
        print(
            f"{disturber.done.count('kill')} kills and {disturber.done.count('stop')} stops of "
            f"{f'{args.learners} learners' if args.learners else f'{args.runners} runners'} "
            f"in {took:.0f} s and {iterations} iterations (the longest took {longest:.0f} s): {lost} groups of "
            f"{len(ledger.trained)} lost, {twice} trained twice, {short} short iterations; oldest {ledger.oldest} "
            f"(bound {args.max_staleness}); groups/s after ÷ before {rates['after'] / rates['before']:.2f}"
        )
        if args.learners:
            team = algorithm.learner_group
            print(f"the learners were rebuilt {team.num_rebuilds} times, {team.num_updates_repeated} updates repeated")
        final = weights_of(algorithm)
        begun = time.monotonic()
    finally:
        algorithm.stop()
    print(f"stop() took {time.monotonic() - begun:.1f} s")
    return iterations, ledger, final


def stopped_all(model: str, args: argparse.Namespace) -> None:
    """How long ``stop()`` takes when every runner is stopped."""
    algorithm = config(model, args.runners, args).build_algo()
    algorithm.train()
    fleet = Fleet.of(algorithm.env_runner_group)
    for worker in fleet._worker_manager.actors():
        os.kill(int(fleet._entry(worker)["Pid"]), signal.SIGSTOP)
    begun = time.monotonic()
    algorithm.stop()
    print(f"stop() with all {args.runners} runners stopped took {time.monotonic() - begun:.1f} s")


def small_model(folder: pathlib.Path) -> str:
    """Builds a policy of two layers, whose samples differ, in a folder; its path."""
    sizes: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
    more: dict[str, Any] = {"intermediate_size": 128, "vocab_size": 320, "initializer_range": 0.3, "seed": 7}
    return str(build_model(folder / "model", **sizes, **more, max_position_embeddings=512))


def main() -> None:
    """Prints what was lost, and whether anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--runners", type=int, default=6)
    parser.add_argument("--learners", type=int, default=0, help="learners in processes of their own, which are hit")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--max-staleness", type=int, default=0)
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds between two faults")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds after which a stopped runner is replaced")
    parser.add_argument("--measured", type=int, default=5, help="iterations of each throughput")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=args.runners + args.learners + 1, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = small_model(pathlib.Path(folder))
            iterations, ledger, weights = disturbed(model, args)
            if not args.max_staleness:
                compare(model, iterations, ledger, weights, args)
            if args.stops and args.runners:
                stopped_all(model, args)
    finally:
        ray.shutdown()


def compare(model: str, iterations: int, ledger: Ledger, weights: dict[str, Any], args: argparse.Namespace) -> None:
    """Runs the same iterations in this process, undisturbed."""
    algorithm = config(model, 0, args, num_learners=args.learners if args.learners > 1 else 0).build_algo()
    try:
        undisturbed = Ledger(algorithm)
        for _ in itertools.repeat(None, iterations):
            algorithm.train()
        expected = weights_of(algorithm)
    finally:
        algorithm.stop()
    differing = [name for name in expected if name not in weights or not np.array_equal(expected[name], weights[name])]
    print(
        f"against {iterations} undisturbed iterations: {len(differing)} of {len(expected)} arrays of weights and "
        f"optimiser differ; sampled ids and log-probs "
        f"{'are equal' if undisturbed.ids.digest() == ledger.ids.digest() else 'DIFFER'}; groups "
        f"{'are equal' if undisturbed.trained == ledger.trained else 'DIFFER'}"
    )
    if differing or undisturbed.ids.digest() != ledger.ids.digest():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
