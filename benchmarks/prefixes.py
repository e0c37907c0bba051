"""Where does it pay that a group's trajectories share their prompt in training? Seconds without over seconds with it.

    .venv/bin/python benchmarks/prefixes.py
    python benchmarks/prefixes.py --device cuda --autocast --sizes 0.6b 1.7b --json docs/results/gpu/prefixes.json

One group at a time: K trajectories of uneven lengths after one prompt, one packed row, one forward and one backward
pass of the policy with its head on the sampled tokens, vocabulary 32k. Both sides score the same trajectories on the
same weights, alternately; they agree to float noise (``tests/modules/test_prefix_attention.py``). The table also has
what the choice is made by, tokens without over tokens with sharing, and how far the peak of the resident memory rose.
``modules/prefix_attention.py`` takes its threshold from here.

On a GPU: models of Qwen3's real shapes, wall seconds, and the device's memory; two columns more say how far the scores
of both sides are apart (root mean square, nats), and how far those without sharing are from float32's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gpu
import gymnasium as gym
import numpy as np
import torch
from machine import processor
from measure import alternate, median, ratios, release_freed_memory
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from transformers import AutoModelForCausalLM, Qwen3Config

from gspo_rllib import columns
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.modules.prefix_attention import PrefixSharing
from gspo_rllib.packing import packed_rows
from gspo_rllib.types import TokenTrajectory
from gspo_rllib.warmstart.models import build_model

VOCABULARY = 32_000
SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4},
    "larger": {"hidden_size": 640, "num_hidden_layers": 10, "num_attention_heads": 10, "num_key_value_heads": 5},
}
"""5 and 50 million parameters outside the embedding and the head."""
HEAD_DIM = {"small": 32, "larger": 64}


def main() -> None:
    """Measures and prints one row per size, prompt length, group size and completion length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES, *gpu.QWEN3], default=list(SIZES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 128, 512, 1024])
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--completions", type=int, nargs="+", default=[64, 256, 512], help="median sampled tokens")
    parser.add_argument("--autocast", action="store_true", help="bfloat16")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()

    print(
        f"{'model':>7} {'prompt':>6} {'K':>3} {'compl.':>6} {'tokens':>7} {'÷ shared':>8} "
        f"{'s' if args.device == 'cuda' else 'CPU s':>7} {'shared':>7} "
        f"{'faster':>6} {'MB':>6} {'shared':>6}"
    )
    rows = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            module = random_module(pathlib.Path(folder), size, autocast=args.autocast, device=args.device)
            for prompt, members, completion in itertools.product(args.prompts, args.group_sizes, args.completions):
                case = {"model": size, "prompt": prompt, "group_size": members, "completion": completion}
                rows.append(case | measure(module, group(prompt, members, completion), args.repetitions))
                show(rows[-1])
    if args.json:
        details = {
            "what": __doc__,
            "processor": processor(),
            "device": gpu.where(args.device)["device"],
            "repetitions": args.repetitions,
            "autocast": args.autocast,
        }
        args.json.write_text(json.dumps({**details, "rows": rows}, indent=1) + "\n")


def random_module(folder: pathlib.Path, size: str, *, autocast: bool, device: str) -> CausalLMModule:
    """A random Qwen3 as the learner has it."""
    if size in SIZES:
        path = small_model(folder, size)
    else:
        path = gpu.random_qwen3(folder, size, vocabulary=VOCABULARY, device=device)
    text, settings = gym.spaces.Text(1), {"path": path, "autocast_dtype": "bfloat16" if autocast else None}
    spec = RLModuleSpec(CausalLMModule, observation_space=text, action_space=text, model_config=settings)
    module: CausalLMModule = spec.build().to(device)
    return module


def small_model(folder: pathlib.Path, size: str) -> str:
    """A folder with a model of ``SIZES``."""
    build_model(folder)  # for its tokenizer
    width = SIZES[size]["hidden_size"]
    config = Qwen3Config(
        vocab_size=VOCABULARY, intermediate_size=3 * width, head_dim=HEAD_DIM[size], tie_word_embeddings=True,
        max_position_embeddings=4096, **SIZES[size],
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def group(prompt: int, members: int, completion: int) -> list[TokenTrajectory]:
    """A group of one turn each; completions are log-normal around their median."""
    rng = np.random.default_rng([prompt, members, completion])
    prompt_ids = rng.integers(3, VOCABULARY, prompt)
    lengths = np.exp(rng.normal(np.log(completion), 0.4, members)).astype(int)
    return [
        TokenTrajectory(
            group_id="g",
            index=i,
            segments=(np.concatenate([prompt_ids, rng.integers(3, VOCABULARY, n)]).astype(np.int32),),
            loss_masks=(np.arange(prompt + n) >= prompt,),
            turn_index=np.zeros(n, np.int64),
            behavior_logp=np.zeros(n, np.float32),
            behavior_version=0,
            turn_rewards=np.zeros(1),
            advantages=np.full(n, float(i % 2), np.float32),
        )
        for i, n in enumerate(lengths)
    ]


def measure(module: CausalLMModule, trajectories: list[TokenTrajectory], repetitions: int) -> dict[str, Any]:
    """Both sides of one group."""
    device = next(module.parameters()).device
    ways = {"apart": None, "shared": PrefixSharing(1.0)}
    packed = {
        name: next(packed_rows(trajectories, max_tokens=10**9, sharing=way, device=device))[1]
        for name, way in ways.items()
    }
    steps = {name: step(module, row) for name, row in packed.items()}
    tokens = {name: len(row[columns.TOKEN_IDS]) for name, row in packed.items()}
    row = {"tokens": tokens["apart"], "token_ratio": tokens["apart"] / tokens["shared"]}
    if device.type == "cuda":
        seconds = gpu.alternate(steps, repetitions)
        row |= {"s": gpu.median(seconds["apart"]), "shared_s": gpu.median(seconds["shared"])}
        row |= {"time_ratio": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))}
        peaks = [1e3 * gpu.peak_gb(run)[1] for run in steps.values()]
        row |= apart(module, packed)
    else:
        timings = alternate(steps, repetitions)
        row |= {"cpu_s": median(timings["apart"]), "shared_cpu_s": median(timings["shared"])}
        row |= {"time_ratio": statistics.median(ratios(timings["apart"], timings["shared"]))}
        peaks = [peak_mb(run) for run in steps.values()]
    return row | {"peak_mb": peaks[0], "shared_peak_mb": peaks[1]}


@torch.no_grad()
def apart(module: CausalLMModule, packed: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How far the scores with sharing are from those without, and those from float32's."""
    plain, shared = (module._forward_train(row)[columns.LOGP] for row in packed.values())
    kept, module.settings["autocast_dtype"] = module.settings["autocast_dtype"], None
    exact = module._forward_train(packed["apart"])[columns.LOGP]
    module.settings["autocast_dtype"] = kept
    rms = [float((a - b).square().mean().sqrt()) for a, b in ((shared, plain), (plain, exact), (shared, exact))]
    return dict(zip(("shared_to_plain", "plain_to_float32", "shared_to_float32"), rms, strict=True))


def step(module: CausalLMModule, row: dict[str, Any]) -> Callable[[], None]:
    """One forward and one backward pass."""

    def run() -> None:
        module.zero_grad(set_to_none=True)
        out = module._forward_train(row)
        (out[columns.LOGP] * row[columns.ADVANTAGES]).mean().backward()

    return run


def peak_mb(function: Callable[[], None]) -> float:
    """How far the resident size rises while a function runs; NaN where the system cannot say."""
    release_freed_memory()  # else what earlier passes freed would be used again unseen
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size again
    except OSError:
        return float("nan")
    before = resident_mb("VmRSS")
    function()
    return resident_mb("VmHWM") - before


def resident_mb(name: str) -> float:
    """A size from this process's status, in MB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


def show(row: dict[str, Any]) -> None:
    """Prints one line of the table."""
    print(
        f"{row['model']:>7} {row['prompt']:6d} {row['group_size']:3d} {row['completion']:6d} {row['tokens']:7d} "
        f"{row['token_ratio']:8.2f} {row.get('s', row.get('cpu_s')):7.3f} "
        f"{row.get('shared_s', row.get('shared_cpu_s')):7.3f} {row['time_ratio']:6.2f} "
        f"{row['peak_mb']:6.0f} {row['shared_peak_mb']:6.0f}"
        + "".join(f" {row[name]:.1e}" for name in ("shared_to_plain", "plain_to_float32") if name in row),
        flush=True,
    )


if __name__ == "__main__":
    main()
