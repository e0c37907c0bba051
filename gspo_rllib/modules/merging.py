"""The whole model of a policy with an adapter, outside of training: to be written, or given to an engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from gspo_rllib.model_files import ADAPTER_BASE, ModelFiles
from gspo_rllib.model_folder import model_path
from gspo_rllib.modules.adapter import Adapter
from gspo_rllib.modules.loading import load_causal_lm
from gspo_rllib.modules.lora_settings import LoraSettings


def load_policy(model_config: Mapping[str, Any]) -> tuple[PreTrainedModel, Mapping[str, Tensor]]:
    """Loads a policy in float32.

    Args:
        model_config: ``path``, and if there is an adapter ``lora``.

    Returns:
        The model in evaluation mode, its adapter at work, and the whole weights by the names of a model without one.

    Raises:
        ModelError: The model cannot be loaded, or the adapter belongs to another one.
    """
    path = model_path(model_config)
    model, _ = load_causal_lm(path, trust_remote_code=bool(model_config.get("trust_remote_code", False)))
    if model_config.get("lora") is None:
        return model, model.state_dict()
    return model, Adapter(model, LoraSettings(**model_config["lora"]), path=path).merged_state()


def write_merged(adapter: str | Path, folder: str | Path) -> None:
    """Writes the model that a saved adapter makes, as a folder that transformers and vLLM load.

    Args:
        adapter: The adapter's folder, which says where the model below it is.
        folder: An existing local folder.

    Raises:
        ModelError: The model below is no longer there, or is another one.
    """
    path = json.loads((Path(adapter) / ADAPTER_BASE).read_text(encoding="utf-8"))["path"]
    model, config_class = load_causal_lm(path, trust_remote_code=False)
    # As the folder was read: with the adapter in it, the model's own names are others.
    files = ModelFiles.of(path, model, config_class=config_class)
    state = Adapter(model, LoraSettings(adapter=adapter), path=path).merged_state()
    files.write(model, folder, state=state)
