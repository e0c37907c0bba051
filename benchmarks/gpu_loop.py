"""The whole loop on one GPU that engine and learner share: where its time goes, against its unavoidable work alone.

    python benchmarks/gpu_loop.py --sizes 0.6b 1.7b --json docs/results/gpu/loop.json
    python benchmarks/gpu_loop.py --device cpu --dtype float32 --sizes tiny --vocabulary 1000 --tokens-per-turn 8

GSPO with vLLM, env runner and learner in this process: random Qwen3 of the real shapes, a bfloat16 engine, a learner of
float32 weights under bfloat16 autocast. Every turn samples as many tokens as it may. The unavoidable work of an
iteration: the very requests it sampled, by raw vLLM at the same concurrency from an empty prefix cache; and a bare
forward and backward pass over the trajectories it trained on, with ``cross_entropy`` for a head. The learner also
computes the old log-probs, a forward pass that bfloat16 needs; optimiser, weight sync and environments are not in the
ideal either. Wall seconds, until the device is done. Memory: the most of the card that anybody used at a time.
With ``--runners 1`` or ``--learners 1`` (actors on half a GPU each) only the phases are timed.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import statistics
import tempfile
from contextlib import nullcontext
from functools import partial
from typing import Any

import gpu
import ray
from bare import bare
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_SAMPLING_TIMER, LEARNER_UPDATE_TIMER, SYNCH_WORKER_WEIGHTS_TIMER, TIMERS
from rollout import noted_requests, raw_vllm
from workload import TalkEnv

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.packing import packed_rows

GROUP_SIZE = 8


class RandomReward(TalkEnv):
    """Rewards by lot: what a random model says has no value to tell apart."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answers anything with text."""
        observation, _, *rest = super().step(action)
        return observation, random.random(), *rest  # type: ignore[return-value]


def build(path: str, args: argparse.Namespace, played: list[Any]) -> Any:
    """The algorithm; ``played`` gets the episodes of every iteration."""

    def keep(samples: list[Any], **_: Any) -> None:
        played[:] = samples

    autocast = None if args.dtype == "float32" else args.dtype
    config = (
        GSPOConfig()
        .environment(RandomReward, env_config={"turns": args.turns, "observation_chars": args.observation_chars})
        .rl_module(model_config={"path": path, "autocast_dtype": autocast})
        .generation(
            engine="vllm", engine_dtype=args.dtype, max_tokens_per_turn=args.tokens_per_turn, max_model_len=4096,
            engine_options=args.options, colocate=args.colocate,
        )
        .env_runners(
            num_env_runners=args.runners, num_envs_per_env_runner=args.groups * GROUP_SIZE // max(1, args.runners),
            num_gpus_per_env_runner=0.5 if args.runners and args.device == "cuda" else 0,
        )
        .learners(
            num_learners=args.learners, num_gpus_per_learner=(0.5 if args.learners else 1) * int(args.device == "cuda")
        )
        .training(
            group_size=GROUP_SIZE, groups_per_iteration=args.groups, num_minibatches=1, lr=1e-6,
            max_tokens_per_micro_batch=args.row_tokens,
        )
        .callbacks(on_sample_end=keep)
        .debugging(seed=0)
    )  # fmt: skip
    if args.compiled:
        config.framework(torch_compile_learner=True)
    return config.build_algo()


def measure_loop(size: str, path: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per measured iteration."""
    played: list[Any] = []
    algo = build(path, args, played)
    if args.runners or args.learners:
        return measure_phases(size, algo, args)
    engine = algo.env_runner._engine
    module = algo.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped()
    engine._stop_token_ids = []
    rows: list[dict[str, Any]] = []
    autocast = None if args.dtype == "float32" else args.dtype
    for _ in range(args.repetitions + 2):
        result: dict[str, Any] = {}
        with noted_requests(engine) as requests, gpu.DeviceMemory() as memory:
            (loop,) = gpu.seconds(partial(_train, algo, result), 1, warm_up=0)
        peak = memory.highest_gb
        algo._weights.push(algo.env_runner_group, force=True)  # an empty prefix cache, as before sampling
        (raw,) = gpu.seconds(partial(raw_vllm, engine, requests, args.groups * GROUP_SIZE), 1, warm_up=0)
        trajectories = [token_trajectory(episode, advantage=1.0) for episode in played]
        rows_of = packed_rows(trajectories, max_tokens=args.row_tokens, sharing=None, device=args.device)
        packed = [row for _, row in rows_of]
        pass_over = partial(bare, module, packed, autocast_dtype=autocast, head=True)
        (trained,) = gpu.seconds(pass_over, 1, warm_up=0)
        module.zero_grad(set_to_none=True)
        sampled = sum(t.num_loss_tokens for t in trajectories)
        phases = result[TIMERS]
        rows.append({
            "size": size, "tokens": sum(t.num_tokens for t in trajectories), "sampled_tokens": sampled, "loop_s": loop,
            "sample_s": phases[ENV_RUNNER_SAMPLING_TIMER], "learn_s": phases[LEARNER_UPDATE_TIMER],
            "sync_s": phases[SYNCH_WORKER_WEIGHTS_TIMER], "raw_vllm_s": raw, "bare_s": trained, "peak_gb": peak,
            "ideal_over_loop": (raw + trained) / loop, "rollout_over_raw": raw / phases[ENV_RUNNER_SAMPLING_TIMER],
            "learner": {k: v for k, v in result["learners"][DEFAULT_MODULE_ID].items() if isinstance(v, (int, float))},
        })  # fmt: skip
        show(rows[-1])
    algo.stop()
    return rows[2:]  # the first ones compile and warm up


def measure_phases(size: str, algo: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per measured iteration of engine and learner in actors: the phases alone, and the GPU's memory."""
    rows: list[dict[str, Any]] = []
    for _ in range(args.repetitions + 2):
        result: dict[str, Any] = {}
        with gpu.DeviceMemory() as memory:
            (loop,) = gpu.seconds(partial(_train, algo, result), 1, warm_up=0)
        phases, learner = result[TIMERS], result["learners"][DEFAULT_MODULE_ID]
        nothing = dict.fromkeys(("raw_vllm_s", "bare_s", "ideal_over_loop", "rollout_over_raw"), float("nan"))
        rows.append({
            "size": size, "tokens": int(learner["num_tokens"]), "sampled_tokens": int(learner["num_sampled_tokens"]),
            "loop_s": loop, "sample_s": phases[ENV_RUNNER_SAMPLING_TIMER], "learn_s": phases[LEARNER_UPDATE_TIMER],
            "sync_s": phases[SYNCH_WORKER_WEIGHTS_TIMER], "peak_gb": memory.highest_gb, **nothing,
        })  # fmt: skip
        show(rows[-1])
    algo.stop()
    return rows[2:]


def _train(algo: Any, result: dict[str, Any]) -> None:
    result |= algo.train()


def show(row: dict[str, Any]) -> None:
    """Prints one line of the table."""
    print(
        f"{row['size']:>5} {row['tokens']:7d} {row['sampled_tokens']:7d} {row['loop_s']:7.2f} {row['sample_s']:7.2f} "
        f"{row['learn_s']:7.2f} {row['sync_s']:7.2f} {row['raw_vllm_s']:8.2f} {row['bare_s']:6.2f} "
        f"{row['ideal_over_loop']:12.2f} {row['rollout_over_raw']:12.2f} {row['peak_gb']:7.1f}",
        flush=True,
    )


def main() -> None:
    """Measures and prints one row per iteration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--sizes", nargs="+", default=["0.6b"], choices=list(gpu.QWEN3))
    parser.add_argument("--vocabulary", type=int, default=gpu.VOCABULARY)
    parser.add_argument("--groups", type=int, default=16, help="of 8 trajectories")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens-per-turn", type=int, default=128)
    parser.add_argument("--observation-chars", type=int, default=64)
    parser.add_argument("--row-tokens", type=int, default=16384, help="max_tokens_per_micro_batch")
    parser.add_argument("--runners", type=int, default=0)
    parser.add_argument("--learners", type=int, default=0, help="in actors; 0: in this process")
    parser.add_argument("--colocate", action="store_true", help="engine and learner take turns in the GPU's memory")
    parser.add_argument("--compiled", action="store_true", help="the learner's layers and head are compiled")
    parser.add_argument("--options", default={}, type=json.loads, help="the engine's options, as JSON")
    parser.add_argument("--repetitions", type=int, default=3, help="iterations that are measured")
    parser.add_argument("--folder", type=pathlib.Path, help="where random models are kept; a temporary one without it")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()
    print(gpu.where(args.device))
    print(
        f"{'model':>5} {'tokens':>7} {'sampled':>7} {'loop s':>7} {'sample':>7} {'learn':>7} {'sync':>7} "
        f"{'raw vLLM':>8} {'bare':>6} {'ideal ÷ loop':>12} {'rollout÷raw':>12} {'peak GB':>7}"
    )
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() if args.folder is None else nullcontext(args.folder) as folder:
        for size in args.sizes:
            path = gpu.random_qwen3(pathlib.Path(folder), size, vocabulary=args.vocabulary, device=args.device)
            found = measure_loop(size, path, args)
            if (args.runners, args.learners) == (0, 0):
                print(f"{size}: median ideal ÷ loop {statistics.median(row['ideal_over_loop'] for row in found):.2f}")
            rows += found
            gpu.free()
            if args.json:  # after each: a long run that is cut off has been worth something
                args.json.write_text(json.dumps({**gpu.where(args.device), "rows": rows}, indent=1) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main()
