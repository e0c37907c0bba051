"""Every private name of Ray that this package uses or overrides, and why: the list to go through when Ray is upgraded.

Ray promises nothing about these. A test holds the table to the installed Ray (each name is there, where the table says)
and to the sources of this package (each name they use is in the table, and the table has no other).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrivateName:
    """One private name.

    Attributes:
        owner: Import path of the class or module of Ray that defines it.
        name: The attribute or method.
        why: What is needed that the public interface does not offer.
    """

    owner: str
    name: str
    why: str


_ALGORITHM = "ray.rllib.algorithms.algorithm.Algorithm"
_CONFIG = "ray.rllib.algorithms.algorithm_config.AlgorithmConfig"
_LEARNER = "ray.rllib.core.learner.learner.Learner"
_TORCH_LEARNER = "ray.rllib.core.learner.torch.torch_learner.TorchLearner"
_EXECUTOR = "ray.train._internal.backend_executor.BackendExecutor"
_LEARNER_GROUP = "ray.rllib.core.learner.learner_group.LearnerGroup"
_RUNNER_GROUP = "ray.rllib.env.env_runner_group.EnvRunnerGroup"
_MODULE = "ray.rllib.core.rl_module.rl_module.RLModule"

PRIVATE_NAMES = (
    # -- the algorithm and its config
    PrivateName(
        _ALGORITHM,
        "_before_evaluate",
        "Overridden: the last hook before evaluation samples, where every runner must have acknowledged the weights.",
    ),
    PrivateName(
        _ALGORITHM,
        "_evaluate_on_local_env_runner",
        "Overridden: without remote evaluation runners the training runners play, each on the engine it has.",
    ),
    PrivateName(
        _ALGORITHM,
        "_evaluate_with_custom_eval_function",
        "Overridden: a user's function is given the runners that evaluate here, and is told what it has to return.",
    ),
    PrivateName(
        _ALGORITHM,
        "_evaluate_with_fixed_duration",
        "Overridden: which tasks are played must not depend on how many runners there are, nor on one that is lost.",
    ),
    PrivateName(
        _ALGORITHM,
        "_run_one_training_iteration",
        "Overridden: it repeats training steps until enough is trained, for ever where there is nothing to learn.",
    ),
    PrivateName(
        _ALGORITHM,
        "_should_create_evaluation_env_runners",
        "Overridden: a local evaluation runner would load an engine in the driver beside the training runners'.",
    ),
    PrivateName(
        _CONFIG,
        "_dont_auto_sync_env_runner_states",
        "Set to True: RLlib's own sync of weights does not wait for an acknowledgement, so the algorithm sends them.",
    ),
    PrivateName(
        _CONFIG,
        "_model_config",
        "What the user gave as rl_module(model_config=...), to be checked as such: the public property mixes the "
        "automatic entries into it.",
    ),
    PrivateName(
        _CONFIG,
        "_model_config_auto_includes",
        "Overridden: RLlib's own entries describe its default networks, and would be unknown settings of ours.",
    ),
    PrivateName(
        _CONFIG,
        "_learner_class",
        "What the user gave as learners(learner_class=...), to be checked as such; the public property is never None.",
    ),
    PrivateName(
        _CONFIG,
        "_rl_module_spec",
        "What the user gave as rl_module(rl_module_spec=...), likewise.",
    ),
    # -- the cluster
    PrivateName(
        "ray.actor.ActorHandle",
        "_actor_id",
        "The key of Ray's table of actors, which says in which process a runner is, also one that answers nothing.",
    ),
    PrivateName(
        "ray",
        "_private",
        "Of its module state: the largest cluster an autoscaler was told of, and which actors have no room yet. "
        "Nothing public says either without a dashboard.",
    ),
    PrivateName(
        "ray.experimental.internal_kv",
        "_internal_kv_get",
        "What Ray's monitor says of the nodes: whether an autoscaler started them.",
    ),
    # -- learners
    PrivateName(
        _LEARNER,
        "_create_iterator_if_necessary",
        "Overridden: minibatches are whole groups of trajectories, not rows of equally long columns.",
    ),
    PrivateName(
        _LEARNER,
        "_learner_connector",
        "The pipeline that turns episodes into a batch is called on all groups at once, before minibatches are cut; "
        "one of its pieces holds the reference policy.",
    ),
    PrivateName(
        _LEARNER,
        "_log_metrics",
        "Overridden: it warns about a minibatch without a turn, and a rank may well have none.",
    ),
    PrivateName(
        _LEARNER,
        "_make_module",
        "Overridden: where learners share a model, each loads its share of it.",
    ),
    PrivateName(
        _LEARNER,
        "_optimizer_lr_schedules",
        "The schedule of each optimiser's learning rate: after a restore it is set to the saved timestep at once, "
        "where RLlib would wait until an update is over.",
    ),
    PrivateName(
        _LEARNER,
        "_weights_seq_no",
        "The count of updates that names a version of the weights. Set to 0 before a state is restored, since RLlib "
        "ignores a state that is older than what it holds.",
    ),
    PrivateName(
        _TORCH_LEARNER,
        "_make_modules_ddp_if_necessary",
        "Overridden: where a pass may leave parameters without a gradient, DistributedDataParallel is told so; where "
        "learners share the model, there is none.",
    ),
    PrivateName(
        _TORCH_LEARNER,
        "_map_module_to_device",
        "Overridden: a module that learners share is cut before it goes to the device, and before it has optimisers.",
    ),
    PrivateName(
        _TORCH_LEARNER,
        "_get_optimizer_state",
        "Overridden: RLlib makes arrays of tensors, which shares of one are not; they are gathered first.",
    ),
    PrivateName(
        _TORCH_LEARNER,
        "_set_optimizer_state",
        "Overridden: of what was gathered, each learner that shares the model takes its part.",
    ),
    PrivateName(
        _LEARNER,
        "_named_optimizers",
        "Whose states these are.",
    ),
    PrivateName(
        _LEARNER,
        "_optimizer_name_to_module",
        "Which module an optimiser's state says it belongs to.",
    ),
    PrivateName(
        _TORCH_LEARNER,
        "_uncompiled_update",
        "Overridden: one optimiser step accumulates the gradient of several micro-batches.",
    ),
    PrivateName(
        _LEARNER_GROUP,
        "_worker_manager",
        "Replaced by one that watches the learners and has them rebuilt: all of RLlib's own calls go through it.",
    ),
    PrivateName(
        _LEARNER_GROUP,
        "_workers",
        "The learners' actors: which processes are to be watched, and ended before others take their place.",
    ),
    PrivateName(
        _LEARNER_GROUP,
        "_backend_executor",
        "Its group of workers is ended, and started again, where learners are lost.",
    ),
    PrivateName(
        _EXECUTOR,
        "_backend",
        "Connects the learners that were started again with each other.",
    ),
    PrivateName(
        _EXECUTOR,
        "_backend_config",
        "How they are connected.",
    ),
    PrivateName(
        _LEARNER,
        "_set_learner_index_and_placement_group",
        "Tells learners that were started again which they are, as RLlib's constructor does.",
    ),
    PrivateName(
        _LEARNER_GROUP,
        "_is_shut_down",
        "Set where the learners were ended from outside: RLlib would ask them to end once more.",
    ),
    # -- env runners
    PrivateName(
        _RUNNER_GROUP,
        "_remote_config",
        "Whether failed runners are restarted: without that, waiting for one would never end.",
    ),
    PrivateName(
        _RUNNER_GROUP,
        "_worker_manager",
        "Which runners are alive, and their actors: RLlib's asynchronous calls are dropped while an earlier one runs.",
    ),
    PrivateName(
        _RUNNER_GROUP,
        "_make_worker",
        "Overridden: a runner is started with the config itself, not with a reference that can be lost before Ray "
        "restarts it.",
    ),
    PrivateName(
        "ray.tune.registry",
        "_global_registry",
        "The environments registered with Tune by name; there is a public way in (register_env) and none out.",
    ),
    # -- Ray Tune's schedulers
    PrivateName(
        "ray.tune.schedulers.pbt.PopulationBasedTraining",
        "_trial_state",
        "When a trial was compared last, which is forgotten where a sweep goes on.",
    ),
    PrivateName(
        "ray.tune.schedulers.pbt.PopulationBasedTraining",
        "_perturbation_interval",
        "How often trials are compared.",
    ),
    # -- Weights & Biases
    PrivateName(
        "ray.air.integrations.wandb",
        "_WandbLoggingActor",
        "Extended: it is not to end before W&B's own process has, and there is no public class of it.",
    ),
    PrivateName(
        "ray.air.integrations.wandb.WandbLoggerCallback",
        "_logger_actor_cls",
        "Set: what logs a run, which is the class above extended.",
    ),
    PrivateName(
        "ray.air.integrations.wandb.WandbLoggerCallback",
        "_cleanup_logging_actor",
        "Overridden: where a logging process is ended, what it failed with can still be read.",
    ),
    PrivateName(
        "ray.air.integrations.wandb.WandbLoggerCallback",
        "_trial_logging_futures",
        "What a logging process ended with; Ray waits for it and reads it not.",
    ),
    # -- modules
    PrivateName(_MODULE, "_forward", "Overridden, as RLlib's documentation of custom modules asks for."),
    PrivateName(_MODULE, "_forward_train", "Likewise, for what a pass with a gradient does before it."),
)
