"""An engine and a learner that take turns on one device: what is refused, whether both fit, and who gives way when.

The engine gives its memory back before an update (``Engine.sleep``); it takes memory again when it loads the weights
that come of it, which it reads where the learner has them.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import ray

from gspo_rllib.algorithms.policy_gradient import memory_plan
from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.engines.device_room import FILLABLE
from gspo_rllib.env_runners.engine_spec import chosen_engine
from gspo_rllib.errors import SettingError
from gspo_rllib.runner_calls import RunnerCall, returned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    from gspo_rllib.types import TrajectoryGroup

_SHARE = 0.01
"""Of a GPU that is asked how large it is."""


def check(config: Any) -> None:
    """Refuses settings under which engine and learner would not take turns on one device.

    Args:
        config: The algorithm's config.

    Raises:
        SettingError: Says which, and what to set.
    """
    if not config.colocate:
        return
    for section, name, most in (
        ("env_runners", "num_env_runners", 1),
        ("learners", "num_learners", 1),
        ("evaluation", "evaluation_num_env_runners", 0),
    ):
        if getattr(config, name) > most:
            raise SettingError(
                f"generation.colocate is for one engine and one learner on one device; {section}.{name} is "
                f"{getattr(config, name)}. Set it to {'0 or 1' if most else 0}, or leave colocate out."
            )
    if config.max_staleness:
        raise SettingError(
            f"generation.colocate has engine and learner take turns, and training.max_staleness="
            f"{config.max_staleness} has them work at the same time. Set max_staleness=0, or leave colocate out."
        )
    if config.adapter_sync == "swap":
        raise SettingError(
            "generation.colocate has the engine give its weights up, and adapter_sync='swap' has it keep the base. "
            "Set adapter_sync='merged', or leave colocate out."
        )
    if config.sync_dtype is not None:
        raise SettingError(
            f"generation.sync_dtype is {config.sync_dtype!r}, but with colocate nothing is sent: the engine reads the "
            "learner's weights and rounds them to its own precision. Leave sync_dtype out."
        )
    shares = config.num_gpus_per_learner, config.num_gpus_per_env_runner
    if config.num_env_runners and config.num_learners and sum(shares) > 1:
        raise SettingError(
            f"generation.colocate: learners.num_gpus_per_learner={shares[0]} and env_runners.num_gpus_per_env_runner="
            f"{shares[1]} are more than one GPU together. Give each a part of it, e.g. 0.5."
        )
    if chosen_engine(config).name == "vllm" and not _may_use_gpu(config):
        raise SettingError(
            "generation.colocate: vllm's build for CPU keeps its memory whatever it is told. Use "
            "generation.engine='transformers', give the env runner a GPU, or leave colocate out."
        )


def check_memory(config: Any) -> None:
    """Refuses a model for which the GPU is too small, before anything is loaded.

    Args:
        config: The algorithm's config, checked.

    Raises:
        SettingError: Says what is needed in each turn, and what would help.
    """
    if not config.colocate or not config.num_gpus_per_learner:
        return
    sizes = memory_plan.model_sizes(config)
    memory = memory_plan.learner_memory(config, sizes)
    total = _gpu_bytes(config)
    problems = list(memory_plan.colocation_problems(config, sizes, memory, total * FILLABLE, gpus=1))
    if problems:
        raise SettingError(f"generation.colocate: a GPU of {total / 1e9:.3g} GB is too small: {'; '.join(problems)}.")


class TakesTurns:
    """The part of an algorithm whose engine and learner share a device; before ``OutlivesLearners`` among the bases."""

    config: Any
    env_runner_group: EnvRunnerGroup
    learner_group: Any

    def _update_learners(self, groups: Sequence[TrajectoryGroup], **kwargs: Any) -> Any:
        """One update, with the device to itself where it is shared; see ``OutlivesLearners``."""
        if not self.config.colocate:
            return super()._update_learners(groups, **kwargs)  # type: ignore[misc]
        fleet = Fleet.of(self.env_runner_group)
        remote = fleet.num_remote_env_runners() > 0
        returned(fleet.foreach_env_runner(RunnerCall(_rest), local_env_runner=not remote))
        try:
            return super()._update_learners(groups, **kwargs)  # type: ignore[misc]
        finally:
            self.learner_group.foreach_learner(_give_memory_back)


def _rest(runner: Any) -> None:
    runner.rest_engine()


def _give_memory_back(learner: Any) -> None:
    """Gradients, and what torch's allocator keeps for later."""
    import torch

    for optimizer in learner._all_optimizers:
        optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _may_use_gpu(config: Any) -> bool:
    import torch

    return bool(config.num_gpus_per_env_runner) if config.num_env_runners else torch.cuda.is_available()


def _gpu_bytes(config: Any) -> int:
    """Memory of the GPU that a learner will have."""
    if not config.num_learners:
        return _memory(config.local_gpu_idx)
    asked: int = ray.get(ray.remote(num_cpus=0, num_gpus=_SHARE)(_memory).remote(0))
    return asked


def _memory(index: int) -> int:
    import torch

    return int(torch.cuda.get_device_properties(index).total_memory)
