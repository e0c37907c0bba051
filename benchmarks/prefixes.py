"""Where does it pay that a group's trajectories share their prompt in training? Seconds without over seconds with it.

    .venv/bin/python benchmarks/prefixes.py

One group at a time: K trajectories of uneven lengths after one prompt, one packed row, one forward and one backward
pass of the policy with its head on the sampled tokens, vocabulary 32k. Both sides score the same trajectories on the
same weights, alternately; they agree to float noise (``tests/modules/test_prefix_attention.py``). The table also has
what the choice is made by, tokens without over tokens with sharing, and how far the peak of the resident memory rose.
``modules/prefix_attention.py`` takes its threshold from here.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch
from measure import alternate, median, processor, ratios
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
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 128, 512, 1024])
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--completions", type=int, nargs="+", default=[64, 256, 512], help="median sampled tokens")
    parser.add_argument("--autocast", action="store_true", help="bfloat16")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()

    print(
        f"{'model':>7} {'prompt':>6} {'K':>3} {'compl.':>6} {'tokens':>7} {'÷ shared':>8} {'CPU s':>7} {'shared':>7} "
        f"{'faster':>6} {'MB':>6} {'shared':>6}"
    )
    rows = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            module = random_module(pathlib.Path(folder), size, autocast=args.autocast)
            for prompt, members, completion in itertools.product(args.prompts, args.group_sizes, args.completions):
                case = {"model": size, "prompt": prompt, "group_size": members, "completion": completion}
                rows.append(case | measure(module, group(prompt, members, completion), args.repetitions))
                show(rows[-1])
    if args.json:
        details = {
            "what": __doc__,
            "processor": processor(),
            "repetitions": args.repetitions,
            "autocast": args.autocast,
        }
        args.json.write_text(json.dumps({**details, "rows": rows}, indent=1) + "\n")


def random_module(folder: pathlib.Path, size: str, *, autocast: bool) -> CausalLMModule:
    """A random Qwen3 as the learner has it."""
    build_model(folder)  # for its tokenizer
    width = SIZES[size]["hidden_size"]
    config = Qwen3Config(
        vocab_size=VOCABULARY, intermediate_size=3 * width, head_dim=HEAD_DIM[size], tie_word_embeddings=True,
        max_position_embeddings=4096, **SIZES[size],
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    text, settings = gym.spaces.Text(1), {"path": str(folder), "autocast_dtype": "bfloat16" if autocast else None}
    return RLModuleSpec(CausalLMModule, observation_space=text, action_space=text, model_config=settings).build()


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
    ways = {"apart": None, "shared": PrefixSharing(1.0)}
    packed = {name: next(packed_rows(trajectories, max_tokens=10**9, sharing=way))[1] for name, way in ways.items()}
    steps = {name: step(module, row) for name, row in packed.items()}
    timings = alternate(steps, repetitions)
    tokens = {name: len(row[columns.TOKEN_IDS]) for name, row in packed.items()}
    return {
        "tokens": tokens["apart"],
        "token_ratio": tokens["apart"] / tokens["shared"],
        "cpu_s": median(timings["apart"]),
        "shared_cpu_s": median(timings["shared"]),
        "time_ratio": statistics.median(ratios(timings["apart"], timings["shared"])),
        "peak_mb": peak_mb(steps["apart"]),
        "shared_peak_mb": peak_mb(steps["shared"]),
    }


def step(module: CausalLMModule, row: dict[str, Any]) -> Callable[[], None]:
    """One forward and one backward pass."""

    def run() -> None:
        module.zero_grad(set_to_none=True)
        out = module._forward_train(row)
        (out[columns.LOGP] * row[columns.ADVANTAGES]).mean().backward()

    return run


def peak_mb(function: Callable[[], None]) -> float:
    """How far the resident size rises while a function runs; NaN where the system cannot say."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else what earlier passes freed would be used again unseen
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size again
    except (OSError, AttributeError):
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
        f"{row['token_ratio']:8.2f} {row['cpu_s']:7.2f} {row['shared_cpu_s']:7.2f} {row['time_ratio']:6.2f} "
        f"{row['peak_mb']:6.0f} {row['shared_peak_mb']:6.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
