"""What becomes of every attribute of RLlib's ``AlgorithmConfig``: a table, held to the installed RLlib by a test.

Builders' arguments go by other names now and then: ``learners(learner_class=...)`` sets ``_learner_class``.
"""

from __future__ import annotations

from gspo_rllib.algorithms.policy_gradient.rllib_absent import (
    DEPRECATED,
    MULTI_AGENT,
    OFFLINE,
    OLD_STACK,
    ONE_POLICY,
)
from gspo_rllib.algorithms.policy_gradient.rllib_setting import (
    MOST_ACTORS,
    RLlibSetting,
    forwarded,
    free,
    refused,
    switch,
    used,
)
from gspo_rllib.algorithms.policy_gradient.rllib_while_running import OWN_TIMEOUTS, WHILE_IT_RUNS
from gspo_rllib.value_forms import amounts, functions, named, word

MOST_SEEDS = 4_290_000_000
"""Largest seed: numpy's end at 2**32 - 1, and RLlib adds a million for evaluations, and the number of the runner."""

_BATCH = (
    "An iteration trains on groups_per_iteration x group_size trajectories, split into num_minibatches optimiser "
    "steps. Set those three instead."
)
_CONNECTORS = (
    "Text goes from the environment to the engine and back through no connector. Change what is observed in the "
    "environment, or in a Gymnasium wrapper around it."
)
_NO_STATES = (
    "Env runners have no connectors whose states could be merged, and each acknowledges its weights before it samples. "
    "Leave it out."
)
_NO_WORKER = "Env runners have no module to compile; engines have generation.engine_options. Leave it out."
_TF = "Models are torch's. Leave it out."
_WHOLE = "Trajectories are played to their end, and groups are whole. Limit them with generation.max_turns."
_SPACES = "The environment's own spaces are what counts. Leave it out."

_RESOURCES: dict[str, RLlibSetting] = {
    "algo_class": used("", "The Algorithm that build_algo makes."),
    "placement_strategy": forwarded(
        "resources",
        "How Ray Tune places a trial's actors on nodes.",
        choices=("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"),
    ),
    "num_cpus_for_main_process": forwarded(
        "resources",
        "CPUs of a trial's own process, under Ray Tune; and threads that torch computes with there, where the model is "
        "small and OMP_NUM_THREADS does not say.",
        at_least=0,
    ),
    "custom_resources_for_main_process": forwarded(
        "resources", "Further resources of a trial's own process, under Ray Tune.", form=amounts
    ),
    **refused(
        "resources", "Set learners(num_gpus_per_learner=...) or env_runners(num_gpus_per_env_runner=...).", "num_gpus"
    ),
    **refused("resources", "Leave it out; without a GPU, set no GPUs.", "_fake_gpus"),
    **refused(
        "python_environment",
        'RLlib reads it on its old API stack only. Give Ray the variables: ray.init(runtime_env={"env_vars": {...}}).',
        "extra_python_environs_for_driver",
        "extra_python_environs_for_worker",
    ),
}

_FRAMEWORK: dict[str, RLlibSetting] = {
    **refused("framework", "Models are torch's: framework('torch').", "framework_str"),
    **refused("framework", _TF, "eager_tracing", "eager_max_retraces", "tf_session_args", "local_tf_session_args"),
    "torch_compile_learner": switch(
        "framework",
        "Decoder layers go through torch.compile, all but their attention: for a GPU, where launching small operations "
        "is much of what a step takes beside its matrices. One learner, packed rows, nothing recomputed.",
    ),
    "torch_compile_learner_dynamo_backend": forwarded(
        "framework", "Given to torch.compile, with torch_compile_learner.", form=word
    ),
    "torch_compile_learner_dynamo_mode": forwarded(
        "framework", "Given to torch.compile, with torch_compile_learner.", form=word
    ),
    **refused(
        "framework",
        "What is compiled is each decoder layer, with torch_compile_learner. Leave it out.",
        "torch_compile_learner_what_to_compile",
    ),
    **refused(
        "framework",
        _NO_WORKER,
        *("torch_compile_worker", "torch_compile_worker_dynamo_backend", "torch_compile_worker_dynamo_mode"),
    ),
    "torch_ddp_kwargs": forwarded(
        "framework", "To torch's DistributedDataParallel, with several learners.", form=named
    ),
    "torch_skip_nan_gradients": free(
        "framework", "A step whose gradient is not finite is never taken, whatever is set here."
    ),
    **refused("api_stack", OLD_STACK, "enable_rl_module_and_learner", "enable_env_runner_and_connector_v2"),
}

_ENVIRONMENT: dict[str, RLlibSetting] = {
    "env": used("environment", "The environment that is played.", evaluates=True),
    "env_config": forwarded("environment", "Keyword arguments of the environment.", form=named, evaluates=True),
    **refused("environment", _SPACES, "observation_space", "action_space"),
    **refused("environment", "Rewards are taken as they are. Clip them in a Gymnasium wrapper.", "clip_rewards"),
    **refused(
        "environment", "An action is text. Leave it out.", "normalize_actions", "clip_actions", "action_mask_key"
    ),
    **refused("environment", "An environment here observes text. Leave it out.", "_is_atari", also=(False,)),
    **refused("environment", "What an environment must be is always checked. Leave it out.", "disable_env_checking"),
    **refused("environment", "Render in the environment, or in an on_episode_step callback.", "render_env"),
}

_ENV_RUNNERS: dict[str, RLlibSetting] = {
    "env_runner_cls": used("env_runners", "What samples: LanguageEnvRunner, or a subclass of it.", evaluates=True),
    "num_env_runners": used(
        "env_runners", "Env runners in actors; 0: one in the driver.", at_least=0, at_most=MOST_ACTORS, whole=True
    ),
    "create_local_env_runner": switch(
        "env_runners", "Whether the driver keeps one in reserve beside remote ones; it loads no model.", evaluates=True
    ),
    "num_envs_per_env_runner": used(
        "env_runners",
        "Trajectories that a runner plays at a time.",
        at_least=1,
        at_most=2**20,
        whole=True,
        evaluates=True,
    ),
    "num_cpus_per_env_runner": forwarded("env_runners", "CPUs of its actor.", at_least=0, evaluates=True),
    "num_gpus_per_env_runner": forwarded(
        "env_runners", "GPUs of its actor.", at_least=0, whole_above_1=True, evaluates=True
    ),
    "custom_resources_per_env_runner": forwarded(
        "env_runners", "Further resources of its actor.", form=amounts, evaluates=True
    ),
    "validate_env_runners_after_construction": switch(
        "env_runners", "Whether the driver waits until every remote runner answers.", evaluates=True
    ),
    "episodes_to_numpy": free("env_runners", "Episodes hold text and token ids and are never converted."),
    **refused(
        "env_runners",
        "An environment says itself where it runs: in the runner, in a thread or in a process (docs/environments.md).",
        "gym_env_vectorize_mode",
    ),
    **refused(
        "env_runners",
        "What is sampled ahead is bounded by training.max_staleness.",
        "max_requests_in_flight_per_env_runner",
    ),
    **refused("env_runners", OWN_TIMEOUTS, "sample_timeout_s"),
    **refused("env_runners", _WHOLE, "rollout_fragment_length", "batch_mode", "episode_lookback_horizon"),
    **refused(
        "env_runners",
        _CONNECTORS,
        *("_env_to_module_connector", "add_default_connectors_to_env_to_module_pipeline", "_module_to_env_connector"),
        *("add_default_connectors_to_module_to_env_pipeline", "observation_filter", "update_worker_filter_stats"),
        *("use_worker_filter_stats", "preprocessor_pref", "compress_observations"),
    ),
    **refused(
        "env_runners",
        _NO_STATES,
        *("merge_env_runner_states", "broadcast_env_runner_states", "use_env_runner_state_server"),
        "env_runner_state_server_max_concurrency",
    ),
    **refused("", _NO_STATES, "sync_filters_on_rollout_workers_timeout_s"),
    **refused(
        "env_runners",
        OLD_STACK,
        *("create_env_on_local_worker", "remote_worker_envs", "remote_env_batch_wait_ms", "sample_collector"),
        *("enable_tf1_exec_eagerly", "sampler_perf_stats_ema_coef", "exploration_config"),
    ),
    **refused("", OLD_STACK, "_prior_exploration_config"),
    "explore": switch(
        "env_runners", "False samples at temperature 0: in an evaluation, never in training.", evaluates=True
    ),
}

_LEARNERS: dict[str, RLlibSetting] = {
    "num_learners": used(
        "learners", "Learners in actors; 0: one in the driver.", at_least=0, at_most=MOST_ACTORS, whole=True
    ),
    "num_gpus_per_learner": forwarded("learners", "GPUs of each.", at_least=0, whole_above_1=True),
    "num_cpus_per_learner": forwarded(
        "learners", "CPUs of each; 'auto': 1, or 0 with a GPU.", at_least=0, also=("auto",)
    ),
    "custom_resources_per_learner": forwarded(
        "learners", "Further resources of each, where they are actors.", form=amounts
    ),
    "local_gpu_idx": used(
        "learners", "Which of the driver's GPUs a learner in the driver takes.", at_least=0, whole=True
    ),
    "_learner_class": used("learners", "The learner: a subclass of LanguageLearner (docs/objectives.md)."),
    "_learner_connector": used(
        "learners", "Pieces that see the episodes before this package's turn them into tokens.", form=functions
    ),
    "learner_config_dict": forwarded(
        "learners", "To code of the user's, which reads it from the config.", form=named, evaluates=True
    ),
    **refused(
        "learners",
        "RLlib's default pieces make columns that nothing here reads. Leave it out.",
        "add_default_connectors_to_learner_pipeline",
    ),
    **refused(
        "learners",
        "Whole groups go straight to the learners, one update at a time. Leave it out.",
        *("num_aggregator_actors_per_learner", "max_requests_in_flight_per_aggregator_actor"),
        "max_requests_in_flight_per_learner",
    ),
}

_TRAINING: dict[str, RLlibSetting] = {
    "gamma": used("training", "Discount, where the advantage estimator has one."),
    "lr": used("training", "AdamW's learning rate, or a schedule."),
    "grad_clip": used("training", "Largest gradient norm of an optimiser step."),
    "num_epochs": used("training", "Passes over an iteration's groups."),
    **refused("training", "The gradient is clipped by its norm over all parameters. Set grad_clip.", "grad_clip_by"),
    **refused("training", _BATCH, "train_batch_size", "_train_batch_size_per_learner", "minibatch_size"),
    **refused(
        "training",
        "Groups are shuffled into minibatches in every iteration anyway. Leave it out.",
        "shuffle_batch_per_epoch",
    ),
    **refused("training", 'The model is rl_module(model_config={"path": ...}).', "model"),
    **refused(
        "training", "The optimiser is AdamW. Set lr, weight_decay, adam_betas, adam_epsilon and grad_clip.", "optimizer"
    ),
}

_CHECKPOINTS: dict[str, RLlibSetting] = {
    "export_native_model_files": free("checkpointing", "Every checkpoint holds the policy as a Hugging Face folder."),
    **refused("checkpointing", ONE_POLICY, "checkpoint_trainable_policies_only"),
    **refused(
        "experimental",
        "A checkpoint is read back as it is written by default. Leave it out.",
        "_use_msgpack_checkpoints",
    ),
}

_DEBUGGING: dict[str, RLlibSetting] = {
    "log_level": used(
        "debugging", "Level of RLlib's log.", choices=("DEBUG", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL")
    ),
    "log_sys_usage": switch("debugging", "Whether Ray Tune adds CPU, memory and GPU use to results."),
    "seed": used(
        "debugging",
        "Root of everything random; None: another run every time.",
        at_least=0,
        at_most=MOST_SEEDS,
        whole=True,
        evaluates=True,
    ),
    **refused("debugging", OLD_STACK, "fake_sampler"),
}

_MODULE: dict[str, RLlibSetting] = {
    "_model_config": used(
        "rl_module", "The model: see docs/models.md. As a dict key it may be written model_config.", form=named
    ),
    "_rl_module_spec": used("rl_module", "A subclass of CausalLMModule of the user's own."),
    **refused("rl_module", ONE_POLICY + " Set its settings directly.", "algorithm_config_overrides_per_module"),
    **refused("", ONE_POLICY, "_per_module_overrides"),
}

_EXPERIMENTAL: dict[str, RLlibSetting] = {
    "_validate_config": switch("experimental", "Whether RLlib makes its own checks; this package's are always made."),
    "_is_frozen": used("", "Set by RLlib once an algorithm is built."),
    **refused("experimental", "Precision is rl_module(model_config={'precision': ...}).", "_torch_grad_scaler_class"),
    **refused("experimental", "A schedule is training(lr=[[timestep, lr], ...]).", "_torch_lr_scheduler_classes"),
    **refused(
        "experimental",
        OLD_STACK,
        *("_tf_policy_handles_more_than_one_loss", "_disable_preprocessor_api", "_disable_action_flattening"),
        "_disable_initialize_loss_from_dummy_batch",
    ),
    **refused(
        "", "Weights are sent by the algorithm, and acknowledged. Leave it out.", "_dont_auto_sync_env_runner_states"
    ),
}

RLLIB_SETTINGS: dict[str, RLlibSetting] = {
    **_RESOURCES,
    **_FRAMEWORK,
    **_ENVIRONMENT,
    **_ENV_RUNNERS,
    **_LEARNERS,
    **_TRAINING,
    **WHILE_IT_RUNS,
    **MULTI_AGENT,
    **OFFLINE,
    **_CHECKPOINTS,
    **_DEBUGGING,
    **_MODULE,
    **_EXPERIMENTAL,
    **DEPRECATED,
}
"""Attribute to what becomes of it."""
