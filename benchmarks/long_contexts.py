"""What a learner's pass costs as trajectories become long: CPU seconds, peak memory, and the part that attention takes.

    .venv/bin/python benchmarks/long_contexts.py
    .venv/bin/python benchmarks/long_contexts.py --sizes larger --lengths 1024 4096 16384 --ways kept 2.0
    .venv/bin/python benchmarks/long_contexts.py --sizes larger --lengths 32768 --ways 2.0 --memory-only

One group of 8 trajectories that share the first eighth of their tokens; a turn is 40 tokens shown and 40 sampled, so
32k tokens are 400 turns. Rows are packed as the learner packs them, and each goes forward and backward once with a loss
of its sampled tokens' log-probs, float32, one thread. From half of a row's token budget on every trajectory is a row of
its own, and rows cost the same: then one is run, and the group's time is that times their number.

A way is ``kept`` (all activations), ``all`` (``activation_checkpointing=True``) or a number of GB
(``max_activation_gb``). Memory is the rise of the resident size over model and gradients. Attention's seconds are those
of its kernels, forward and backward, from a profile of the same pass; the exponents are slopes of log(CPU seconds)
against log(length). ``--memory-only`` leaves the arithmetic of attention out (its outputs are the queries, its
gradients have the right sizes): what is held does not change, and 32k tokens take minutes in place of half an hour.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch
from growth import exponent
from machine import processor
from measure import Timing, peak_over_mb, timed
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from workload import SIZES, random_model

from gspo_rllib import columns
from gspo_rllib.modules import CausalLMModule, prefix_attention
from gspo_rllib.packing import packed_rows
from gspo_rllib.types import TokenTrajectory

BUDGET = 16384
SHOWN = SAMPLED = 40
GROUP_SIZE = 8
GOAL_RATE = 0.6
"""Of the larger model: tokens/s at 16k tokens over those at 1k."""


def group(length: int, vocabulary: int) -> list[TokenTrajectory]:
    """Random tokens; the trajectories share the first eighth, and then take turns."""
    rng = np.random.default_rng(length)
    shown = rng.integers(3, vocabulary, length // 8).astype(np.int32)
    place = np.arange(length) - len(shown)
    mask = (place >= 0) & (place % (SHOWN + SAMPLED) >= SHOWN)
    return [
        TokenTrajectory(
            group_id="g",
            index=i,
            segments=(np.concatenate([shown, rng.integers(3, vocabulary, length - len(shown)).astype(np.int32)]),),
            loss_masks=(mask,),
            turn_index=(place[mask] // (SHOWN + SAMPLED)).astype(np.int64),
            behavior_logp=np.full(int(mask.sum()), -10.0, np.float32),
            behavior_version=0,
            turn_rewards=np.zeros(1 + int(place[mask].max()) // (SHOWN + SAMPLED)),
            advantages=np.full(int(mask.sum()), 1.0 if i % 2 else -1.0, np.float32),
        )
        for i in range(GROUP_SIZE)
    ]


def policy(model: str, way: str) -> CausalLMModule:
    """A policy that keeps or recomputes its activations in one way."""
    settings: dict[str, Any] = {"path": model}
    if way == "all":
        settings["activation_checkpointing"] = True
    elif way != "kept":
        settings["max_activation_gb"] = float(way)
    text = gym.spaces.Text(1)
    spec = RLModuleSpec(CausalLMModule, observation_space=text, action_space=text, model_config=settings)
    module: CausalLMModule = spec.build()
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return module


def run(module: CausalLMModule, row: dict[str, Any]) -> None:
    """One forward and one backward pass, on top of the gradients that are there."""
    logp = module._forward_train(row)[columns.LOGP]
    (logp * row[columns.ADVANTAGES]).mean().backward()


@contextmanager
def no_arithmetic_of_attention() -> Iterator[None]:
    """Attention's kernels give back tensors of the right sizes that cost nothing to compute."""

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        return query.clone(), query.new_zeros(query.shape[:-1], dtype=torch.float32)

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[Any, Any, Any]:
        return torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)

    with mock.patch.multiple(prefix_attention, _flash=forward, _flash_backward=backward):
        yield


def attention_share(module: CausalLMModule, row: dict[str, Any]) -> float:
    """Of a pass's time, what attention's kernels take."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(module, row)
    own = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    share: float = sum(spent for name, spent in own.items() if "flash_attention" in name) / sum(own.values())
    return share


def measure(
    module: CausalLMModule, length: int, vocabulary: int, repetitions: int, *, memory_only: bool
) -> dict[str, Any]:
    """One row of the table."""
    sharing = module.prefix_sharing()
    packed = [row for _, row in packed_rows(group(length, vocabulary), max_tokens=BUDGET, sharing=sharing)]
    alike = 2 * length > BUDGET
    rows = packed[:1] if alike else packed
    run(module, {**rows[0], **_short(rows[0])})  # what is loaded or observed once
    if memory_only:
        with no_arithmetic_of_attention():
            # A segment on its own would call torch's attention, another one that continues nothing ours.
            peak = max(peak_over_mb(functools.partial(run, module, _as_branches(row))) for row in rows)
        return {"peak_mb": peak, "recomputed": _plan(module)}
    peak, seconds = 0.0, []
    for _ in range(repetitions):
        seconds.append(0.0)
        for row in rows:
            timing: list[Timing] = []
            peak = max(peak, peak_over_mb(functools.partial(_timed, module, row, timing)))
            seconds[-1] += timing[0].cpu_s
    share = attention_share(module, rows[0])
    total = float(np.median(seconds)) * len(packed) / len(rows)
    tokens = GROUP_SIZE * length
    return {
        "rows": len(packed), "rows_run": len(rows), "cpu_s": total, "tokens_per_s": tokens / total, "peak_mb": peak,
        "attention_share": share, "recomputed": _plan(module),
    }  # fmt: skip


def _timed(module: CausalLMModule, row: dict[str, Any], timing: list[Timing]) -> None:
    timing.append(timed(functools.partial(run, module, row)))


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Overrides that make a row one of 256 tokens."""
    tokens = 256
    position = torch.arange(tokens)
    ids = row[columns.TOKEN_IDS][:tokens]
    return {
        columns.TOKEN_IDS: ids, columns.POSITION_IDS: position, columns.SEGMENT_LENGTHS: [tokens],
        columns.SEGMENT_PREFIXES: [-1], columns.LOSS_POSITIONS: position[:-1], columns.LOSS_TOKEN_IDS: ids[1:],
        columns.ADVANTAGES: torch.ones(tokens - 1),
    }  # fmt: skip


def _as_branches(row: dict[str, Any]) -> dict[str, Any]:
    return {columns.SEGMENT_PREFIXES: [-1] * len(row[columns.SEGMENT_LENGTHS]), **row}


def _plan(module: CausalLMModule) -> str:
    if module.recomputation is None:
        return "nothing"
    depths = module.recomputation.depths
    return f"{module.recomputation.num_recomputed} of {len(depths)}: {depths[0].name.lower()}"


def main() -> None:
    """Measures and prints one row per size, length and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["small"], choices=list(SIZES))
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--ways", nargs="+", default=["kept", "2.0"], help="kept, all, or GB")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--memory-only", action="store_true", help="without the arithmetic of attention")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            model = random_model(pathlib.Path(folder), size=size, vocabulary=args.vocabulary, context=max(args.lengths))
            for way in args.ways:
                module = policy(model, way)
                of_way = []
                for length in args.lengths:
                    row = {"size": size, "way": way, "length": length} | measure(
                        module, length, args.vocabulary, args.repetitions, memory_only=args.memory_only
                    )
                    of_way.append(row)
                    print(json.dumps(row), flush=True)
                if not args.memory_only and len(of_way) > 1:
                    _summary(of_way)
                rows += of_way
    if args.json:
        details = {"what": __doc__, "processor": processor(), "vocabulary": args.vocabulary}
        args.json.write_text(json.dumps({**details, "rows": rows}, indent=1) + "\n")


def _summary(rows: list[dict[str, Any]]) -> None:
    lengths = [row["length"] for row in rows]
    attention = [row["attention_share"] * row["cpu_s"] for row in rows]
    rest = [(1 - row["attention_share"]) * row["cpu_s"] for row in rows]
    rates = ", ".join(f"{row['length']}: {row['tokens_per_s'] / rows[0]['tokens_per_s']:.2f}" for row in rows)
    print(
        f"{rows[0]['size']}, {rows[0]['way']}: tokens/s over those at {lengths[0]} ({rates}; goal {GOAL_RATE} at 16384)"
        f"; exponent of attention {exponent(lengths, attention):.2f}, of everything else {exponent(lengths, rest):.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
