"""What a run whose learners share a model or a device, or compile, is refused for before the first actor starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from gspo_rllib.algorithms.policy_gradient import colocation
from gspo_rllib.errors import ModelError, SettingError, did_you_mean
from gspo_rllib.learners.sharding_settings import LearnersSettings, shards
from gspo_rllib.model_check import without_storage
from gspo_rllib.model_folder import load_model_config, model_path


def module_settings(config: Any) -> dict[str, Any]:
    """What a policy's ``model_config`` holds of the learners', beside the user's own."""
    if not config.torch_compile_learner:
        return {}
    return {"compiled": [config.torch_compile_learner_dynamo_backend, config.torch_compile_learner_dynamo_mode]}


def check(config: Any, model_config: Mapping[str, Any]) -> None:
    """Refuses settings that learners cannot share a model or a device with, or layers compiled.

    Args:
        config: The algorithm's config.
        model_config: Model settings, checked.

    Raises:
        SettingError: A combination is refused, or torch has no such compiler.
        ModelError: The model does not say which its layers are.
    """
    config.settings(LearnersSettings)
    if config.in_evaluation:
        return
    colocation.check(config)
    if config.torch_compile_learner:
        _check_compilation(config, model_config)
    if shards(config):
        _check_sharding(config, model_config)
    if config.routing_replay:
        _check_replay(config, model_config)
    _check_used(config)


def _check_used(config: Any) -> None:
    """Refuses what only a compiler, or several learners, would read."""
    defaults = AlgorithmConfig()
    needs = {
        "torch_compile_learner_dynamo_backend": ("torch_compile_learner=True", bool(config.torch_compile_learner)),
        "torch_compile_learner_dynamo_mode": ("torch_compile_learner=True", bool(config.torch_compile_learner)),
        "torch_ddp_kwargs": ("learners(num_learners=2) or more", config.num_learners > 1),
    }
    for name, (needed, is_there) in needs.items():
        value = getattr(config, name)
        if not is_there and value != getattr(defaults, name):
            raise SettingError(
                f"framework.{name} is {value!r}, which has no effect without {needed}. Set that, or leave {name} out."
            )


def _check_sharding(config: Any, model_config: Mapping[str, Any]) -> None:
    if config.num_learners < 2:
        raise SettingError(
            f"learners.sharding is {config.sharding!r} and num_learners is {config.num_learners}: there is nobody to "
            "share the model with. Set num_learners to 2 or more, or leave sharding out."
        )
    if config.torch_ddp_kwargs:
        raise SettingError(
            f"framework.torch_ddp_kwargs is {config.torch_ddp_kwargs!r}, which goes to DistributedDataParallel; with "
            f"learners.sharding={config.sharding!r} there is none. Leave one of the two out."
        )
    if 0 < config.num_gpus_per_learner < 1:
        raise SettingError(
            f"learners.num_gpus_per_learner is {config.num_gpus_per_learner} with sharding={config.sharding!r}: "
            "learners that share a GPU cannot exchange their shares (NCCL takes one GPU each). Set it to 1."
        )
    if (limit := model_config["max_activation_gb"]) is not None:
        raise SettingError(
            f"rl_module.model_config['max_activation_gb'] is {limit:g} with learners.sharding={config.sharding!r}: "
            "what fits is found out in passes that one learner would make without the others. Set "
            "activation_checkpointing to True instead."
        )
    _check_layers(model_config)


def _check_replay(config: Any, model_config: Mapping[str, Any]) -> None:
    if config.torch_compile_learner:
        raise SettingError(
            "training.routing_replay is True with framework.torch_compile_learner: what is held to its experts is not "
            "compiled. Leave one of the two out."
        )
    if (limit := model_config["max_activation_gb"]) is not None:
        raise SettingError(
            f"training.routing_replay is True with rl_module.model_config['max_activation_gb'] {limit:g}: a layer "
            "that is computed some tokens at a time does not say which. Set activation_checkpointing to True instead."
        )


def _check_layers(model_config: Mapping[str, Any]) -> None:
    """Looks at the model without its weights; one that cannot be built so is left to the learners."""
    from gspo_rllib.modules.sharding import check_has_layers

    path, trust = model_path(model_config), model_config["trust_remote_code"]
    found = load_model_config(path, trust_remote_code=trust)
    try:
        model = without_storage(path, found, trust_remote_code=trust)
    except ModelError:
        return
    try:
        check_has_layers(model)
    except ModelError as error:
        raise ModelError(f"learners.sharding: {error}") from None


def _check_compilation(config: Any, model_config: Mapping[str, Any]) -> None:
    if config.num_learners > 1:
        raise SettingError(
            f"framework.torch_compile_learner is True with {config.num_learners} learners: what is compiled was never "
            "compared with what is not where gradients are exchanged. Set num_learners to 0 or 1, or leave it out."
        )
    recomputes = [name for name in ("activation_checkpointing", "max_activation_gb") if model_config[name]]
    if recomputes:
        raise SettingError(
            f"framework.torch_compile_learner is True with rl_module.model_config[{recomputes[0]!r}]: a layer that "
            "computes its activations again is not compiled. Leave one of the two out."
        )
    import torch._dynamo  # takes seconds: only where it is asked for

    backend, mode = config.torch_compile_learner_dynamo_backend, config.torch_compile_learner_dynamo_mode
    if backend not in (known := torch._dynamo.list_backends(exclude_tags=())):
        raise SettingError(
            f"framework.torch_compile_learner_dynamo_backend is {backend!r}, which torch does not have. "
            f"{did_you_mean(str(backend), known)}"
        )
    if mode is not None and mode not in (modes := torch._inductor.list_mode_options()):
        raise SettingError(
            f"framework.torch_compile_learner_dynamo_mode is {mode!r}, which torch does not have. "
            f"{did_you_mean(str(mode), modes)}"
        )
