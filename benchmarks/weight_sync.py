"""What it costs to give every engine the learner's weights, against one copy of the same bytes in memory.

    .venv/bin/python benchmarks/weight_sync.py
    .venv/bin/python benchmarks/weight_sync.py --models tied --runners 0 --profile
    .venv/bin/python benchmarks/weight_sync.py --models dense --remote 2 --engine transformers

Dense, tied and mixture-of-experts models with random weights; the engine in the driver's process (0 runners), then in
one and two Ray actors. Stages of a sync: *state* (the learner's weights as arrays, in Ray's object store where engines
are in actors), *engines* (until every engine has acknowledged). All weights change between two syncs. Wall
milliseconds, since stages cross processes; the copy is timed between the syncs. A tied matrix counts once.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import json
import os
import pathlib
import pstats
import statistics
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import measure
import numpy as np
import ray

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.gspo.gspo import GSPO
from gspo_rllib.model_folder import quiet_transformers
from gspo_rllib.warmstart.models import build_model
from gspo_rllib.weight_sync import Weights

VOCABULARY = 32768
_LAYERS = {"hidden_size": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {**_LAYERS, "intermediate_size": 1536},
    "tied": {**_LAYERS, "intermediate_size": 1536, "tie_word_embeddings": True},
    "moe": {
        **_LAYERS, "num_layers": 4, "intermediate_size": 512, "architecture": "qwen3_moe",
        "num_experts": 16, "num_experts_per_token": 2,
    },
}  # fmt: skip
STAGES = ("state", "engines")
_WARM_UP = 2  # of an engine's first two updates one builds it, and one shows where its parts belong


def build(folder: pathlib.Path, sizes: dict[str, Any]) -> str:
    """A model folder with a large vocabulary, of which the tokenizer uses the first few hundred ids."""
    build_model(folder, **sizes)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    config.vocab_size = VOCABULARY
    with quiet_transformers():
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return str(folder)


def algorithm(model: str, num_env_runners: int, engine: str) -> GSPO:
    """An algorithm whose engines hold the learner's first weights."""
    algo: GSPO = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Arithmetic-v0")
        .rl_module(model_config={"path": model})
        .generation(
            engine=engine, max_model_len=256, max_tokens_per_turn=8, engine_options={"kv_cache_memory_bytes": 64 << 20}
        )
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=4)
        .debugging(seed=0)
        .build_algo()
    )
    return algo


def sync(algo: GSPO) -> dict[str, float]:
    """One sync, stage by stage, in seconds."""
    marks = [time.perf_counter()]
    weights = Weights(algo.learner_group)
    marks.append(time.perf_counter())
    weights.push(algo.env_runner_group, force=True)
    marks.append(time.perf_counter())
    return {stage: end - start for stage, (start, end) in zip(STAGES, itertools.pairwise(marks), strict=True)}


def measured(algo: GSPO, name: str, repetitions: int) -> dict[str, Any]:
    """One row: medians of the stages and of the copy, in seconds."""
    module = algo.learner_group._learner.module["default_policy"].unwrapped()
    arrays = [parameter.detach().numpy() for parameter in module.policy_parameters()]
    copies = [np.empty_like(array) for array in arrays]
    gigabytes = sum(array.nbytes for array in arrays) / 1e9

    def copy() -> None:
        for target, array in zip(copies, arrays, strict=True):
            np.copyto(target, array)

    syncs, copied = [], []
    for repetition in range(repetitions + _WARM_UP):
        for array in arrays:
            array *= 1.01
        took = sync(algo)
        timing = measure.timed(copy)
        if repetition >= _WARM_UP:
            syncs.append(took)
            copied.append(timing.wall_s)
    row: dict[str, Any] = {
        "model": name,
        "engine": algo.config.engine,
        "runners": algo.env_runner_group.num_remote_env_runners(),
        "gb": gigabytes,
    }
    row |= {stage: statistics.median(took[stage] for took in syncs) for stage in STAGES}
    totals = [sum(took.values()) for took in syncs]
    row |= {"total": statistics.median(totals), "copy": statistics.median(copied), "repetitions": repetitions}
    row["copies"] = statistics.median(total / one for total, one in zip(totals, copied, strict=True))
    return row


def rows_of(name: str, runners: list[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model: the driver's own engine, then more and more actors."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = build(pathlib.Path(folder) / "model", MODELS[name])
        if 0 in runners:
            algo = algorithm(model, 0, args.engine)
            if args.profile:
                for _ in range(_WARM_UP):
                    sync(algo)
                with cProfile.Profile() as profile:
                    sync(algo)
                pstats.Stats(profile).sort_stats("tottime").print_stats(25)
            rows.append(measured(algo, name, args.repetitions))
            algo.stop()
        remote = sorted(count for count in runners if count)
        if remote:
            algo = algorithm(model, remote[0], args.engine)
            for count in remote:
                missing = count - algo.env_runner_group.num_remote_env_runners()
                if missing:
                    algo.env_runner_group.add_workers(missing)
                rows.append(measured(algo, name, args.repetitions))
            algo.stop()
    return rows


def main() -> None:
    """Measures and prints one row per model and number of runners."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--runners", type=int, nargs="+", default=[0], help="for every model; 0 is the driver")
    parser.add_argument("--remote", type=int, nargs="*", default=[1, 2], help="for the first model as well")
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="also print where a sync in the driver spends its time")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    rows = []
    for name in args.models:
        more = args.remote if name == args.models[0] else []
        rows += rows_of(name, [*args.runners, *more], args)
    head = "".join(f" {name + ' ms':>10}" for name in (*STAGES, "total", "copy"))
    print(f"{'model':>6} {'runners':>7} {'MB':>6}{head} {'s per GB':>9} {'copies':>7}")
    for row in rows:
        print(
            f"{row['model']:>6} {row['runners']:7d} {row['gb'] * 1e3:6.0f}"
            + "".join(f" {row[stage] * 1e3:10.1f}" for stage in (*STAGES, "total", "copy"))
            + f" {row['total'] / row['gb']:9.2f} {row['copies']:7.1f}"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
