"""Attributes of RLlib's ``AlgorithmConfig`` about a run while it runs: callbacks, evaluation, reporting, faults."""

from __future__ import annotations

from gspo_rllib.algorithms.policy_gradient.rllib_absent import RECORDED
from gspo_rllib.algorithms.policy_gradient.rllib_setting import (
    MOST_ACTORS,
    RLlibSetting,
    forwarded,
    free,
    refused,
    switch,
    used,
)
from gspo_rllib.value_forms import LONGEST_WAIT_S, function, functions, named, overriding

OWN_TIMEOUTS = (
    "Trajectories are waited for; what may hang has a limit of its own: generation.step_timeout_s for an environment, "
    "agent.trajectory_timeout_s for an agent."
)

_CALLBACKS: dict[str, RLlibSetting] = {
    "callbacks_class": forwarded(
        "callbacks", "Callbacks in one class, or a list of classes.", form=functions, evaluates=True
    ),
    **{
        f"callbacks_{event}": forwarded("callbacks", f"Called {when}.", form=functions, evaluates=evaluates)
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
        "evaluation",
        "How much an evaluation plays; 'all': every task the environment counts.",
        at_least=1,
        at_most=2**31 - 1,
        whole=True,
        also=("all",),
    ),
    "evaluation_duration_unit": used(
        "evaluation", "What that is counted in; timesteps are turns.", choices=("episodes", "timesteps")
    ),
    "evaluation_config": used(
        "evaluation", "What is different in an evaluation, e.g. {'explore': False}.", form=overriding
    ),
    "evaluation_num_env_runners": used(
        "evaluation",
        "Env runners of its own; 0: the training runners play it on the engines they have.",
        at_least=0,
        at_most=MOST_ACTORS,
        whole=True,
    ),
    "custom_evaluation_function": forwarded(
        "evaluation",
        "Called in place of the evaluation with the algorithm and the group of env runners that would play it; returns "
        "a dict of metrics and the numbers of environment and agent steps.",
        form=function,
    ),
    "evaluation_unhealthy_workers_timeout_s": used(
        "evaluation", "Longest wait for lost evaluation runners.", at_least=0, at_most=LONGEST_WAIT_S
    ),
    "evaluation_error_after_n_consecutive_skips": used(
        "evaluation",
        "Evaluations that may be skipped for want of a runner before it is an error.",
        at_least=1,
        whole=True,
    ),
    "in_evaluation": used("", "Set by RLlib in the evaluation's config.", evaluates=True),
    **refused("evaluation", OWN_TIMEOUTS, "evaluation_sample_timeout_s"),
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
        "reporting",
        "Shortest iteration: training steps are repeated until then, while they learn.",
        at_least=0,
        at_most=LONGEST_WAIT_S,
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
    "stats_cls_lookup": forwarded("reporting", "RLlib's classes of metrics.", form=named, evaluates=True),
    **refused("reporting", "The gradient's norm is always reported, as grad_norm. Leave it out.", "log_gradients"),
    **refused(
        "reporting",
        "Every metric is of the iteration's own trajectories, none is smoothed; smooth the curve where it is drawn. "
        "Leave it out.",
        *("metrics_num_episodes_for_smoothing", "metrics_episode_collection_timeout_s"),
        "keep_per_episode_custom_metrics",
    ),
}

_FAULT_TOLERANCE: dict[str, RLlibSetting] = {
    "restart_failed_env_runners": switch("fault_tolerance", "Whether a lost env runner is replaced.", evaluates=True),
    "ignore_env_runner_failures": switch(
        "fault_tolerance", "Whether the others go on where a lost one is not replaced.", evaluates=True
    ),
    "max_num_env_runner_restarts": forwarded(
        "fault_tolerance", "Times a runner is restarted.", at_least=0, whole=True, evaluates=True
    ),
    "delay_between_env_runner_restarts_s": used(
        "fault_tolerance",
        "Seconds before a failed runner restarts.",
        at_least=0,
        at_most=LONGEST_WAIT_S,
        evaluates=True,
    ),
    "env_runner_health_probe_timeout_s": used(
        "fault_tolerance",
        "Longest a runner may stand still before it is replaced.",
        at_least=0,
        at_most=LONGEST_WAIT_S,
        evaluates=True,
    ),
    "env_runner_restore_timeout_s": used(
        "fault_tolerance",
        "Longest to wait for a runner to come back where none is left.",
        at_least=0,
        at_most=LONGEST_WAIT_S,
        evaluates=True,
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

WHILE_IT_RUNS: dict[str, RLlibSetting] = {**_CALLBACKS, **_EVALUATION, **_REPORTING, **_FAULT_TOLERANCE}
"""Attribute to what becomes of it."""
