"""Loading a causal language model as it is trained: in float32, whole, and nothing beside it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from gspo_rllib.errors import ModelError
from gspo_rllib.model_folder import load_model_config, quiet_transformers, translated


def load_causal_lm(path: str, *, trust_remote_code: bool) -> tuple[PreTrainedModel, type[Any]]:
    """Loads the model of a local Hugging Face folder or hub name.

    Args:
        path: The folder or hub name.
        trust_remote_code: Whether the folder may run its own code.

    Returns:
        The model in evaluation mode, and the class of the config that its folder describes.

    Raises:
        ModelError: It cannot be loaded, lacks weights, or has an adapter beside it.
    """
    config = load_model_config(path, trust_remote_code=trust_remote_code)
    with quiet_transformers(), translated(path, "no causal language model could be loaded"):
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"model path {path!r}: {len(missing)} weights of the model are not in the folder, {missing[0]} for one; "
            "transformers would have made them up. Download or save the model again."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"model path {path!r} holds an adapter beside its model. Merge both, or leave it out.")
    return model.eval(), type(config)
