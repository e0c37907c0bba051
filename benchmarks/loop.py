"""What the whole synchronous loop takes beside the work it cannot avoid.

    .venv/bin/python benchmarks/loop.py

The loop is GSPO with vLLM, env runner and learner in this process, one thread: sampling, learning, optimiser steps,
weight sync, metrics, everything ``algo.train()`` does. After every iteration its unavoidable work is done once more by
itself: the very requests it sampled, by raw offline vLLM at the same concurrency from an empty prefix cache; and a bare
forward and backward pass over the very trajectories it trained on, with ``cross_entropy`` over the sampled tokens'
logits for a head. The ideal is their sum; optimiser and weight sync are not in it. CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
import torch
from bare import bare
from learner import packed_rows
from measure import record, timed
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import LEARNER_UPDATE_TIMER, SYNCH_WORKER_WEIGHTS_TIMER, TIMERS
from rollout import noted_requests, raw_vllm
from workload import TalkEnv, random_model

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.connectors import token_trajectory

COMMAND = ".venv/bin/python benchmarks/loop.py"


def main() -> None:
    """Measures and prints one row per iteration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5, help="iterations that are measured")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens-per-turn", type=int, default=16)
    parser.add_argument("--observation-chars", type=int, default=24)
    parser.add_argument("--size", default="small", choices=["small", "larger"])
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--folder", type=pathlib.Path, help="where random models are kept; a temporary one without it")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    parser.add_argument("--record", action="store_true", help="merge the ratio into benchmarks/latest.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as temporary:
        model = random_model(args.folder or pathlib.Path(temporary), size=args.size, vocabulary=args.vocabulary)
        rows = measure_loop(model, args)
    ray.shutdown()
    print(f"median {statistics.median(row['ratio'] for row in rows):.2f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if args.record:
        record("loop_over_ideal", [row["ratio"] for row in rows], command=COMMAND, tokens=rows[0]["tokens"])


def build(model: str, args: argparse.Namespace, played: list[Any]) -> Any:
    """The algorithm; ``played`` gets the episodes of every iteration."""

    def keep(samples: list[Any], **_: Any) -> None:
        played[:] = samples

    settings = {"turns": args.turns, "observation_chars": args.observation_chars}
    concurrency = args.groups * args.group_size
    config = (
        GSPOConfig()
        .environment(TalkEnv, env_config=settings)
        .rl_module(model_config={"path": model})
        .generation(
            engine="vllm", max_tokens_per_turn=args.tokens_per_turn,
            max_model_len=2048, engine_options={"kv_cache_memory_bytes": 1 << 30},
        )
        .env_runners(num_env_runners=0, num_envs_per_env_runner=concurrency)
        .training(group_size=args.group_size, groups_per_iteration=args.groups, num_minibatches=4, lr=1e-6)
        .callbacks(on_sample_end=keep)
        .debugging(seed=0)
    )  # fmt: skip
    return config.build_algo()


def measure_loop(model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per measured iteration."""
    played: list[Any] = []
    algo = build(model, args, played)
    runner = algo.env_runner
    engine = runner._engine
    module = algo.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped()
    # Every turn samples as many tokens as it may, so that iterations are alike.
    engine._stop_token_ids = []
    rows: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    _print_head()
    for iteration in range(args.repetitions + 1):
        with noted_requests(engine) as requests:
            loop = timed(lambda: results.append(algo.train()))
        trajectories = [token_trajectory(episode, advantage=1.0) for episode in played]
        algo._weights.push(algo.env_runner_group, force=True)  # an empty prefix cache, as before sampling
        raw = timed(partial(raw_vllm, engine, requests, args.groups * args.group_size))
        minibatches = packed_rows(trajectories)
        trained = timed(partial(bare, module, minibatches, head=True))
        if not iteration:  # the first one warms up
            continue
        phases = results[-1][TIMERS]
        rows.append(
            {
                "tokens": sum(t.num_tokens for t in trajectories),
                "sampled_tokens": sum(t.num_loss_tokens for t in trajectories),
                "loop_cpu_s": loop.cpu_s,
                "loop_wall_s": loop.wall_s,
                "learn_wall_s": phases[LEARNER_UPDATE_TIMER],
                "sync_wall_s": phases[SYNCH_WORKER_WEIGHTS_TIMER],
                "raw_vllm_cpu_s": raw.cpu_s,
                "bare_cpu_s": trained.cpu_s,
                "ratio": (raw.cpu_s + trained.cpu_s) / loop.cpu_s,
            }
        )
        _print(rows[-1])
    algo.stop()
    return rows


def _print_head() -> None:
    print(
        f"{'tokens':>7} {'sampled':>7} {'loop CPU s':>10} {'wall s':>7} {'learn s':>7} {'sync s':>7} {'raw vLLM':>8} "
        f"{'bare':>6} {'ideal ÷ loop':>12}"
    )


def _print(row: dict[str, Any]) -> None:
    print(
        f"{row['tokens']:7d} {row['sampled_tokens']:7d} {row['loop_cpu_s']:10.2f} {row['loop_wall_s']:7.2f} "
        f"{row['learn_wall_s']:7.2f} {row['sync_wall_s']:7.2f} {row['raw_vllm_cpu_s']:8.2f} "
        f"{row['bare_cpu_s']:6.2f} {row['ratio']:12.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
