"""What a LoRA adapter saves a learner: memory, optimiser state, and the gradient of a head that is frozen.

    .venv/bin/python benchmarks/adapters.py
    .venv/bin/python benchmarks/adapters.py --vocabulary 1024 --layers 2 --tokens 64 --repetitions 1

*Ways* are updates of a random mixture of experts (8 experts, 2 per token), each in a process of its own: all weights,
an adapter of rank 16 on the attention, one on the experts too, and that with activations computed again. Memory is the
peak over the loaded model in the second update, gradients and optimiser included; goal: experts with activations
computed again at most 0.6 of all weights. *Head* is forward and backward of a dense model of 2 and of 6 layers with an
adapter, its head frozen or not, alternately in this process, CPU seconds; goal: at most 0.85.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import alternate, median, peak_over_mb, ratios, timed
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.envs import UnicodeText
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.types import group_episodes
from gspo_rllib.warmstart.models import build_model

SPACES = {DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "attention": {"lora": {"target_modules": ATTENTION}},
    "experts": {"lora": {"target_modules": ATTENTION, "target_parameters": EXPERTS}},
    "experts, computed again": {
        "lora": {"target_modules": ATTENTION, "target_parameters": EXPERTS},
        "activation_checkpointing": True,
    },
}


def groups_of(tokens: int, vocabulary: int) -> list[Any]:
    """Two groups of four trajectories of made-up tokens, of which an eighth is the prompt."""
    from workload import Conversation

    generator = torch.Generator().manual_seed(0)
    episodes = []
    for number in range(8):
        ids = torch.randint(0, vocabulary, (tokens,), generator=generator).numpy().astype("int32")
        shown = tokens // 8
        logp = torch.full((tokens - shown,), -3.0).numpy()
        conversation = Conversation([(ids[:shown], ids[shown:])], logp, float(number % 2))
        episodes.append(conversation.episode(f"g{number // 4}", number % 4))
    return group_episodes(episodes)


def learner_of(path: str, tokens: int, **model: Any) -> tuple[Any, Callable[[], Any]]:
    """A learner as training builds it, and an update of it."""
    config = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(model_config={"path": path, **model})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .training(group_size=4, groups_per_iteration=2, num_minibatches=1, old_log_probs="learner", lr=1e-3)
        .debugging(seed=0)
    )
    learner = config.build_learner(spaces=SPACES)
    groups = groups_of(tokens, 300)
    return learner, lambda: learner.update(
        training_data=GroupTrainingData.from_groups(groups, num_minibatches=1, seed=0), num_epochs=1
    )


def measure(path: str, tokens: int, way: str) -> dict[str, float]:
    """Memory, state and time of an update in a fresh process."""
    learner, update = learner_of(path, tokens, **WAYS[way])
    peak = peak_over_mb(update)
    states = [state for optimizer in learner._all_optimizers for state in optimizer.state.values()]
    held = sum(tensor.nbytes for state in states for name, tensor in state.items() if name.startswith("exp_avg"))
    trained = sum(parameter.numel() for parameter in learner.module[DEFAULT_MODULE_ID].unwrapped().policy_parameters())
    return {"peak_mb": peak, "state_mb": held / 1e6, "trained": trained, "cpu_s": timed(update).cpu_s}


def frozen_head(path: str, tokens: int, repetitions: int) -> list[float]:
    """CPU time with the head frozen ÷ with its gradient, for each pair of neighbouring updates."""
    learner, update = learner_of(path, tokens, lora={"target_modules": ATTENTION})
    learner._step = lambda optimizers: None
    head = learner.module[DEFAULT_MODULE_ID].unwrapped().model.get_output_embeddings().weight

    def with_gradient(asked: bool) -> None:
        head.grad = None
        head.requires_grad_(asked)
        update()
        assert (head.grad is not None) == asked

    ways = {"frozen": lambda: with_gradient(False), "trained": lambda: with_gradient(True)}
    timings = alternate(ways, repetitions)
    print(f"head: {median(timings['frozen']):.2f} CPU s frozen, {median(timings['trained']):.2f} with its gradient")
    return ratios(timings["frozen"], timings["trained"])


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128, help="of each of 8 trajectories")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", choices=["ways", "head"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "head":
            compare_ways(pathlib.Path(folder) / "moe", args)
        if args.only != "ways":
            compare_heads(pathlib.Path(folder) / "dense", args)


def compare_ways(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Prints a row per way."""
    moe = build_model(
        folder, architecture="qwen3_moe", hidden_size=256, num_layers=args.layers,
        num_heads=8, num_kv_heads=4, head_dim=32, intermediate_size=256, num_experts=8, num_experts_per_token=2,
    )  # fmt: skip
    rows = {}
    print(f"{'way':>24} {'trained':>10} {'state MB':>9} {'bytes/parameter':>15} {'peak MB':>8} {'CPU s':>6}")
    for way in WAYS:
        # A fresh process: memory that an earlier way freed would hide what this one takes.
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            row = rows[way] = pool.submit(measure, str(moe), args.tokens, way).result()
        share = 1e6 * row["state_mb"] / row["trained"]
        print(
            f"{way:>24} {row['trained']:10.0f} {row['state_mb']:9.2f} {share:15.2f} {row['peak_mb']:8.0f} "
            f"{row['cpu_s']:6.2f}",
            flush=True,
        )
    whole = rows["all weights"]["peak_mb"]
    print(f"experts, computed again ÷ all weights, peak: {rows['experts, computed again']['peak_mb'] / whole:.2f}")


def compare_heads(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Prints the head's ratio, for a model that is little else and for a deeper one."""
    for layers in (2, 6):
        dense = build_model(
            folder / str(layers), hidden_size=256, num_layers=layers, num_heads=8, num_kv_heads=4, head_dim=32,
            intermediate_size=768,
        )  # fmt: skip
        _widen(dense, args.vocabulary)
        shares = frozen_head(str(dense), args.tokens, args.repetitions)
        spread = f"{min(shares):.2f} to {max(shares):.2f}"
        print(
            f"{layers} layers, head frozen ÷ with its gradient: {statistics.median(shares):.2f} ({spread})", flush=True
        )


def _widen(folder: pathlib.Path, vocabulary: int) -> None:
    """Gives the model more words than its tokenizer has: what a head costs goes by its size."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    if model.config.vocab_size < vocabulary:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
        model.save_pretrained(folder)


if __name__ == "__main__":
    main()
