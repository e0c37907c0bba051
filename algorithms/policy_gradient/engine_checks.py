"""Whether the chosen engine can be used, over as many processes as are asked for; said before the first actor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gspo_rllib.engines.registry import check_engine
from gspo_rllib.env_runners.engine_spec import chosen_engine
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import SettingError
from gspo_rllib.model_folder import load_model_config, model_path

TENSOR_PARALLEL = "tensor_parallel_size"
"""vLLM's option: how many processes share the matrices of one engine."""


def check_engine_fits(config: Any, generation: GenerationSettings, model_config: Mapping[str, Any]) -> None:
    """Refuses an engine that is not there, and a number of processes that the model or the GPUs cannot be dealt to.

    Args:
        config: The algorithm's config.
        generation: Generation settings of the config.
        model_config: Model settings, checked.

    Raises:
        EngineError: The engine is unknown, or its package is missing.
        SettingError: It has no such option, or cannot have this number of processes.
    """
    check_engine(chosen_engine(config).name, generation.engine_options)
    number = generation.engine_options.get(TENSOR_PARALLEL, 1)
    said = f"generation.engine_options[{TENSOR_PARALLEL!r}] is {number!r}"
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise SettingError(f"{said}; give the number of processes that share an engine's matrices, 1 or more.")
    if number == 1:
        return
    text = load_model_config(
        model_path(model_config), trust_remote_code=model_config["trust_remote_code"]
    ).get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if isinstance(heads, int) and heads % number:
        numbers = ", ".join(str(n) for n in range(1, heads + 1) if not heads % n)
        raise SettingError(
            f"{said}, and the model has {heads} attention heads, which so many processes cannot share equally. "
            f"Allowed: {numbers}."
        )
    each = config.num_gpus_per_env_runner
    if config.num_env_runners and each and each < number:
        raise SettingError(
            f"{said}, and env_runners.num_gpus_per_env_runner is {each:g}: each process takes a GPU of its own. Set "
            f"num_gpus_per_env_runner to {number}, on nodes that have as many."
        )
