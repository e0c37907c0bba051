"""What ``.rl_module(model_config=...)`` takes: checked and filled in before anything is loaded."""

from __future__ import annotations

import dataclasses
import pathlib
import typing
from typing import Any

from gspo_rllib.errors import SettingError, did_you_mean
from gspo_rllib.knobs import check, default_of
from gspo_rllib.model_folder import model_path
from gspo_rllib.modules.foreign_words import remedy
from gspo_rllib.modules.lora_settings import check_lora
from gspo_rllib.modules.named_attention import check_attention_name
from gspo_rllib.modules.settings import ModelSettings

_KNOBS = {field.name: field for field in dataclasses.fields(ModelSettings)}
MODEL_CONFIG: dict[str, Any] = {name: default_of(field) for name, field in _KNOBS.items()}
"""What ``.rl_module(model_config=...)`` takes, with defaults; ``ModelSettings`` says what each does."""


def check_model_config(model_config: dict[str, Any]) -> dict[str, Any]:
    """Fills in defaults.

    Args:
        model_config: Settings of the model as the user gave them; see ``MODEL_CONFIG``.

    Raises:
        SettingError: An unknown key, an illegal value, or no path.
        ModelError: An adapter to start from cannot be used.
    """
    for key in model_config:
        if key not in MODEL_CONFIG:
            instead = remedy(key)
            raise SettingError(
                f"rl_module.model_config[{key!r}] is unknown. {did_you_mean(key, MODEL_CONFIG)}"
                if instead is None
                else f"rl_module.model_config[{key!r}] is unknown: {instead}"
            )
    full = {**MODEL_CONFIG, **model_config}
    if not isinstance(full["path"], (str, pathlib.Path)) or not str(full["path"]):
        raise SettingError(
            f"rl_module.model_config['path'] is {full['path']!r}; give a local Hugging Face folder or a hub name, for "
            'example .rl_module(model_config={"path": "models/seed"}). `gspo-rllib warmstart` makes a small one.'
        )
    hints = typing.get_type_hints(ModelSettings)
    for name, field in _KNOBS.items():
        if name != "lora":
            check(f"rl_module.model_config[{name!r}]", full[name], hints[name], field.metadata)
    if full["activation_checkpointing"] and full["max_activation_gb"] is not None:
        raise SettingError(
            "rl_module.model_config['activation_checkpointing'] is True, so every layer recomputes activations, and "
            f"rl_module.model_config['max_activation_gb'] is {full['max_activation_gb']:g}, so as few as fit do. Leave "
            "one of them out."
        )
    check_attention_name(full["attn_implementation"])
    if full["lora"] is not None:
        check_lora(full["lora"], path=model_path(full), trust_remote_code=full["trust_remote_code"])
    return full
