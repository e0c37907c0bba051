"""An engine on a GPU: how near its log-probs are to the learner's, tokens per second, and weight sync.

    python benchmarks/gpu_engine.py --sizes 0.6b --json docs/results/gpu/engine.json
    python benchmarks/gpu_engine.py --engine vllm --sizes 0.6b 1.7b --json docs/results/gpu/vllm.json

Random Qwen3 of the real shapes. *Exactness*: 32 requests are sampled with the learner's weights; the learner scores the
same tokens in packed rows. Printed per pair of precisions: mean and largest |difference| of a token's log-prob (nats),
and the root mean square of a trajectory's mean difference, which is what a ratio per sequence is off by. *Speed*:
requests of one prompt length at once, all with as many tokens; steps per second say what a forward pass costs. With
vLLM the same requests also go to its own loop, once with the very sampling options the engine gives it (*raw*) and once
without seeds and log-probs (*plain*). *Sync*: the learner's weights to host memory, and from there into the engine.
*Graphs* (``--graphs``): what transformers' own model takes for a decode step with a static cache, launched as it comes
and replayed as a CUDA graph: a bound for an engine that would replay its steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import gpu
import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from transformers import AutoModelForCausalLM, StaticCache

from gspo_rllib import columns
from gspo_rllib.engines.protocol import Engine, EngineSpec, GenerationRequest
from gspo_rllib.engines.registry import acquire, release
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.packing import packed_rows
from gspo_rllib.policy_state import inference_state
from gspo_rllib.types import TokenTrajectory

CONTEXT = 2048
PRECISIONS = (("bfloat16", "bfloat16"), ("float32", None), ("bfloat16", None))
"""Of engine and learner."""


def learner_module(path: str, device: str, autocast: str | None) -> CausalLMModule:
    """The policy as the learner has it."""
    text = gym.spaces.Text(1)
    settings = {"path": path, "autocast_dtype": autocast, "shared_prefixes": False}
    spec = RLModuleSpec(CausalLMModule, observation_space=text, action_space=text, model_config=settings)
    module: CausalLMModule = spec.build().to(device)
    module.train()
    return module


def build_engine(path: str, args: argparse.Namespace, dtype: str, slots: int) -> Engine:
    """An engine that holds no weights of a version yet."""
    spec = EngineSpec(
        engine=args.engine, model=path, dtype=dtype, max_model_len=CONTEXT, max_num_seqs=slots, stop_token_ids=(),
        seed=0, device=args.device, options=args.options,
    )  # fmt: skip
    start = time.perf_counter()
    engine = acquire(spec)
    print(f"{args.engine} {dtype} started in {time.perf_counter() - start:.1f} s", flush=True)
    return engine


def sample(engine: Engine, prompts: list[list[int]], num_tokens: int, name: str) -> tuple[list[Any], int]:
    """Generations in the order of the prompts, and how many steps they took."""
    for i, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(f"{name} {i}", prompt, num_tokens, 1.0, i, ()))
    done: dict[str, Any] = {}
    steps = 0
    while engine.has_work():
        done |= {g.request_id: g for g in engine.step()}
        steps += 1
    return [done[f"{name} {i}"] for i in range(len(prompts))], steps


def prompts_of(count: int, length: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Random ids, no two alike; another seed's are others, so that nothing of them is in a prefix cache."""
    rng = np.random.default_rng(seed)
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
    for engine_dtype, autocast in PRECISIONS[: args.precisions]:
        module = learner_module(path, args.device, autocast)
        engine = build_engine(path, args, engine_dtype, 32)
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
        release(engine)
        del module, engine, state
        gpu.free()
    return rows


def speed(path: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per number of requests at once."""
    rows = []
    engine = build_engine(path, args, args.dtype, max(args.slots))
    module = learner_module(path, args.device, None)
    engine.load_weights(inference_state(module, copy=True), 1)
    del module
    gpu.free()
    for slots in args.slots:
        steps, seeds = 0, itertools.count()

        def fresh(count: int = slots, seeds: Iterator[int] = seeds) -> list[list[int]]:
            return prompts_of(count, args.prompt, args.vocabulary, 1 + next(seeds))

        def run(fresh: Any = fresh, seeds: Any = seeds) -> None:
            nonlocal steps
            _, steps = sample(engine, fresh(), args.tokens, f"timed {next(seeds)}")

        took = gpu.median(gpu.seconds(run, args.repetitions))
        count = slots * args.tokens
        rows.append({
            "dtype": args.dtype, "slots": slots, "tokens": count, "s": took, "tokens_per_s": count / took,
            "steps": steps, "ms_per_step": 1e3 * took / steps,
        })  # fmt: skip
        if args.engine == "vllm":
            for way, options in (("raw", {}), ("plain", {"seed": None, "logprobs": None, "flat_logprobs": False})):

                def run_raw(fresh: Any = fresh, options: Any = options) -> None:
                    raw_vllm(engine, fresh(), args.tokens, options)

                raw = gpu.median(gpu.seconds(run_raw, args.repetitions))
                rows[-1][f"{way}_tokens_per_s"] = count / raw
        print("speed", rows[-1], flush=True)
        if args.profile:
            busy = gpu.kernels(partial(sample, engine, fresh(), 8, f"profiled {slots}"), rows=8)
            print(f"{slots} requests, 8 tokens each: {busy}", flush=True)
    release(engine)
    return rows


def raw_vllm(engine: Any, prompts: list[list[int]], num_tokens: int, changes: dict[str, Any]) -> None:
    """vLLM's own loop over all prompts at once, with the sampling options of its engine here and some changes."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for i, prompt in enumerate(prompts):
        options = {
            "max_tokens": num_tokens, "temperature": 1.0, "seed": i, "ignore_eos": True, "logprobs": 0,
            "flat_logprobs": True, "detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY,
        }  # fmt: skip
        parameters = SamplingParams(**(options | changes))
        engine._engine.add_request(request_id=str(i), prompt={"prompt_token_ids": prompt}, params=parameters)
    left = len(prompts)
    while left:
        left -= sum(output.finished for output in engine._engine.step())


@torch.no_grad()
def graphs(path: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per number of requests: a decode step launched kernel by kernel, and replayed as one CUDA graph."""
    rows = []
    model = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).to(args.device).eval()
    for slots in args.slots:
        ids = torch.tensor(prompts_of(slots, args.prompt, args.vocabulary), device=args.device)
        cache = StaticCache(config=model.config, max_cache_len=args.prompt + args.tokens)
        token = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        first, places = token.clone(), torch.arange(args.prompt + args.tokens, device=args.device)

        def step(token: Any = token, cache: Any = cache, places: Any = places) -> None:
            place = cache.layers[0].cumulative_length
            seen = {"attention_mask": (places <= place).expand(len(token), 1, 1, -1), "position_ids": place.view(1, 1)}
            token.copy_(model(token, past_key_values=cache, **seen).logits.argmax(-1))

        def decode(step: Any, token: Any = token, first: Any = first, cache: Any = cache) -> None:
            token.copy_(first)
            for layer in cache.layers:
                layer.cumulative_length.fill_(args.prompt)
            for _ in range(args.tokens):
                step()

        decode(step)
        expected = token.clone()
        row: dict[str, Any] = {"dtype": args.dtype, "slots": slots}
        ways: dict[str, Callable[[], Any]] = {"launched": step}
        if args.device == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            ways["replayed"] = graph.replay
        for way, function in ways.items():
            took = gpu.median(gpu.seconds(partial(decode, function), args.repetitions))
            row |= {f"{way}_ms_per_step": 1e3 * took / args.tokens, f"{way}_alike": bool(torch.equal(token, expected))}
        rows.append(row)
        print("graphs", row, flush=True)
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="transformers", help="name of a registered engine")
    parser.add_argument("--options", default={}, type=json.loads, help="the engine's options, as JSON")
    parser.add_argument("--precisions", type=int, default=len(PRECISIONS), help="how many of the pairs")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="for the speed")
    parser.add_argument("--sizes", nargs="+", default=["0.6b"], choices=list(gpu.QWEN3))
    parser.add_argument("--vocabulary", type=int, default=gpu.VOCABULARY)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128, help="sampled per request")
    parser.add_argument("--repetitions", type=int, default=3, help="of every timing, after one that does not count")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--folder", type=pathlib.Path, help="where random models are kept; a temporary one without it")
    parser.add_argument("--profile", action="store_true", help="also print the kernels of decoding")
    parser.add_argument("--graphs", action="store_true", help="also bound what replaying decode steps would give")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()
    print(gpu.where(args.device))
    found: dict[str, Any] = gpu.where(args.device)
    with tempfile.TemporaryDirectory() if args.folder is None else nullcontext(args.folder) as folder:
        for size in args.sizes:
            path = gpu.random_qwen3(pathlib.Path(folder), size, vocabulary=args.vocabulary, device=args.device)
            found[size] = {"options": args.options, "exactness": exactness(path, args)}
            if args.json:  # a long run that is cut off has been worth something
                args.json.write_text(json.dumps(found, indent=1) + "\n")
            found[size]["speed"] = speed(path, args)
            if args.graphs:
                gpu.free()
                found[size]["graphs"] = graphs(path, args)
            if args.json:
                args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
