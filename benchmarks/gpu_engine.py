"""The transformers engine on a GPU: how near its log-probs are to the learner's, tokens per second, and weight sync.

    python benchmarks/gpu_engine.py --sizes 0.6b --json docs/results/gpu/engine.json

Random Qwen3 of the real shapes. *Exactness*: 32 requests are sampled with the learner's weights; the learner scores the
same tokens in packed rows. Printed per pair of precisions: mean and largest |difference| of a token's log-prob (nats),
and the root mean square of a trajectory's mean difference, which is what a ratio per sequence is off by. *Speed*:
requests of one prompt length at once, all with as many tokens; steps per second say what a forward pass costs. *Sync*:
the learner's weights to host memory, and from there into the engine.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import gpu
import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from gspo_rllib import columns
from gspo_rllib.engines.protocol import EngineSpec, GenerationRequest
from gspo_rllib.engines.transformers import TransformersEngine
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.packing import packed_rows
from gspo_rllib.types import TokenTrajectory
from gspo_rllib.weight_sync import inference_state

CONTEXT = 2048


def learner_module(path: str, device: str, autocast: str | None) -> CausalLMModule:
    """The policy as the learner has it."""
    text = gym.spaces.Text(1)
    settings = {"path": path, "autocast_dtype": autocast, "shared_prefixes": False}
    spec = RLModuleSpec(CausalLMModule, observation_space=text, action_space=text, model_config=settings)
    module: CausalLMModule = spec.build().to(device)
    module.train()
    return module


def build_engine(path: str, device: str, dtype: str, slots: int) -> TransformersEngine:
    """An engine that holds no weights of a version yet."""
    spec = EngineSpec(
        engine="transformers", model=path, dtype=dtype, max_model_len=CONTEXT, max_num_seqs=slots, stop_token_ids=(),
        seed=0, device=device,
    )  # fmt: skip
    return TransformersEngine(spec)


def sample(engine: TransformersEngine, prompts: list[list[int]], num_tokens: int, name: str) -> tuple[list[Any], int]:
    """Generations in the order of the prompts, and how many steps they took."""
    for i, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(f"{name} {i}", prompt, num_tokens, 1.0, i, ()))
    done: dict[str, Any] = {}
    steps = 0
    while engine.has_work():
        done |= {g.request_id: g for g in engine.step()}
        steps += 1
    return [done[f"{name} {i}"] for i in range(len(prompts))], steps


def prompts_of(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """Random ids, no two alike."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, vocabulary, length).tolist() for _ in range(count)]


@torch.no_grad()
def differences(module: CausalLMModule, prompts: list[list[int]], generations: list[Any], device: str) -> list[Any]:
    """Learner minus engine, per trajectory."""
    trajectories = []
    for i, (prompt, generation) in enumerate(zip(prompts, generations, strict=True)):
        ids, sampled = np.array([*prompt, *generation.token_ids], np.int32), len(generation.token_ids)
        trajectories.append(
            TokenTrajectory(
                group_id=f"g{i}", index=0, segments=(ids,), loss_masks=(np.arange(len(ids)) >= len(prompt),),
                turn_index=np.zeros(sampled, np.int64), behavior_logp=generation.logp, behavior_version=0,
                turn_rewards=np.zeros(1), advantages=np.ones(sampled, np.float32),
            )
        )  # fmt: skip
    found: list[Any] = []
    for members, row in packed_rows(trajectories, max_tokens=16384, sharing=None, device=device):
        gap = (module._forward_train(row)[columns.LOGP] - row[columns.BEHAVIOR_LOGP]).cpu()
        found += gap.split([trajectories[i].num_loss_tokens for i in members])
    return found


def exactness(path: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per pair of precisions."""
    rows = []
    prompts = prompts_of(32, args.prompt, args.vocabulary)
    for engine_dtype, autocast in (("float32", None), ("bfloat16", "bfloat16"), ("bfloat16", None)):
        module = learner_module(path, args.device, autocast)
        engine = build_engine(path, args.device, engine_dtype, 32)
        start = time.perf_counter()
        state = inference_state(module, copy=True)
        gpu.synchronise()
        middle = time.perf_counter()
        engine.load_weights(state, 1)
        gpu.synchronise()
        end = time.perf_counter()
        generations, _ = sample(engine, prompts, args.tokens, "exact")
        gaps = differences(module, prompts, generations, args.device)
        every = torch.cat(gaps)
        rows.append({
            "engine": engine_dtype, "learner": autocast or "float32", "tokens": len(every),
            "mean_abs": float(every.abs().mean()), "max_abs": float(every.abs().max()),
            "sequence_rms": float(torch.stack([g.mean() for g in gaps]).square().mean().sqrt()),
            "mean": float(every.mean()), "to_host_s": middle - start, "load_s": end - middle,
            "weights_gb": sum({id(a): a.nbytes for a in state.values()}.values()) / 1e9,
        })  # fmt: skip
        print("exactness", rows[-1], flush=True)
        engine.close()
        del module, engine, state
        gpu.free()
    return rows


def speed(path: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per number of requests at once."""
    rows = []
    engine = build_engine(path, args.device, args.dtype, max(args.slots))
    module = learner_module(path, args.device, None)
    engine.load_weights(inference_state(module, copy=True), 1)
    del module
    gpu.free()
    for slots in args.slots:
        prompts = prompts_of(slots, args.prompt, args.vocabulary)
        sample(engine, prompts, 4, f"warm {slots}")
        gpu.synchronise()
        start = time.perf_counter()
        generations, steps = sample(engine, prompts, args.tokens, f"timed {slots}")
        gpu.synchronise()
        took = time.perf_counter() - start
        count = sum(len(g.token_ids) for g in generations)
        rows.append({
            "dtype": args.dtype, "slots": slots, "tokens": count, "s": took, "tokens_per_s": count / took,
            "steps": steps, "ms_per_step": 1e3 * took / steps,
        })  # fmt: skip
        print("speed", rows[-1], flush=True)
        if args.profile:
            busy = gpu.kernels(partial(sample, engine, prompts, 8, f"profiled {slots}"), rows=8)
            print(f"{slots} requests, 8 tokens each: {busy}", flush=True)
    engine.close()
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="for the speed")
    parser.add_argument("--sizes", nargs="+", default=["0.6b"], choices=list(gpu.QWEN3))
    parser.add_argument("--vocabulary", type=int, default=gpu.VOCABULARY)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128, help="sampled per request")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--folder", type=pathlib.Path, help="where random models are kept; a temporary one without it")
    parser.add_argument("--profile", action="store_true", help="also print the kernels of decoding")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()
    print(gpu.where(args.device))
    found: dict[str, Any] = gpu.where(args.device)
    with tempfile.TemporaryDirectory() if args.folder is None else nullcontext(args.folder) as folder:
        for size in args.sizes:
            path = gpu.random_qwen3(pathlib.Path(folder), size, vocabulary=args.vocabulary, device=args.device)
            found[size] = {"exactness": exactness(path, args), "speed": speed(path, args)}
            if args.json:
                args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
