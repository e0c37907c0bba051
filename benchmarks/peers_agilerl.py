"""AgileRL's side of peers_multi_turn.py: its rollout harness and collector, its ``GSPO.learn()``.

Runs in the environment of requirements/agilerl.txt. The loop is that of AgileRL's own rollout training, without its
logging, checkpoints and population of one.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

import peers_job
from side import Pace

if TYPE_CHECKING:
    from peers_job import Job, Played

LORA_RANK = 128


def agent_for(job: Job, model: str, tokenizer: Any, seed: int) -> Any:
    """AgileRL's GSPO, set to what the other sides do."""
    import torch
    from agilerl.algorithms import GSPO
    from peft import LoraConfig

    minibatch = job.trajectories // peers_job.MINIBATCHES
    return GSPO(
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        model_name=model,
        model_config={"torch_dtype": torch.float32},
        lora_config=LoraConfig(
            r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        ),
        batch_size=job.groups,
        group_size=peers_job.GROUP_SIZE,
        mini_batch_size=minibatch,
        micro_batch_size_per_gpu=minibatch,
        update_epochs=1,
        lr=job.lr,
        clip_coef=(1.0 - job.clip[0], 1.0 + job.clip[1]),
        max_grad_norm=peers_job.GRAD_CLIP,
        beta=0.0,
        temperature=peers_job.TEMPERATURE,
        top_k=0,
        max_output_tokens=job.tokens_per_turn,
        max_model_len=job.context,
        adv_norm="mean_std",
        advantage_granularity="trajectory",
        loss_norm="episode",
        filter_zero_adv=True,
        off_policy_token_mask_bounds=None,
        off_policy_sequence_mask_threshold=None,
        use_separate_reference_adapter=False,
        use_liger_loss=False,
        gradient_checkpointing=False,
        device="cpu",
        seed=seed,
    )


def collector_for(job: Job, tokenizer: Any, played: list[Played]) -> Any:
    """AgileRL's collector over as many environments as there are trajectories, each noted in ``played``."""
    from agilerl.llm_envs import RolloutCollector, RolloutHarness

    class Harness(RolloutHarness):
        def _with_trailing_instruction(self, content: str) -> str:
            # It would repeat the system prompt behind the first observation, which the start model has never seen.
            return content

    def harness() -> Any:
        played.append(peers_job.Played(job))
        return Harness.local(played[-1], tokenizer, max_turns=job.most_turns, max_model_len=job.context)

    return RolloutCollector(harness, job.groups, peers_job.GROUP_SIZE)


def informative_tokens(played: list[Played], masks: list[Any]) -> float:
    """Sampled tokens of the trajectories whose group does not agree on its return."""
    total = 0.0
    for start in range(0, len(played), peers_job.GROUP_SIZE):
        members = slice(start, start + peers_job.GROUP_SIZE)
        if len({env.total for env in played[members]}) > 1:
            total += float(sum(mask.sum() for mask in masks[members]))
    return total


def run(job_name: str, model: str, seed: int) -> None:
    """Iterations until the parent closes the connection.

    Args:
        job_name: One of ``JOBS``.
        model: Folder of the policy to start from.
        seed: Seed of the run.
    """
    pace = Pace()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import agilerl

    # It would put Liger's kernels, which are written in Triton for GPUs, into the model because the package is there.
    agilerl.HAS_LIGER_KERNEL = False
    import torch
    from agilerl.rollouts.on_policy import collate_llm_rollouts, collect_rollouts_llm
    from transformers import AutoTokenizer

    job = peers_job.JOBS[job_name]
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    agent = agent_for(job, model, tokenizer, seed)
    played: list[Played] = []
    collector = collector_for(job, tokenizer, played)
    group_seed = 100_000 * seed
    while pace.wait():
        agent.init_training_step()
        ids, masks, turns, rewards, _, group_seed, logps, _ = collect_rollouts_llm(
            agent=agent, env=collector, n_steps=job.most_turns, batch_size=collector.batch_size, group_seed=group_seed
        )
        batch = collate_llm_rollouts(ids, masks, turns, rewards, logps, group_size=peers_job.GROUP_SIZE)
        agent.learn(batch.experiences(), turn_ids=batch.turn_ids, sampling_logps=batch.sampling_logps)
        agent.finalize_training_step(sum(env.turns for env in played))
        sampled = float(sum(mask.sum() for mask in masks))
        pace.done(**peers_job.facts(played, sampled=sampled, trained=informative_tokens(played, masks)))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
