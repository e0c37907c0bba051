"""What users of other libraries call a setting, and what it is called here; asked before the nearest name is guessed.

The nearest name is often another thing: ``epsilon`` is no ``adam_epsilon``, and ``max_new_tokens`` no
``max_summary_tokens``. Words of a model's own settings are in ``modules/foreign_words.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gspo_rllib.errors import did_you_mean

_CLIP = "the clip range is training(clip_low=..., clip_high=...): how far below and above 1 a ratio may go."
_KL = "use training(kl_coeff=...), with kl_estimator and kl_placement; target_kl ends an iteration's updates early."
_GROUPS = (
    "use training(groups_per_iteration=...) for tasks, training(group_size=...) for trajectories of each, and "
    "training(num_minibatches=...) for the optimiser steps that they are split into."
)
_PASSES = (
    "use training(num_epochs=...) for passes over an iteration's trajectories; how long a run is, is said by "
    "run.iterations, or by how often algo.train() is called."
)
_OBJECTIVE = (
    "an objective is a choice of parts: training(importance_sampling_level=..., surrogate=..., reduction=...); "
    "docs/objectives.md has those of other libraries."
)
_ADVANTAGE = "use training(advantage_estimator='group_z_score'), or 'group_mean' for no division by the deviation."
_SCHEDULE = (
    "use training(lr_schedule={'unit': 'updates', 'warmup': 10, 'decay': 'cosine', 'total': 200}); lr is its peak."
)
_REPLY = "use generation(max_tokens_per_turn=...): the longest reply."
_CONTEXT = "use generation(max_model_len=...): prompt, replies and all that the environment says, together."
_ENGINE = (
    "it is the engine's own: use generation(engine_options={...}) with its name there, e.g. "
    "{'gpu_memory_utilization': 0.5}."
)
_SUPPORT = (
    "it would sample from another distribution than the one the learner scores. Use generation(temperature=...), "
    "which the learner follows."
)
_STOP = (
    "a turn ends where the model's chat template ends it; an environment adds strings of its own with "
    "ChatSpec(stop=(...))."
)
_DATA = (
    "data is an environment: environment('gspo_rllib.envs:gspo_rllib/Dataset-v0', env_config={'path': FILE, "
    "'verifier': 'numeric'}); its verifier is the reward."
)
_MODEL = "use rl_module(model_config={'path': FOLDER_OR_HUB_NAME})."
_PRECISION = (
    "use rl_module(model_config={'precision': 'bfloat16'}), for sampling and training; generation(engine_dtype=...) is "
    "for sampling alone."
)
_RUN = "it belongs to a run, not to its algorithm: see the section run: of a YAML file, `gspo-rllib settings 'run.*'`."
_EVALUATION = (
    "use evaluation(evaluation_interval=..., evaluation_duration=...), or run.evaluate_every on the command line."
)
_RUNNERS = "use env_runners(num_env_runners=...), and num_envs_per_env_runner for how many play at once in each."
_SECTION = "it is a section of a YAML file; what it holds stands by itself in a dict, e.g. {'temperature': 0}."
_GPUS = "use learners(num_gpus_per_learner=...) for training and env_runners(num_gpus_per_env_runner=...) for sampling."

_WORDS: dict[str, tuple[str, ...]] = {
    _CLIP: (
        "epsilon", "epsilon_low", "epsilon_high", "eps_clip", "eps", "clip_param", "clip_eps", "clip_epsilon",
        "clip_range", "cliprange", "clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_coef", "ppo_clip",
    ),
    _KL: (
        "beta", "kl_coef", "init_kl_coef", "kl_beta", "kl_loss_coef", "use_kl_loss", "use_kl_in_reward", "kl_penalty",
    ),
    _GROUPS: (
        "per_device_train_batch_size", "generation_batch_size", "rollout_batch_size", "batch_size", "num_prompts",
        "prompts_per_step", "ppo_mini_batch_size", "mini_batch_size", "sgd_minibatch_size", "global_batch_size",
    ),
    "use training(group_size=...): trajectories per task.": (
        "num_generations", "num_return_sequences", "n_samples_per_prompt", "samples_per_prompt", "rollout_n", "n",
        "num_samples_per_prompt", "rollouts_per_prompt", "num_rollouts",
    ),
    _PASSES: (
        "num_iterations", "num_train_epochs", "ppo_epochs", "num_sgd_iter", "update_epochs", "n_epochs", "epochs",
    ),
    "use training(max_tokens_per_micro_batch=...): rows are cut by tokens, and gradients add up until the step.": (
        "gradient_accumulation_steps", "accumulate_grad_batches", "micro_batch_size", "ppo_micro_batch_size",
        "micro_batch_size_per_gpu", "ppo_micro_batch_size_per_gpu", "ppo_max_token_len_per_gpu",
    ),
    "use training(lr=...).": ("learning_rate", "actor_lr", "policy_lr"),
    "use training(vf_lr=...).": ("critic_lr", "value_lr"),
    "use training(lambda_=...).": ("lam", "lambda", "gae_lambda"),
    "use training(vf_loss_coeff=...).": ("vf_coef", "value_loss_coef", "vf_loss_coef", "critic_coef"),
    "use training(entropy_coeff=...).": ("ent_coef", "entropy_bonus", "entropy_loss_coef"),
    "use training(grad_clip=...): the largest gradient norm.": (
        "max_grad_norm", "clip_grad_norm", "clip_grad", "gradient_clip_val", "gradient_clipping", "grad_norm_clip",
    ),
    _SCHEDULE: (
        "warmup_ratio", "warmup_steps", "lr_scheduler_type", "lr_scheduler", "lr_warmup", "lr_warmup_steps", "lr_decay",
        "lr_decay_style",
    ),
    _OBJECTIVE: ("loss_type", "loss_agg_mode", "loss_mode", "policy_loss", "loss_fn", "loss"),
    "use training(dual_clip=...), with surrogate='dual_clip'.": ("delta", "clip_ratio_c"),
    _ADVANTAGE: (
        "scale_rewards", "norm_adv_by_std_in_grpo", "normalize_advantages", "normalize_advantage", "whiten_advantages",
        "adv_estimator", "advantage_type", "whiten_rewards",
    ),
    "use training(adam_betas=(0.9, 0.999)).": ("adam_beta1", "adam_beta2", "betas"),
    "use training(reference_path=...), with kl_coeff.": ("ref_model", "reference_model", "ref_model_path", "ref_path"),
    _REPLY: (
        "max_new_tokens", "max_tokens", "max_completion_length", "max_response_length", "response_length",
        "max_completion_tokens", "max_gen_len", "generate_max_len",
    ),
    _CONTEXT: ("max_prompt_length", "max_length", "max_seq_len", "max_seq_length", "context_length", "prompt_length"),
    "use generation(engine='vllm'), or 'transformers'.": (
        "use_vllm", "inference_engine", "rollout_backend", "backend", "vllm_mode",
    ),
    _ENGINE: (
        "gpu_memory_utilization", "vllm_gpu_memory_utilization", "tensor_parallel_size", "vllm_tensor_parallel_size",
        "enforce_eager", "swap_space", "enable_prefix_caching", "kv_cache_dtype", "max_num_seqs", "quantization",
    ),
    _SUPPORT: (
        "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "bad_words",
        "typical_p", "top_p", "top_k", "min_p", "no_repeat_ngram_size", "logits_processors", "generation_kwargs",
        "sampling_params",
    ),
    "training samples; for the most likely token in evaluations, evaluation(evaluation_config={'temperature': 0}).": (
        "do_sample", "greedy", "num_beams",
    ),
    _STOP: ("stop", "stop_strings", "stop_sequences", "stop_token_ids", "eos_token_id"),
    "use debugging(seed=...).": ("seed",),
    _DATA: (
        "dataset", "train_dataset", "dataset_name", "train_files", "train_file", "data_path", "prompts", "reward_funcs",
        "reward_fn", "reward_function", "rewards",
    ),
    _MODEL: ("model", "path", "model_path", "model_name", "model_name_or_path", "model_id", "pretrain"),
    _PRECISION: (
        "precision", "dtype", "torch_dtype", "bf16", "fp16", "mixed_precision", "use_amp", "rollout_dtype", "half",
    ),
    _RUN: (
        "output_dir", "save_steps", "save_freq", "logging_steps", "report_to", "max_steps", "total_timesteps",
        "total_epochs", "total_training_steps", "run_name", "project_name", "experiment_name",
    ),
    _EVALUATION: (
        "eval_steps", "eval_strategy", "evaluation_strategy", "test_freq", "eval_dataset", "per_device_eval_batch_size",
    ),
    _RUNNERS: ("num_workers", "num_rollout_workers", "num_actors", "num_samplers"),
    _GPUS: ("num_gpus", "num_gpus_per_worker", "num_gpus_per_learner_worker", "n_gpus_per_node", "gpus"),
    _SECTION: ("generation", "training", "environment", "env_runners", "learners", "rl_module", "debugging", "agent"),
    "use environment(env='module:Name-v0').": ("env_name", "env_id", "environment_name"),
}  # fmt: skip

REMEDIES: Mapping[str, str] = {word: remedy for remedy, words in _WORDS.items() for word in words}
"""By word: what to use here."""


def hint(got: str, allowed: Iterable[str]) -> str:
    """A sentence that helps after a name that is no setting: what another library's word is here, or the nearest name.

    Args:
        got: The name.
        allowed: The names that there are.

    Example:
        >>> hint("learning_rate", ["lr", "vf_lr"]), hint("group_sise", ["group_size"])
        ('Use training(lr=...).', "Did you mean 'group_size'?")
    """
    remedy = REMEDIES.get(got)
    return did_you_mean(got, allowed) if remedy is None else remedy[0].upper() + remedy[1:]
