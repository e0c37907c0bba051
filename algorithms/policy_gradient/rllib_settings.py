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
    RECORDED,
)
from gspo_rllib.algorithms.policy_gradient.rllib_setting import RLlibSetting, forwarded, free, refused, used

_BATCH = (
    "An iteration trains on groups_per_iteration x group_size trajectories, split into num_minibatches optimiser "
    "steps. Set those three instead."
)
_OWN_TIMEOUTS = (
    "Trajectories are waited for; what may hang has a limit of its own: generation.step_timeout_s for an environment, "
    "agent.trajectory_timeout_s for an agent."
)
_CONNECTORS = (
    "Text goes from the environment to the engine and back through no connector. Change what is observed in the "
    "environment, or in a Gymnasium wrapper around it."
)
_NO_STATES = (
    "Env runners have no connectors whose states could be merged, and each acknowledges its weights before it samples. "
    "Leave it out."
)
_COMPILE = (
    "RLlib compiles nothing here, so there is nothing to set. Leave it out; engines have generation.engine_options."
)
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
    "num_cpus_for_main_process": forwarded("resources", "CPUs of a trial's own process, under Ray Tune.", at_least=0),
    "custom_resources_for_main_process": forwarded(
        "resources", "Further resources of a trial's own process, under Ray Tune."
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
    **refused(
        "framework",
        _COMPILE,
        *("torch_compile_learner", "torch_compile_learner_what_to_compile", "torch_compile_learner_dynamo_backend"),
        *("torch_compile_learner_dynamo_mode", "torch_compile_worker", "torch_compile_worker_dynamo_backend"),
        "torch_compile_worker_dynamo_mode",
    ),
    "torch_ddp_kwargs": forwarded("framework", "To torch's DistributedDataParallel, with several learners."),
    "torch_skip_nan_gradients": free(
        "framework", "A step whose gradient is not finite is never taken, whatever is set here."
    ),
    **refused("api_stack", OLD_STACK, "enable_rl_module_and_learner", "enable_env_runner_and_connector_v2"),
}

_ENVIRONMENT: dict[str, RLlibSetting] = {
    "env": used("environment", "The environment that is played.", evaluates=True),
    "env_config": forwarded("environment", "Keyword arguments of the environment.", evaluates=True),
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
    "num_env_runners": used("env_runners", "Env runners in actors; 0: one in the driver.", at_least=0, whole=True),
    "create_local_env_runner": used(
        "env_runners", "Whether the driver keeps one in reserve beside remote ones; it loads no model.", evaluates=True
    ),
    "num_envs_per_env_runner": used("env_runners", "Trajectories that a runner plays at a time.", evaluates=True),
    "num_cpus_per_env_runner": forwarded("env_runners", "CPUs of its actor.", at_least=0, evaluates=True),
    "num_gpus_per_env_runner": forwarded("env_runners", "GPUs of its actor.", at_least=0, evaluates=True),
    "custom_resources_per_env_runner": forwarded("env_runners", "Further resources of its actor.", evaluates=True),
    "validate_env_runners_after_construction": used(
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
    **refused("env_runners", _OWN_TIMEOUTS, "sample_timeout_s"),
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
    "explore": used(
        "env_runners", "False samples at temperature 0: in an evaluation, never in training.", evaluates=True
    ),
}

_LEARNERS: dict[str, RLlibSetting] = {
    "num_learners": used("learners", "Learners in actors; 0: one in the driver.", at_least=0, whole=True),
    "num_gpus_per_learner": forwarded("learners", "GPUs of each.", at_least=0),
    "num_cpus_per_learner": forwarded("learners", "CPUs of each; 'auto': 1, or 0 with a GPU.", at_least=0),
    "custom_resources_per_learner": forwarded("learners", "Further resources of each, where they are actors."),
    "local_gpu_idx": used(
        "learners", "Which of the driver's GPUs a learner in the driver takes.", at_least=0, whole=True
    ),
    "_learner_class": used("learners", "The learner: a subclass of LanguageLearner (docs/objectives.md)."),
    "_learner_connector": used("learners", "Pieces that see the episodes before this package's turn them into tokens."),
    "learner_config_dict": forwarded(
        "learners", "To code of the user's, which reads it from the config.", evaluates=True
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

_CALLBACKS: dict[str, RLlibSetting] = {
    "callbacks_class": forwarded("callbacks", "Callbacks in one class, or a list of classes.", evaluates=True),
    **{
        f"callbacks_{event}": forwarded("callbacks", f"Called {when}.", evaluates=evaluates)
        for event, when, evaluates in (
            ("on_algorithm_init", "when everything is built", False),
            ("on_env_runners_recreated", "when lost env runners are back", False),
            ("on_checkpoint_loaded", "after a restore", False),
            ("on_episode_created", "before a trajectory's reset", True),
            ("on_episode_start", "after it", True),
            ("on_episode_step", "after a turn", True),
            ("on_episode_end", "after the last turn", True),
            ("on_evaluate_start", "before an evaluation", False),
            ("on_evaluate_end", "after it, with its metrics", False),
            ("on_sample_end", "with the episodes of finished groups", True),
            ("on_train_result", "with the result of an iteration", False),
        )
    },
    **refused(
        "callbacks",
        "Environments are made in threads and processes of their own, where no callback is called. Do it in the "
        "environment's constructor, or in on_episode_created.",
        "callbacks_on_environment_created",
    ),
    **refused(
        "callbacks",
        RECORDED,
        *("callbacks_on_offline_eval_runners_recreated", "callbacks_on_evaluate_offline_start"),
        "callbacks_on_evaluate_offline_end",
    ),
}

_EVALUATION: dict[str, RLlibSetting] = {
    "evaluation_interval": used(
        "evaluation", "Iterations between evaluations; None or 0: none.", at_least=0, whole=True
    ),
    "evaluation_duration": used(
        "evaluation", "How much an evaluation plays; 'all': every task the environment counts."
    ),
    "evaluation_duration_unit": used(
        "evaluation", "What that is counted in; timesteps are turns.", choices=("episodes", "timesteps")
    ),
    "evaluation_config": used("evaluation", "What is different in an evaluation, e.g. {'explore': False}."),
    "evaluation_num_env_runners": used(
        "evaluation",
        "Env runners of its own; 0: the training runners play it on the engines they have.",
        at_least=0,
        whole=True,
    ),
    "custom_evaluation_function": forwarded("evaluation", "Called in place of the evaluation, as RLlib documents."),
    "evaluation_unhealthy_workers_timeout_s": used(
        "evaluation", "Longest wait for lost evaluation runners.", at_least=0
    ),
    "evaluation_error_after_n_consecutive_skips": used(
        "evaluation",
        "Evaluations that may be skipped for want of a runner before it is an error.",
        at_least=1,
        whole=True,
    ),
    "in_evaluation": used("", "Set by RLlib in the evaluation's config.", evaluates=True),
    **refused("evaluation", _OWN_TIMEOUTS, "evaluation_sample_timeout_s"),
    **refused(
        "evaluation",
        "An evaluation plays between two iterations, with the weights of one version; evaluation_num_env_runners makes "
        "it shorter. Leave it out.",
        *("evaluation_parallel_to_training", "evaluation_auto_duration_min_env_steps_per_sample"),
        "evaluation_auto_duration_max_env_steps_per_sample",
    ),
    **refused(
        "evaluation",
        "Every trajectory starts with a reset, in an evaluation as well. Leave it out.",
        "evaluation_force_reset_envs_before_iteration",
    ),
}

_REPORTING: dict[str, RLlibSetting] = {
    "min_time_s_per_iteration": used(
        "reporting", "Shortest iteration: training steps are repeated until then, while they learn.", at_least=0
    ),
    "min_train_timesteps_per_iteration": used(
        "reporting",
        "Fewest trained turns of an iteration, likewise; one that learns nothing ends.",
        at_least=0,
        whole=True,
    ),
    "min_sample_timesteps_per_iteration": used(
        "reporting", "Fewest sampled turns of an iteration, likewise.", at_least=0, whole=True
    ),
    "stats_cls_lookup": forwarded("reporting", "RLlib's classes of metrics.", evaluates=True),
    **refused("reporting", "The gradient's norm is always reported, as grad_norm. Leave it out.", "log_gradients"),
    **refused(
        "reporting",
        "Every metric is of the iteration's own trajectories, none is smoothed; smooth the curve where it is drawn. "
        "Leave it out.",
        *("metrics_num_episodes_for_smoothing", "metrics_episode_collection_timeout_s"),
        "keep_per_episode_custom_metrics",
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
    "log_level": used("debugging", "Level of RLlib's log."),
    "log_sys_usage": used("debugging", "Whether Ray Tune adds CPU, memory and GPU use to results."),
    "seed": used("debugging", "Root of everything random; None: another run every time.", evaluates=True),
    **refused("debugging", OLD_STACK, "fake_sampler"),
}

_FAULT_TOLERANCE: dict[str, RLlibSetting] = {
    "restart_failed_env_runners": used("fault_tolerance", "Whether a lost env runner is replaced.", evaluates=True),
    "ignore_env_runner_failures": used(
        "fault_tolerance", "Whether the others go on where a lost one is not replaced.", evaluates=True
    ),
    "max_num_env_runner_restarts": forwarded(
        "fault_tolerance", "Times a runner is restarted.", at_least=0, whole=True, evaluates=True
    ),
    "delay_between_env_runner_restarts_s": used(
        "fault_tolerance", "Seconds before a failed runner restarts.", at_least=0, evaluates=True
    ),
    "env_runner_health_probe_timeout_s": used(
        "fault_tolerance", "Longest a runner may stand still before it is replaced.", at_least=0, evaluates=True
    ),
    "env_runner_restore_timeout_s": used(
        "fault_tolerance", "Longest to wait for a runner to come back where none is left.", at_least=0, evaluates=True
    ),
    "restart_failed_sub_environments": free(
        "fault_tolerance", "A failed environment is always replaced; see generation.trajectory_retries."
    ),
    **refused(
        "fault_tolerance",
        "The groups of a lost runner are played again by the others, or by itself once it is back. Set "
        "max_num_env_runner_restarts.",
        "num_consecutive_env_runner_failures_tolerance",
    ),
}

_MODULE: dict[str, RLlibSetting] = {
    "_model_config": used("rl_module", "The model: see docs/models.md. As a dict key it may be written model_config."),
    "_rl_module_spec": used("rl_module", "A subclass of CausalLMModule of the user's own."),
    **refused("rl_module", ONE_POLICY + " Set its settings directly.", "algorithm_config_overrides_per_module"),
    **refused("", ONE_POLICY, "_per_module_overrides"),
}

_EXPERIMENTAL: dict[str, RLlibSetting] = {
    "_validate_config": used("experimental", "Whether RLlib makes its own checks; this package's are always made."),
    "_is_frozen": used("", "Set by RLlib once an algorithm is built."),
    **refused(
        "experimental", "Precision is rl_module(model_config={'autocast_dtype': ...}).", "_torch_grad_scaler_class"
    ),
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
    **_CALLBACKS,
    **MULTI_AGENT,
    **OFFLINE,
    **_EVALUATION,
    **_REPORTING,
    **_CHECKPOINTS,
    **_DEBUGGING,
    **_FAULT_TOLERANCE,
    **_MODULE,
    **_EXPERIMENTAL,
    **DEPRECATED,
}
"""Attribute to what becomes of it."""
