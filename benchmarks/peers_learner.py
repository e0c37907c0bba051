"""How fast is one optimiser step of our learner beside one of TRL's, on the same trajectories, and in how much memory?

    .venv-peers/bin/python benchmarks/peers_learner.py            # vocabulary 32k, single turn, small model
    .venv-peers/bin/python benchmarks/peers_learner.py --all      # 152k, long multi-turn, the larger model too: hours
    python benchmarks/peers_learner.py --gpu 0.6b                 # Qwen3's shape on a GPU, bfloat16 autocast

Both sides start from the same weights in this process and take turns; each step is forward, loss, backward, gradient
norm and AdamW over all trajectories. float32, one thread, no activation checkpointing on either side.

Ours: ``LanguageLearner.update`` of a learner built by ``GSPOConfig``: everything from episodes on (their conversion to
tokens, advantages, packing and statistics included), with every setting at its default but the number of minibatches.

TRL's: a ``GRPOTrainer`` object, of which these are called: ``compute_loss`` (that is ``_compute_loss`` with
``_get_per_token_logps_and_entropies`` and the chunked head ``add_fused_lm_head`` put on the model), ``backward`` of its
result, ``accelerator.clip_grad_norm_``, and ``step`` of the optimiser that ``create_optimizer`` makes. Its inputs are
padded beforehand, outside the timing, and its advantages are given to it. ``loss_type="grpo"``, because the default of
TRL weights trajectories by their length; ``beta=0``; multi-turn trajectories through its ``tool_mask``.

Both sides' loss and gradient are compared first: only sides that do the same work are timed. TRL takes 8 trajectories
at a time by default; taking one at a time needs no padding and less memory, so that is measured too, and what is
recorded is our ratio to TRL's default; the other one is in the table and the record beside it. Long multi-turn
trajectories are only given to it one at a time: 8 of them, padded, need tens of GB. Ours takes what fits into 16,384
tokens, its default.

What is unlike: TRL's own step also shuffles, pads and normalises its batches, which is left out here (to TRL's
advantage). On a CPU its head scores every position, prompts and padding too, where on a GPU it would skip them (to its
disadvantage against a GPU). Entropies are computed by both and used by neither.

Memory: each side in a process of its own takes one step on a group of short ones, so that gradients, optimiser state
and code are there, and then one on all; the peak of the resident size during it, less the resident size before it.

On a GPU both hold float32 weights and multiply in bfloat16, by their own setting for it, and old log-probs are the
learner's own on either side, which costs neither a pass. 32 trajectories with a prompt of 256 and a median of 1,000
sampled tokens. Attention is each side's own: TRL's is transformers' SDPA, since padding is masked. Seconds are of the
clock; memory is the peak of the device's in a step, less what is held before it; gradients agree as far as bfloat16.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import warnings
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import measure
import numpy as np
import torch
import workload
from ray.rllib.core import DEFAULT_MODULE_ID
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.envs import UnicodeText
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.ops import group_z_score

disable_progress_bar()
logging.getLogger("ray").setLevel(logging.ERROR)

SPACES = {DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))}
SIDES = {"ours": None, "TRL, 8 at a time": 8, "TRL, 1 at a time": 1}
"""Name and trajectories per forward pass; ours has a token budget instead."""
OURS, DEFAULT, SINGLE = SIDES
MEASURED = {"single_turn": [OURS, DEFAULT, SINGLE], "multi_turn": [OURS, SINGLE]}
RECORDED = {"size": "small", "vocabulary": 32_000, "data": "single_turn"}


class Ours:
    """Our learner on some trajectories."""

    def __init__(self, model: str, played: list[workload.Conversation], *, on_a_gpu: bool = False) -> None:
        config = (
            GSPOConfig()
            .environment(workload.PromptEnv, env_config={"num_digits": 1})
            .rl_module(model_config={"path": model, "precision": "bfloat16" if on_a_gpu else "float32"})
            .generation(engine="transformers")
            .learners(num_learners=0, num_gpus_per_learner=int(on_a_gpu))
            .training(
                group_size=workload.GROUP_SIZE,
                num_minibatches=1,
                old_log_probs="learner" if on_a_gpu else "auto",
            )
            .debugging(seed=0)
        )
        self._learner = config.build_learner(spaces=SPACES)
        self.give(played)

    def give(self, played: list[workload.Conversation]) -> None:
        """Sets what the next steps train on."""
        self._data = GroupTrainingData.from_groups(workload.groups_of(played), num_minibatches=1, seed=0)

    def step(self) -> float:
        """One optimiser step; its loss."""
        result = self._learner.update(training_data=self._data, num_epochs=1)
        return float(result[DEFAULT_MODULE_ID]["loss"].peek())

    def parameters(self) -> list[torch.nn.Parameter]:
        """All that are trained."""
        return list(self._learner.module[DEFAULT_MODULE_ID].unwrapped().policy_parameters())


class TRL:
    """TRL's trainer on the same trajectories, ``per_pass`` of them at a time."""

    def __init__(
        self, model: str, played: list[workload.Conversation], per_pass: int, *, on_a_gpu: bool = False
    ) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        self._folder = tempfile.TemporaryDirectory()
        args = GRPOConfig(
            self._folder.name, use_cpu=not on_a_gpu, bf16=on_a_gpu, gradient_checkpointing=False, report_to="none",
            per_device_train_batch_size=workload.GROUP_SIZE, num_generations=workload.GROUP_SIZE,
            importance_sampling_level="sequence", loss_type="grpo", epsilon=3e-4, epsilon_high=4e-4, beta=0.0,
            learning_rate=1e-6, weight_decay=0.01, max_grad_norm=1.0,
        )  # fmt: skip
        self._trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["0"]}),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        self._trainer.create_optimizer()
        self._trainer.model.train()
        self._per_pass, self._on_a_gpu = per_pass, on_a_gpu
        if on_a_gpu:  # as ``train`` does it: what wraps the forward pass in autocast
            self._trainer.accelerator.prepare_model(self._trainer.model)
        self.give(played)

    def give(self, played: list[workload.Conversation]) -> None:
        """Sets what the next steps train on."""
        rewards = torch.tensor([c.reward for c in played]).split(workload.GROUP_SIZE)
        advantages = torch.cat([group_z_score(group) for group in rewards])
        self._batches = [
            _padded(played[i : i + self._per_pass], advantages[i : i + self._per_pass])
            for i in range(0, len(played), self._per_pass)
        ]
        if self._on_a_gpu:
            self._batches = [{name: part.cuda() for name, part in batch.items()} for batch in self._batches]
            for batch in self._batches:
                del batch["old_per_token_logps"]
        self._trainer.current_gradient_accumulation_steps = len(self._batches)

    def step(self) -> float:
        """One optimiser step; its loss."""
        trainer = self._trainer
        trainer.optimizer.zero_grad()
        total = 0.0
        for batch in self._batches:
            loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
            total += float(loss.detach())
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        return total

    def parameters(self) -> list[torch.nn.Parameter]:
        """All that are trained."""
        return list(self._trainer.model.parameters())


def _gradient(runner: Ours | TRL) -> torch.Tensor:
    """Gradient of the last step, all parameters in one vector."""
    return torch.cat([p.grad.flatten() for p in runner.parameters() if p.grad is not None])


def _padded(played: list[workload.Conversation], advantages: torch.Tensor) -> dict[str, torch.Tensor]:
    """One batch as ``_generate_and_score_completions`` lays it out: prompts padded left, the rest right."""
    prompts = [c.turns[0][0] for c in played]
    rests = [c.token_ids[len(prompt) :] for c, prompt in zip(played, prompts, strict=True)]
    sampled = [c.sampled[len(prompt) :] for c, prompt in zip(played, prompts, strict=True)]
    old_logp = [np.zeros(len(rest), np.float32) for rest in rests]
    for values, mask, conversation in zip(old_logp, sampled, played, strict=True):
        values[mask] = conversation.old_logp

    def pad(rows: list[np.ndarray], side: str = "right") -> torch.Tensor:
        tensors = [torch.as_tensor(row) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_side=side)

    return {
        "prompt_ids": pad(prompts, "left").long(),
        "prompt_mask": pad([np.ones(len(p), np.int64) for p in prompts], "left"),
        "completion_ids": pad(rests).long(),
        "completion_mask": pad([np.ones(len(rest), np.int64) for rest in rests]),
        "tool_mask": pad([mask.astype(np.int64) for mask in sampled]),
        "old_per_token_logps": pad(old_logp),
        "advantages": advantages,
    }


def side(name: str, model: str, played: list[workload.Conversation], *, on_a_gpu: bool = False) -> Ours | TRL:
    """One side of the comparison."""
    per_pass = SIDES[name]
    if per_pass is None:
        return Ours(model, played, on_a_gpu=on_a_gpu)
    return TRL(model, played, per_pass, on_a_gpu=on_a_gpu)


def peak_memory_mb(name: str, model: str, data: str) -> float:
    """MB that one step adds at its peak, measured in a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--models", model, "--data", data]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def _measure_memory(name: str, model: str, data: str) -> float:
    played = workload.conversations(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), data)
    short = [c.shortened(16) for c in played[: workload.GROUP_SIZE]]
    runner = side(name, model, short)
    runner.step()
    runner.give(played)
    return measure.peak_over_mb(runner.step)


def compare(model: str, data: str, repetitions: int) -> list[dict[str, Any]]:
    """One row per side, after a check that they compute the same loss and the same gradient."""
    played = workload.conversations(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), data)
    sides = {name: side(name, model, played) for name in MEASURED[data]}
    losses = {name: runner.step() for name, runner in sides.items()}
    gradient = _gradient(sides[OURS])
    rows: list[dict[str, Any]] = [
        {
            "side": name,
            "tokens": sum(len(c.token_ids) for c in played),
            "sampled": sum(int(c.sampled.sum()) for c in played),
            "loss": losses[name],
            "gradient_error": float((_gradient(runner) - gradient).norm() / gradient.norm()),
        }
        for name, runner in sides.items()
    ]
    for row in rows:
        assert math.isclose(row["loss"], losses[OURS], rel_tol=1e-3, abs_tol=2e-6), rows
        assert row["gradient_error"] < 1e-3, rows
    del gradient
    # The step above was the warm-up.
    timings = measure.alternate({name: runner.step for name, runner in sides.items()}, repetitions, warm_up=0)
    for row in rows:
        timing = timings[row["side"]]
        row["cpu_s"], row["wall_s"] = measure.median(timing), measure.median(timing, "wall_s")
        row["tokens_per_cpu_s"] = row["tokens"] / row["cpu_s"]
        row["times_ours"] = measure.ratios(timing, timings[OURS])
        row["peak_mb"] = peak_memory_mb(row["side"], model, data)
    return rows


def compare_on_a_gpu(size: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per side: seconds of the clock and GB of the device in a step of a model of Qwen3's shape."""
    import gpu

    with tempfile.TemporaryDirectory() as folder:
        model = gpu.random_qwen3(pathlib.Path(folder), size, vocabulary=gpu.VOCABULARY, device="cuda")
        played = gpu.drawn("single_turn", 4, prompt=256, completion=1000, vocabulary=gpu.VOCABULARY)
        sides = {name: side(name, model, played, on_a_gpu=True) for name in SIDES}
    tokens, gradients, memory = sum(len(c.token_ids) for c in played), {}, {}
    for name, runner in sides.items():
        runner.step()
        gradients[name] = _gradient(runner)
        for parameter in runner.parameters():
            parameter.grad = None
        memory[name] = gpu.peak_gb(runner.step)[1]
    errors = {n: float((g - gradients[OURS]).norm() / gradients[OURS].norm()) for n, g in gradients.items()}
    gradients.clear()
    timings = gpu.alternate({name: runner.step for name, runner in sides.items()}, args.repetitions)
    ours = timings[OURS]
    return [
        {
            **gpu.where("cuda"), "size": size, "side": name, "tokens": tokens, "s": gpu.median(taken),
            "tokens_per_s": tokens / gpu.median(taken), "over_gb": memory[name], "gradient_error": errors[name],
            "times_ours": [theirs / one for theirs, one in zip(taken, ours, strict=True)],
        }
        for name, taken in timings.items()
    ]  # fmt: skip


def main() -> None:
    """Prints one row per cell and side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000])
    parser.add_argument("--data", nargs="+", choices=workload.DATA, default=["single_turn"])
    parser.add_argument("--size", nargs="+", choices=workload.SIZES, default=["small"])
    parser.add_argument("--all", action="store_true", help="every vocabulary (32k, 152k), data set and size")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    parser.add_argument("--record", action="store_true", help="merge the ratios at 32k, single turn, into latest.json")
    parser.add_argument("--gpu", metavar="SIZE", help="a step on a GPU, of Qwen3's shape of this size (gpu.py)")
    parser.add_argument("--models", default="models/benchmarks", help="where the random models are kept")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(_measure_memory(args.child, args.models, args.data[0]))
        return
    if args.gpu:
        rows = compare_on_a_gpu(args.gpu, args)
        for row in rows:
            print(json.dumps(row))
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
        return
    if args.all:
        args.vocabulary, args.data, args.size = [32_000, 152_000], [*workload.DATA], [*workload.SIZES]

    rows = []
    print(
        f"{'size':>7} {'vocabulary':>10} {'data':>11} {'side':>17} {'tokens':>7} {'CPU s':>7} {'tokens/CPU s':>12} "
        f"{'× ours':>7} {'peak MB':>8} {'ours ÷ it':>9} {'loss':>11} {'gradient error':>14}"
    )
    for size, vocabulary, data in itertools.product(args.size, args.vocabulary, args.data):
        model = workload.random_model(pathlib.Path(args.models), size=size, vocabulary=vocabulary)
        cell = compare(model, data, args.repetitions)
        for row in cell:
            row |= {"size": size, "vocabulary": vocabulary, "data": data}
            print(
                f"{size:>7} {vocabulary:10d} {data:>11} {row['side']:>17} {row['tokens']:7d} {row['cpu_s']:7.2f} "
                f"{row['tokens_per_cpu_s']:12.0f} {statistics.median(row['times_ours']):7.2f} {row['peak_mb']:8.0f} "
                f"{cell[0]['peak_mb'] / row['peak_mb']:9.2f} {row['loss']:11.3e} {row['gradient_error']:14.1e}",
                flush=True,
            )
        rows += cell
    if args.record:
        _record({row["side"]: row for row in rows if RECORDED.items() <= row.items()})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def _record(rows: dict[str, dict[str, Any]]) -> None:
    ours, default, single = rows[OURS], rows[DEFAULT], rows[SINGLE]
    command = ".venv-peers/bin/python benchmarks/peers_learner.py"
    measure.record(
        "learner_over_trl",
        default["times_ours"],
        command=command,
        tokens=ours["tokens"],
        one_at_a_time=round(statistics.median(single["times_ours"]), 3),
    )
    measure.record(
        "learner_memory_over_trl",
        [ours["peak_mb"] / default["peak_mb"]],
        command=command,
        one_at_a_time=round(ours["peak_mb"] / single["peak_mb"], 3),
    )


if __name__ == "__main__":
    main()
