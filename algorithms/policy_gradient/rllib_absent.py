"""Attributes of RLlib's ``AlgorithmConfig`` of what there is none of here: data sets, several policies, old ways."""

from __future__ import annotations

from gspo_rllib.algorithms.policy_gradient.rllib_setting import RLlibSetting, refused

RECORDED = (
    "Groups that were recorded elsewhere are trained on with algo.train_on(groups), which needs no setting; training "
    "samples its own otherwise. Leave it out."
)
OLD_STACK = "It belongs to RLlib's old API stack, which these algorithms do not have. Leave it out."
ONE_POLICY = "There is one policy. An opponent or another speaker belongs into the environment. Leave it out."

MULTI_AGENT = refused(
    "multi_agent",
    ONE_POLICY,
    *("policies", "policy_map_capacity", "policy_mapping_fn", "policies_to_train", "policy_states_are_swappable"),
    *("observation_fn", "count_steps_by"),
)

OFFLINE: dict[str, RLlibSetting] = {
    **refused(
        "offline_data",
        RECORDED,
        *("input_", "offline_data_class", "input_read_method", "input_read_method_kwargs", "input_read_schema"),
        *("input_read_episodes", "input_read_sample_batches", "input_read_batch_size", "input_filesystem"),
        *("input_filesystem_kwargs", "input_compress_columns", "materialize_data", "materialize_mapped_data"),
        *("map_batches_kwargs", "iter_batches_kwargs", "ignore_final_observation", "prelearner_class"),
        *("prelearner_buffer_class", "prelearner_buffer_kwargs", "prelearner_module_synch_period"),
        *("prelearner_use_recorded_module_states", "dataset_num_iters_per_learner", "input_config"),
        *("actions_in_input_normalized", "postprocess_inputs", "shuffle_buffer_size", "offline_sampling"),
    ),
    **refused("", RECORDED, "input_spaces_jsonable", "_is_online"),
    **refused(
        "offline_data",
        "What is sampled is handed to an on_sample_end callback as episodes; write them there. Leave it out.",
        *("output", "output_config", "output_compress_columns", "output_max_file_size", "output_max_rows_per_file"),
        *("output_write_remaining_data", "output_write_method", "output_write_method_kwargs", "output_filesystem"),
        *("output_filesystem_kwargs", "output_write_episodes"),
    ),
    **refused(
        "evaluation",
        "An evaluation plays; there is none on recorded data. Leave it out.",
        *("off_policy_estimation_methods", "ope_split_batch_by_episode", "offline_evaluation_interval"),
        *("num_offline_eval_runners", "offline_evaluation_type", "offline_eval_runner_class"),
        *("offline_loss_for_module_fn", "offline_evaluation_duration", "offline_evaluation_parallel_to_training"),
        *("offline_evaluation_timeout_s", "num_cpus_per_offline_eval_runner", "num_gpus_per_offline_eval_runner"),
        *("custom_resources_per_offline_eval_runner", "restart_failed_offline_eval_runners"),
        *("ignore_offline_eval_runner_failures", "max_num_offline_eval_runner_restarts"),
        *("offline_eval_runner_restore_timeout_s", "max_requests_in_flight_per_offline_eval_runner"),
        *("validate_offline_eval_runners_after_construction", "offline_eval_runner_health_probe_timeout_s"),
        *("offline_eval_rl_module_inference_only", "broadcast_offline_eval_runner_states"),
        *("offline_eval_batch_size_per_runner", "dataset_num_iters_per_eval_runner"),
    ),
}

DEPRECATED: dict[str, RLlibSetting] = {
    **refused(
        "",
        "RLlib itself no longer reads it. Leave it out.",
        *("env_task_fn", "enable_connectors", "monitor", "evaluation_num_episodes", "metrics_smoothing_episodes"),
        *("timesteps_per_iteration", "min_iter_time_s", "collect_metrics_timeout", "min_time_s_per_reporting"),
        *("min_train_timesteps_per_reporting", "min_sample_timesteps_per_reporting", "input_evaluation"),
        *("policy_map_cache", "worker_cls", "synchronize_filters", "enable_async_evaluation"),
        *("custom_async_evaluation_function", "_enable_rl_module_api", "auto_wrap_old_gym_envs"),
        *("always_attach_evaluation_results", "buffer_size", "prioritized_replay", "learning_starts"),
        *("replay_batch_size", "replay_sequence_length", "replay_mode", "prioritized_replay_alpha"),
        *("prioritized_replay_beta", "prioritized_replay_eps", "_disable_execution_plan_api"),
    ),
    # RLlib's validation sets it to False.
    **refused("", OLD_STACK, "simple_optimizer", also=(False,)),
}
