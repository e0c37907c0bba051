"""Reading the weights of a saved policy into a module that has been built."""

from __future__ import annotations

import pathlib
from typing import Any

import torch

from gspo_rllib.errors import ModelError
from gspo_rllib.model_folder import quiet_transformers
from gspo_rllib.modules.critic import CRITIC_FILE
from gspo_rllib.modules.lora_settings import check_saved_policy
from gspo_rllib.modules.sharding import mesh_of
from gspo_rllib.modules.shares import check_arrived, cut_on_arrival, loaded_as_shares


def read_policy(module: Any, folder: pathlib.Path, *, source: str) -> None:
    """Loads the weights of a folder that ``CausalLMModule.save_to_path`` wrote; of a sharded module, each its share.

    Args:
        module: A ``CausalLMModule``; gets them.
        folder: A local folder.
        source: What to call the folder in errors.

    Raises:
        ModelError: It holds another architecture or adapter, or no critic where the module has one.
    """
    if module.critic is not None and not (folder / CRITIC_FILE).is_file():
        raise ModelError(
            f"{source} has no {CRITIC_FILE}, so it was saved by an algorithm without a critic. Restore a "
            "checkpoint of an algorithm with one; to start a new critic on this policy, give the folder as "
            "rl_module.model_config['path'] instead."
        )
    with quiet_transformers():
        _read_language_model(module, folder, source=source)
    if module.critic is not None:
        module.critic.load(folder, source=source)


def _read_language_model(module: Any, folder: pathlib.Path, *, source: str) -> None:
    check_saved_policy(folder, module.settings["lora"], source=source)
    if module.adapter is not None:
        module.adapter.load(folder)
        return
    with loaded_as_shares(mesh_of(module.model)), cut_on_arrival() as bad:
        model = type(module.model).from_pretrained(folder, dtype=torch.float32)
    check_arrived(bad, source)
    try:
        module.model.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise ModelError(f"{source} holds other weights than this policy: {str(error)[:400]}") from error
