"""This project's side of peers_multi_turn.py: iterations of ``GSPO.train()``, as they are told to be done."""

from __future__ import annotations

import sys

from side import Pace


def run(job_name: str, model: str, seed: int, engine: str) -> None:
    """Iterations until the parent closes the connection.

    Args:
        job_name: One of ``JOBS``.
        model: Folder of the policy to start from.
        seed: Seed of the run.
        engine: ``"transformers"`` or ``"vllm"``.
    """
    pace = Pace()
    import peers_job

    from gspo_rllib import metrics
    from gspo_rllib.algorithms import GSPOConfig
    from gspo_rllib.cli.cluster import ray_session
    from gspo_rllib.learners import statistics

    job = peers_job.JOBS[job_name]
    config = (
        GSPOConfig()
        .environment(job.env_id, env_config=dict(job.env_config))
        .rl_module(model_config={"path": model})
        .generation(
            engine=engine,
            temperature=peers_job.TEMPERATURE,
            max_tokens_per_turn=job.tokens_per_turn,
            max_model_len=job.context,
        )
        .env_runners(num_env_runners=0, num_envs_per_env_runner=job.trajectories)
        .learners(num_learners=0)
        .training(
            group_size=peers_job.GROUP_SIZE,
            groups_per_iteration=job.groups,
            num_minibatches=peers_job.MINIBATCHES,
            lr=job.lr,
            clip_low=job.clip[0],
            clip_high=job.clip[1],
            grad_clip=peers_job.GRAD_CLIP,
            weight_decay=peers_job.WEIGHT_DECAY,
        )
        .debugging(seed=seed, log_level="ERROR")
    )
    with ray_session(1):
        algorithm = config.build_algo()
        while pace.wait():
            result = algorithm.train()
            sampled = result["env_runners"]
            learnt = result["learners"]["default_policy"]
            informative = 1.0 - learnt[statistics.NUM_ZERO_ADVANTAGE] / learnt[statistics.NUM_TRAJECTORIES]
            pace.done(
                **{
                    "success": float(sampled[metrics.SUCCESS_MEAN]),
                    "return": float(sampled["episode_return_mean"]),
                    "turns": float(sampled["num_episodes"] * sampled["episode_len_mean"]),
                    "sampled": float(sampled[metrics.NUM_TOKENS_SAMPLED]),
                    "trained": float(sampled[metrics.NUM_TOKENS_SAMPLED] * informative),
                }
            )
        algorithm.stop()


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
