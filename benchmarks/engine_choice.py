"""Which engine is the better one on this machine, by the size of the model: what ``engine=None`` goes by on a CPU.

    .venv/bin/python benchmarks/engine_choice.py
    .venv/bin/python benchmarks/engine_choice.py --widths 512 --layers 16 --json sizes.json

Random Qwen3 of growing width; each engine in a fresh process, engines in turn for every width. *Start* is until the
engine holds the weights, imports included. Then 32 conversations of 4 turns are played, every turn 32 sampled tokens
and 16 that are given, on top of a first prompt of 64: tokens per CPU second and per second, medians over repetitions.
The ratio that counts is the time of a first iteration and of all later ones: *even after* says after how many sampled
tokens vLLM, which starts later, has caught up with the built-in engine (in CPU seconds; never: it samples slower, too).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

ENGINES = ("transformers", "vllm")
CONVERSATIONS, TURNS, SAMPLED, GIVEN, PROMPT = 32, 4, 32, 16, 64


def used() -> float:
    """CPU seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(engine_name: str, path: str, repetitions: int) -> dict[str, Any]:
    """One engine in this process: its start, its speed and the memory of the process."""
    started = time.perf_counter()

    import numpy as np
    from transformers import AutoModelForCausalLM

    from gspo_rllib.engines.protocol import EngineSpec, GenerationRequest
    from gspo_rllib.engines.registry import acquire, release

    options = {"kv_cache_memory_bytes": 256 << 20} if engine_name == "vllm" else {}
    spec = EngineSpec(
        engine=engine_name, model=path, dtype="float32", max_model_len=512, max_num_seqs=CONVERSATIONS,
        stop_token_ids=(), options=options,
    )  # fmt: skip
    engine = acquire(spec)
    model = AutoModelForCausalLM.from_pretrained(path)
    vocabulary = model.config.vocab_size
    engine.load_weights({name: tensor.numpy() for name, tensor in model.state_dict().items()}, 1)
    del model
    start = {"start_s": time.perf_counter() - started, "start_cpu_s": used()}
    timings = []
    for repetition in range(repetitions + 1):
        rng = np.random.default_rng(repetition)
        contexts = [rng.integers(3, vocabulary, PROMPT).tolist() for _ in range(CONVERSATIONS)]
        wall, cpu = time.perf_counter(), used()
        for turn in range(TURNS):
            for index, context in enumerate(contexts):
                name, seed = f"{repetition} {turn} {index}", 1000 * repetition + index
                engine.submit(GenerationRequest(name, context, SAMPLED, 1.0, seed))
            while engine.has_work():
                for generation in engine.step():
                    index = int(generation.request_id.rsplit(" ", 1)[1])
                    new = rng.integers(3, vocabulary, GIVEN).tolist()
                    contexts[index] = [*contexts[index], *generation.token_ids, *new]
        timings.append((time.perf_counter() - wall, used() - cpu))
    tokens = CONVERSATIONS * TURNS * SAMPLED
    release(engine)
    timings = timings[1:]  # the first one warms up
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    wall_s, cpu_s = (statistics.median(timing[clock] for timing in timings) for clock in (0, 1))
    return start | {"per_s": tokens / wall_s, "per_cpu_s": tokens / cpu_s, "peak_mb": peak, "engine": engine_name}


def child(engine: str, path: str, repetitions: int) -> dict[str, Any]:
    """``measure`` in a fresh process."""
    command = [sys.executable, __file__, "--measure", engine, path, "--repetitions", str(repetitions)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{engine} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def model_of(folder: pathlib.Path, width: int, layers: int, vocabulary: int) -> tuple[str, int]:
    """A random model's folder, and how many parameters it has."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gspo_rllib.model_folder import quiet_transformers
    from gspo_rllib.warmstart.models import build_model

    heads = max(1, width // 64)
    build_model(
        folder, hidden_size=width, num_layers=layers, num_heads=heads, num_kv_heads=max(1, heads // 2), head_dim=64,
        intermediate_size=3 * width,
    )  # fmt: skip
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size = vocabulary
    with quiet_transformers():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(folder)
    return str(folder), sum(parameter.numel() for parameter in model.parameters())


def row_of(width: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both engines on a model of one width."""
    with tempfile.TemporaryDirectory() as name:
        path, parameters = model_of(pathlib.Path(name) / "model", width, args.layers, args.vocabulary)
        row: dict[str, Any] = {"width": width, "layers": args.layers, "parameters": parameters}
        for engine in args.engines:
            row[engine] = child(engine, path, args.repetitions)
    if len(args.engines) == len(ENGINES):
        own, vllm = (row[engine] for engine in ENGINES)
        row["speed_over_vllm"] = own["per_cpu_s"] / vllm["per_cpu_s"]
        gained = 1 / own["per_cpu_s"] - 1 / vllm["per_cpu_s"]
        row["even_after"] = (vllm["start_cpu_s"] - own["start_cpu_s"]) / gained if gained > 0 else None
    return row


def main() -> None:
    """Measures and prints one row per width."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 512, 1024])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    parser.add_argument("--measure", nargs=2, metavar=("ENGINE", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        engine_name, path = args.measure
        print(json.dumps(measure(engine_name, path, args.repetitions)))
        return
    rows = []
    heads = (("start s", 8), ("cpu s", 6), ("tok/cpu s", 9), ("tok/s", 7), ("MB", 6))
    print(f"{'width':>5} {'params':>10} {'engine':>12} " + " ".join(f"{head:>{size}}" for head, size in heads))
    for width in args.widths:
        rows.append(row := row_of(width, args))
        for engine in args.engines:
            told = row[engine]
            print(
                f"{width:5d} {row['parameters']:10,d} {engine:>12} {told['start_s']:8.1f} {told['start_cpu_s']:6.1f} "
                f"{told['per_cpu_s']:9.0f} {told['per_s']:7.0f} {told['peak_mb']:6.0f}",
                flush=True,
            )
        if "speed_over_vllm" in row:
            even = row["even_after"]
            after = "never" if even is None else f"after {even:,.0f} tokens"
            print(f"{'':5} built-in ÷ vLLM {row['speed_over_vllm']:.2f} in tokens per CPU s; even {after}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
