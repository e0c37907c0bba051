"""What overlapping pays: tokens trained per second with sampling and learning at the same time, over taking turns.

    .venv/bin/python benchmarks/async_loop.py

One core each: one remote env runner with its engine, and the learner in this process, one thread in each. The loops
train the same job: taking turns (sync), overlapped by the clock (async), and overlapped by number (fixed,
``schedule="fixed_lag"``). They are built once and measured in turn, a few iterations each, while the others rest; the
first round is left out.

What could be won is measured first, with the very same work: an iteration's sampling alone, its update alone, and both
at once. Their sum ÷ the time of both at once is the *limit* of this machine: 2 at most, where both take equally long
and have cores of their own, and near 1 where two cores are one core's two threads or others use them. The result is
also given as a share of that limit. Raise ``--observation-chars`` if sampling takes longer (the learner reads all of
them again), lower it if learning does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
import torch
from measure import alternate, median, record
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from workload import TalkEnv, random_model

from gspo_rllib import metrics as names
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.learners.training_data import GroupTrainingData

LOOPS = ("sync", "async", "fixed")
"""Names of the loops, in the order they are measured in."""

WARM_UP = 2
"""Iterations of each loop before measuring starts."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5, help="rounds")
    parser.add_argument("--iterations", type=int, default=3, help="of each loop in a round")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens-per-turn", type=int, default=16)
    parser.add_argument("--observation-chars", type=int, default=24)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--max-staleness", type=int, default=1)
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    parser.add_argument("--record", action="store_true", help="merge the ratio into benchmarks/latest.json")
    return parser.parse_args()


def main() -> None:
    """Measures and prints one row per run."""
    args = arguments()
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    rows: list[dict[str, Any]] = []
    print(
        f"{'loop':>5} {'tokens/s':>8} {'iteration s':>11} {'sampling s':>10} {'learning s':>10} {'weights s':>9} "
        f"{'staleness':>9} {'dropped':>7} {'in flight':>9}"
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = random_model(pathlib.Path(folder), size="small", vocabulary=args.vocabulary)
            loops = {name: build(model, name, args) for name in LOOPS}
            with resting(loops, "sync"):
                alone = halves(loops["sync"], args.groups, args.repetitions)
            limit, parallel = alone["limit"], alone["parallelism"]
            for repetition in range(args.repetitions + 1):
                for name, algorithm in loops.items():
                    with resting(loops, name):
                        if name == "fixed":
                            # What it had asked for before it rested is there by now, which would be a head start.
                            algorithm.train()
                        row = run(algorithm, name, args.iterations if repetition else WARM_UP)
                    if repetition:
                        rows.append(row)
                        print_row(row)
            for algorithm in loops.values():
                algorithm.stop()
    finally:
        ray.shutdown()
    of = {name: [row for row in rows if row["loop"] == name] for name in LOOPS}
    ratios = over(of["async"], of["sync"])
    sampling, learning = (statistics.median(row[name] for row in of["sync"]) for name in ("sampling_s", "learning_s"))
    most = (sampling + learning) / max(sampling, learning)
    print(f"taking turns, sampling takes {sampling:.2f} s and learning {learning:.2f} s: on two idle cores {most:.2f}")
    ratio = statistics.median(ratios)
    print(
        f"async over sync: {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {ratio / limit:.2f} of this machine's "
        f"limit, {ratio / most:.2f} of two idle cores'"
    )
    print(f"fixed over sync: {spread(over(of['fixed'], of['sync']))}")
    print(f"fixed over async: {spread(over(of['fixed'], of['async']))}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if args.record:
        staleness = max(row["staleness"] for row in of["async"])
        details = {"sampling_s": round(sampling, 2), "learning_s": round(learning, 2), "staleness": round(staleness, 2)}
        details |= {"limit": round(limit, 2), "of_limit": round(ratio / limit, 2), "two_processes": round(parallel, 2)}
        record("async_over_sync", ratios, command=__doc__.splitlines()[2].strip(), **details)


def over(these: list[dict[str, Any]], those: list[dict[str, Any]]) -> list[float]:
    """Throughput of one loop over that of another, round by round."""
    return [one["tokens_per_s"] / other["tokens_per_s"] for one, other in zip(these, those, strict=True)]


def spread(ratios: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


@contextlib.contextmanager
def resting(loops: dict[str, Any], measured: str) -> Iterator[None]:
    """Nothing is sampled for the other loops meanwhile."""
    with contextlib.nullcontext() if measured == "async" else loops["async"]._source.paused():
        if measured != "fixed":
            # A runner answers when it has played what it was asked for.
            loops["fixed"].env_runner_group.foreach_env_runner(lambda runner: None, local_env_runner=False)
        yield


def build(model: str, name: str, args: argparse.Namespace) -> Any:
    """One of the loops."""
    max_staleness = 0 if name == "sync" else args.max_staleness
    config = (
        GSPOConfig()
        .environment(
            TalkEnv, env_config={"turns": args.turns, "observation_chars": args.observation_chars, "spread": 0.5}
        )
        .rl_module(model_config={"path": model})
        .generation(engine=args.engine, max_tokens_per_turn=args.tokens_per_turn, max_model_len=1024)
        .env_runners(num_env_runners=1, num_envs_per_env_runner=args.concurrency)
        .learners(num_learners=0)
        .training(group_size=args.group_size, groups_per_iteration=args.groups, max_staleness=max_staleness)
        .debugging(seed=0)
    )
    if max_staleness:
        config.training(rollout_correction="truncate", rollout_correction_level="sequence_mean")
    if name == "fixed":
        config.training(schedule="fixed_lag")
    return config.build_algo()


def halves(algorithm: Any, num_groups: int, repetitions: int) -> dict[str, float]:
    """An iteration's sampling and its update, each alone and both at once: medians in seconds, after a warm-up.

    Args:
        algorithm: The synchronous loop; it is trained a little.
        num_groups: Groups of an iteration.
        repetitions: How often each is timed.
    """
    groups, _ = algorithm._source.take(num_groups)

    def sample() -> None:
        algorithm._source.take(num_groups)

    def learn() -> None:
        data = GroupTrainingData.from_groups(groups, num_minibatches=algorithm.config.num_minibatches, seed=0)
        algorithm.learner_group.update(training_data=data, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0})

    def both() -> None:
        # A thread that waits for the actor: what samples is the actor's process.
        other = threading.Thread(target=sample)
        other.start()
        learn()
        other.join()

    timings = alternate({"sampling_s": sample, "learning_s": learn, "both_s": both}, repetitions)
    found = {name: median(timing, "wall_s") for name, timing in timings.items()}
    sampling, learning, together = found["sampling_s"], found["learning_s"], found["both_s"]
    shared = max(together - abs(sampling - learning), 1e-9)  # the rest of the longer one runs alone
    limit, parallel = (sampling + learning) / together, 2 * min(sampling, learning) / shared
    print(
        f"the same work in two processes: sampling alone {sampling:.2f} s, learning alone {learning:.2f} s, at once "
        f"{together:.2f} s: two processes do {parallel:.2f} times the work of one, and overlap can win {limit:.2f}",
        flush=True,
    )
    return found | {"limit": limit, "parallelism": parallel}


def run(algorithm: Any, name: str, iterations: int) -> dict[str, Any]:
    """Trains for some iterations."""
    started = time.perf_counter()
    results = [algorithm.train() for _ in range(iterations)]
    seconds = time.perf_counter() - started
    learned = [result["learners"][DEFAULT_MODULE_ID] for result in results]
    stream = [result.get(names.GROUP_STREAM, {}) for result in results]

    def timer(name: str) -> float:
        seconds: list[float] = [result["timers"][name] for result in results]
        return statistics.mean(seconds)

    return {
        "loop": name,
        "tokens_per_s": sum(values["num_tokens"] for values in learned) / seconds,
        "iteration_s": seconds / iterations,
        "sampling_s": timer("env_runner_sampling_timer"),
        "learning_s": timer("learner_update_timer"),
        "weights_s": timer("synch_weights"),
        "staleness": statistics.mean(values["staleness"] for values in learned),
        "dropped": sum(counts.get(names.NUM_GROUPS_STALE_DROPPED, 0) for counts in stream),
        "in_flight": statistics.mean(counts.get(names.NUM_GROUPS_IN_FLIGHT, 0) for counts in stream),
    }


def print_row(row: dict[str, Any]) -> None:
    """In the asynchronous loop, sampling is what the learner waited for."""
    print(
        f"{row['loop']:>5} {row['tokens_per_s']:8.0f} {row['iteration_s']:11.2f} {row['sampling_s']:10.2f} "
        f"{row['learning_s']:10.2f} {row['weights_s']:9.2f} {row['staleness']:9.2f} {row['dropped']:7.0f} "
        f"{row['in_flight']:9.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
