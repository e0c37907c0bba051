"""What a run with an adapter is refused for before the first actor starts, and which reference policy it has."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from gspo_rllib.env_runners.engine_spec import chosen_engine
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import SettingError
from gspo_rllib.model_folder import load_model_config, model_path
from gspo_rllib.modules.lora_settings import VLLM_RANKS, largest_rank
from gspo_rllib.precision import engine_dtype

logger = logging.getLogger("gspo_rllib")

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configs call the number of experts."""


def check(config: Any, generation: GenerationSettings, model_config: Mapping[str, Any]) -> None:
    """Refuses settings that an adapter cannot have, or that take one.

    Args:
        config: The algorithm's config.
        generation: Generation settings of the config.
        model_config: Model settings, checked.

    Raises:
        SettingError: A combination is refused.
    """
    lora = model_config["lora"]
    if lora is None:
        if generation.adapter_sync is not None:
            raise SettingError(
                f"generation.adapter_sync is {generation.adapter_sync!r}, but the policy has no adapter. Leave it out, "
                "or train one: rl_module(model_config={'path': ..., 'lora': {'rank': 16, 'alpha': 32}})."
            )
        return
    if not config.in_evaluation:
        _check_reference(config, model_config)
        recomputes = model_config["activation_checkpointing"] or model_config["max_activation_gb"] is not None
        if lora.get("target_parameters") and not recomputes:
            logger.warning(
                "rl_module.model_config['lora'] adapts experts (target_parameters) with activation_checkpointing "
                "False: every layer then keeps an updated copy of its experts until the backward pass, which takes "
                "more memory than training them. Set activation_checkpointing to True."
            )
    if generation.adapter_sync == "swap":
        _check_swap(config, generation, model_config)


def reference_settings(model_config: Mapping[str, Any], reference_path: str | None) -> dict[str, Any] | None:
    """The model settings of the reference policy; None where it is the policy with its adapter off.

    Args:
        model_config: The policy's model settings.
        reference_path: Where the reference is; None for the model that training starts from.
    """
    path = reference_path or model_config["path"]
    if model_config.get("lora") is None:
        return {**model_config, "path": path}
    if _same(path, model_config["path"]):
        return None
    return {**model_config, "path": path, "lora": None}


def _check_reference(config: Any, model_config: Mapping[str, Any]) -> None:
    starts_from = model_config["lora"].get("adapter")
    is_base = config.reference_path is not None and _same(config.reference_path, model_config["path"])
    if is_base and starts_from is None:
        raise SettingError(
            f"training.reference_path is {config.reference_path!r}, the model below the adapter. That reference is "
            "free: with the adapter off, the policy is that model. Leave reference_path out."
        )
    if config.kl_coeff and starts_from is not None and config.reference_path is None:
        raise SettingError(
            f"training.kl_coeff is {config.kl_coeff} and the policy starts from the adapter in {str(starts_from)!r}: "
            "the reference could be that policy, or the model below it. For the model below, set reference_path to "
            f"{str(model_config['path'])!r}; it costs no copy. For the policy, write it as a whole model (`gspo-rllib "
            "export --merge`, or peft's merge_and_unload) and train a new adapter on that folder."
        )


def _check_swap(config: Any, generation: GenerationSettings, model_config: Mapping[str, Any]) -> None:
    engine = chosen_engine(config).name
    merged = "Use adapter_sync='merged', which every engine can do."
    if engine != "vllm":
        raise SettingError(f"generation.adapter_sync is 'swap', which takes engine='vllm'; it is {engine!r}. {merged}")
    lora = model_config["lora"]
    if (rank := largest_rank(lora)) > VLLM_RANKS[-1]:
        raise SettingError(
            f"generation.adapter_sync is 'swap', and the adapter's rank is {rank}; vLLM serves {VLLM_RANKS[-1]} at "
            f"most. Choose a smaller rank. {merged}"
        )
    on_cpu, dtype = _samples_on_cpu(config, generation), engine_dtype(generation, model_config)
    if not on_cpu and dtype == "float32":
        raise SettingError(
            "generation.adapter_sync is 'swap', and on a GPU vLLM serves adapters in bfloat16 only; the engine's "
            "precision is float32. Set rl_module.model_config['precision'] to 'bfloat16', or generation.engine_dtype "
            f"alone. {merged}"
        )
    settings = load_model_config(
        model_path(model_config), trust_remote_code=model_config["trust_remote_code"]
    ).get_text_config()
    if any(getattr(settings, name, None) for name in _EXPERTS):
        if on_cpu:
            raise SettingError(
                "generation.adapter_sync is 'swap', but on a CPU vLLM cannot serve a mixture of experts with adapters, "
                f"not even with one on attention alone. {merged}"
            )
        if lora.get("target_parameters"):
            raise SettingError(
                "generation.adapter_sync is 'swap', and the adapter updates fused experts (target_parameters), which "
                f"were never compared with the learner in vLLM. {merged}"
            )


def _samples_on_cpu(config: Any, generation: GenerationSettings) -> bool:
    import torch

    if generation.engine_device is not None:
        return generation.engine_device.startswith("cpu")
    asked = config.num_gpus_per_env_runner if config.num_env_runners else torch.cuda.is_available()
    return not asked


def _same(one: Any, other: Any) -> bool:
    return str(one) == str(other) or os.path.realpath(str(one)) == os.path.realpath(str(other))
