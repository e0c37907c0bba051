"""TRL's side of the comparisons by iteration: ``GRPOTrainer.train()`` whose ``rollout_func`` plays an environment.

Also what TRL's vLLM needs on a CPU, for every comparison with it.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from side import Pace

if TYPE_CHECKING:
    from peers_job import Job, Played

ENGINES: dict[str, dict[str, Any]] = {
    "generate": {},
    "vllm": {"use_vllm": True, "vllm_mode": "colocate", "vllm_importance_sampling_correction": False},
}


def fit_vllm_to_cpu() -> None:
    """Makes TRL's vLLM sample in float32, start quickly, and take new weights, none of which it does on a CPU."""
    import torch
    from trl.generation import vllm_generation

    @torch.no_grad()
    def sync_weights(generation: Any) -> None:
        weights = ((name, weight.detach()) for name, weight in generation._iter_named_params())
        generation.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        generation.llm.reset_prefix_cache()

    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    vllm_generation.LLM = functools.partial(vllm_generation.LLM, dtype="float32", enforce_eager=True)
    vllm_generation.VLLMGeneration.sync_weights = sync_weights


class Rollout:
    """The ``rollout_func``: all trajectories in step, a reply of each per call of the trainer's own generation.

    A trajectory's context only grows: what was sampled stays as it is, and the next observation is appended to it in
    the frame that the chat template puts around it, found once per role.

    Args:
        job: What is played.
        tokenizer: The policy's.
    """

    def __init__(self, job: Job, tokenizer: Any) -> None:
        from peers_job import Played

        self.played: list[Played] = [Played(job) for _ in range(job.trajectories)]
        self.sampled = 0
        self._job, self._tokenizer = job, tokenizer
        self._frames: dict[str, tuple[str, str]] = {}

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """One trajectory per prompt, whose text is the seed of its task."""
        first = self._reset([int(prompt[-1]["content"]) for prompt in prompts])
        contexts = [list(ids) for ids in first]
        masks: list[list[int]] = [[] for _ in prompts]
        active = list(range(len(prompts)))
        self.sampled = 0
        while active:
            replies, _ = trainer._generate_single_turn([contexts[i] for i in active], None, {}, num_generations=1)
            texts = self._tokenizer.batch_decode(replies, skip_special_tokens=True)
            shown: list[str] = []
            for i, reply, text in zip(active, replies, texts, strict=True):
                contexts[i] += reply
                masks[i] += [1] * len(reply)
                self.sampled += len(reply)
                observation, _, _, _, info = self.played[i].step(text)
                # A reply that ran out of tokens is ended for it.
                ended = reply[-1] == self._tokenizer.eos_token_id
                shown.append(("" if ended else self._tokenizer.eos_token) + self._framed(info["role"], observation))
            for i, ids in zip(active, self._tokenizer(shown, add_special_tokens=False)["input_ids"], strict=True):
                if not self.played[i].done:
                    contexts[i] += ids
                    masks[i] += [0] * len(ids)
            active = [i for i in active if self._goes_on(i, contexts[i])]
        return {
            "prompt_ids": first,
            "completion_ids": [ids[len(start) :] for ids, start in zip(contexts, first, strict=True)],
            "logprobs": None,
            "env_mask": masks,
            "env_return": [env.total for env in self.played],
        }

    def _goes_on(self, i: int, context: list[int]) -> bool:
        return not self.played[i].done and len(context) + self._job.tokens_per_turn <= self._job.context

    def _reset(self, seeds: list[int]) -> list[list[int]]:
        texts = []
        for env, seed in zip(self.played, seeds, strict=True):
            observation, _ = env.reset(seed=seed)
            messages = [{"role": "system", "content": env.system_prompt}, {"role": "user", "content": observation}]
            texts.append(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def _framed(self, role: str, observation: str) -> str:
        """What the chat template writes between the end of a reply and the start of the next."""
        if role not in self._frames:
            messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
            before = self._tokenizer.apply_chat_template(messages, tokenize=False)
            messages.append({"role": role, "content": "\N{REPLACEMENT CHARACTER}"})
            after = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            end = before.rindex(self._tokenizer.eos_token) + len(self._tokenizer.eos_token)
            assert after.startswith(before), (before, after)
            opening, closing = after[end:].split("\N{REPLACEMENT CHARACTER}")
            self._frames[role] = opening, closing
        opening, closing = self._frames[role]
        return opening + observation + closing


def run(job_name: str, model: str, seed: int, engine: str) -> None:
    """Iterations until the parent closes the connection.

    Args:
        job_name: One of ``JOBS``.
        model: Folder of the policy to start from.
        seed: Seed of the run.
        engine: One of ``ENGINES``.
    """
    pace = Pace()
    import peers_job
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    job = peers_job.JOBS[job_name]
    settings = dict(ENGINES[engine])
    if engine == "vllm":
        fit_vllm_to_cpu()
        settings["vllm_max_model_length"] = job.context
    tokenizer = AutoTokenizer.from_pretrained(model)
    rollout = Rollout(job, tokenizer)

    class Iterations(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not pace.wait():
                raise SystemExit

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % peers_job.MINIBATCHES == 0:
                pace.done(**peers_job.facts(rollout.played, sampled=rollout.sampled, trained=rollout.sampled))
                control.should_training_stop = not pace.wait()

    def reward(completions: Any, env_return: list[float], **_: Any) -> list[float]:
        return env_return

    tasks = [peers_job.task_seed(seed, number) for number in range(job.groups * peers_job.LONGEST_RUN)]
    per_step = job.trajectories // peers_job.MINIBATCHES
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, seed=seed, per_device_train_batch_size=per_step,
            gradient_accumulation_steps=1, steps_per_generation=peers_job.MINIBATCHES,
            num_generations=peers_job.GROUP_SIZE, max_completion_length=job.tokens_per_turn,
            temperature=peers_job.TEMPERATURE, top_k=0, top_p=1.0, importance_sampling_level="sequence",
            loss_type="grpo", epsilon=job.clip[0], epsilon_high=job.clip[1], beta=0.0, learning_rate=job.lr,
            lr_scheduler_type="constant", weight_decay=peers_job.WEIGHT_DECAY, max_grad_norm=peers_job.GRAD_CLIP,
            max_steps=peers_job.MINIBATCHES * peers_job.LONGEST_RUN, shuffle_dataset=False, **settings,
        )  # fmt: skip
        GRPOTrainer(
            model,
            reward_funcs=reward,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": str(task)}] for task in tasks]}),
            processing_class=tokenizer,
            rollout_func=rollout,
            callbacks=[Iterations()],
        ).train()


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
