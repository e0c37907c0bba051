"""How long does one optimisation step of the whole loop take here and in TRL's ``GRPOTrainer``, on the same job?

    .venv-peers/bin/python benchmarks/peers_loop.py

The job: 4 prompts of 64 tokens, 8 completions of 128 tokens each, one reward, one optimiser step on the 32 of them.
The same random Qwen3 (vocabulary 32k), float32 throughout, one compute thread per process. Completions end by
themselves with a chance of 1 in 32,000 per token, so practically never; the tokens sampled are printed.

Every side runs in a process of its own and keeps it: they take turns, step by step, so the others wait while one works,
and all of the machine's cores are there for it. CPU seconds and the peak resident size are those of the process and all
its children (Ray's among ours), added up, start included. The first step warms up.

Ours: ``GSPOConfig`` with engine ``vllm``, everything in the driver, one minibatch, all else at its defaults.

TRL's: ``GRPOTrainer.train()`` with ``importance_sampling_level="sequence"`` and ``loss_type="grpo"``, 8 completions at
a time and 4 times gradient accumulation: one optimiser step per generation batch. It samples with Hugging Face
generate, its default, or with vLLM in its own process. What is not at its default is so to TRL's advantage: no gradient
checkpointing, no bfloat16 (emulated, so slower, on many CPUs), no importance-sampling correction between vLLM and the
trainer (a third pass over the tokens, which float32 does not need; ``--sides`` offers it as well), a cache of 1 GB for
vLLM in place of 30 % of the machine, and the context cut to the job's. The ratio that is recorded is to the fastest.

TRL's vLLM needs help on a CPU (``peers_trl.fit_vllm_to_cpu``): it would sample in bfloat16, whatever the model's
precision, and its way to hand over weights fails there (``load_weights`` on layers vLLM has packed), so vLLM's own
``reload_weights`` does it. It runs without torch.compile, as ours does.

What is unlike: TRL computes its loss on 8 completions at a time and ours on up to 16,384 tokens, the defaults of both.
A step ends with the optimiser's: TRL hands the weights to its engine at the start of the next step, ours at the end of
the same one, so that either counts them once.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

from side import ALIKE, Child, Pace

os.environ |= ALIKE

import measure
import peers_trl
import workload
from transformers import AutoTokenizer

PROMPT_TOKENS, COMPLETION_TOKENS, NUM_PROMPTS = 64, 128, 4
CONTEXT = PROMPT_TOKENS + COMPLETION_TOKENS + 32
OURS = "ours"
TRL: dict[str, dict[str, Any]] = {
    "TRL, HF generate": {},
    "TRL, vLLM": {"use_vllm": True, "vllm_importance_sampling_correction": False},
    "TRL, vLLM, corrected": {"use_vllm": True},
}
DEFAULT_SIDES = [OURS, "TRL, HF generate", "TRL, vLLM"]


def num_digits(model: str) -> int:
    """How many digits make a prompt of ``PROMPT_TOKENS``, chat frame included."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    frame = tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False)
    return PROMPT_TOKENS - len(tokenizer(frame, add_special_tokens=False)["input_ids"])


def run_ours(model: str, pace: Pace) -> None:
    """Steps of ``GSPO.train()`` until the parent closes the connection."""
    from gspo_rllib import metrics
    from gspo_rllib.algorithms import GSPOConfig
    from gspo_rllib.cli.cluster import ray_session

    config = (
        GSPOConfig()
        .environment(workload.PromptEnv, env_config={"num_digits": num_digits(model)})
        .rl_module(model_config={"path": model})
        .generation(engine="vllm", max_tokens_per_turn=COMPLETION_TOKENS, max_model_len=CONTEXT)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=NUM_PROMPTS * workload.GROUP_SIZE)
        .learners(num_learners=0)
        .training(group_size=workload.GROUP_SIZE, groups_per_iteration=NUM_PROMPTS, num_minibatches=1)
        .debugging(seed=0)
    )
    with ray_session(1):
        algorithm = config.build_algo()
        while pace.wait():
            sampled = algorithm.train()["env_runners"]
            assert sampled[metrics.NUM_TOKENS_PROMPTED] == NUM_PROMPTS * workload.GROUP_SIZE * PROMPT_TOKENS, sampled
            pace.done(tokens=int(sampled[metrics.NUM_TOKENS_SAMPLED]))
        algorithm.stop()


def run_trl(model: str, pace: Pace, settings: dict[str, Any]) -> None:
    """Steps of ``GRPOTrainer.train()`` until the parent closes the connection."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokens: list[int] = []

    class Steps(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            pace.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            pace.done(tokens=sum(tokens))
            tokens.clear()
            control.should_training_stop = not pace.wait()

    def reward(completions: Any, completion_ids: list[list[int]], **_: Any) -> list[float]:
        tokens.extend(map(len, completion_ids))
        return [workload.reward_of(messages[0]["content"]) for messages in completions]

    if settings.get("use_vllm"):
        peers_trl.fit_vllm_to_cpu()
        settings = settings | {"vllm_mode": "colocate", "vllm_max_model_length": CONTEXT}
    digits = num_digits(model)
    prompts = [[{"role": "user", "content": workload.prompt_of(seed, digits)}] for seed in range(1024)]
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
            disable_tqdm=True, per_device_train_batch_size=workload.GROUP_SIZE,
            gradient_accumulation_steps=NUM_PROMPTS, num_generations=workload.GROUP_SIZE,
            max_completion_length=COMPLETION_TOKENS, importance_sampling_level="sequence", loss_type="grpo",
            epsilon=3e-4, epsilon_high=4e-4, beta=0.0, learning_rate=1e-6, weight_decay=0.01, max_steps=1000,
            **settings,
        )  # fmt: skip
        GRPOTrainer(
            model,
            reward_funcs=reward,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[Steps()],
        ).train()


def compare(names: list[str], model: str, repetitions: int) -> dict[str, list[dict[str, float]]]:
    """What every step of every side cost, warm-up left out."""
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    children: list[Child] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            # One after the other: a side that starts while another is measured would disturb it.
            for name in names:
                command = [sys.executable, __file__, "--child", name, "--model", model]
                children.append(Child(name, command, pathlib.Path(folder, f"{name}.log")))
                children[-1].step()
            for _ in range(repetitions):
                for child in children:
                    steps[child.name].append(child.step())
        finally:
            for child in children:
                child.stop()
    return steps


def main() -> None:
    """Prints one row per side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=workload.SIZES, default="small")
    parser.add_argument("--sides", nargs="+", choices=[OURS, *TRL], default=DEFAULT_SIDES)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    parser.add_argument("--record", action="store_true", help="merge the ratio into latest.json")
    parser.add_argument("--models", default="models/benchmarks", help="where the random models are kept")
    parser.add_argument("--child", choices=[OURS, *TRL], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == OURS:
        return run_ours(args.model, Pace())
    if args.child:
        return run_trl(args.model, Pace(), TRL[args.child])

    model = workload.random_model(pathlib.Path(args.models), size=args.size, vocabulary=32_000)
    steps = compare(args.sides, str(pathlib.Path(model).resolve()), args.repetitions)
    middle = {
        name: {key: statistics.median(step[key] for step in taken) for key in taken[0]} for name, taken in steps.items()
    }
    print(
        f"{'side':>20} {'CPU s/step':>10} {'wall s/step':>11} {'× ours, CPU':>11} {'× ours, wall':>12} "
        f"{'tokens sampled':>14} {'peak MB':>8}   ({args.size} model, {os.cpu_count()} cores, 1 thread each)"
    )
    base = middle[args.sides[0]]
    for name, row in middle.items():
        print(
            f"{name:>20} {row['cpu_s']:10.2f} {row['wall_s']:11.2f} {row['cpu_s'] / base['cpu_s']:11.2f} "
            f"{row['wall_s'] / base['wall_s']:12.2f} {row['tokens']:14.0f} {row['peak_mb']:8.0f}"
        )
    if args.record:
        fastest = min((name for name in steps if name != OURS), key=lambda name: middle[name]["cpu_s"])
        measure.record(
            "loop_over_trl",
            [trl["cpu_s"] / ours["cpu_s"] for trl, ours in zip(steps[fastest], steps[OURS], strict=True)],
            command=".venv-peers/bin/python benchmarks/peers_loop.py",
            beside=fastest,
            wall=round(middle[fastest]["wall_s"] / middle[OURS]["wall_s"], 3),
            peak_mb={name: round(row["peak_mb"]) for name, row in middle.items()},
        )
    if args.json:
        args.json.write_text(json.dumps({"size": args.size, "steps": steps}, indent=1))


if __name__ == "__main__":
    main()
