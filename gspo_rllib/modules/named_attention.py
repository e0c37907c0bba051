"""An attention that the user names: whether there is one of that name, and whether this machine runs it."""

from __future__ import annotations

import importlib.util
import re

from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gspo_rllib.errors import ModelError, SettingError, described, did_you_mean
from gspo_rllib.modules.own_attention import with_attention

_SETTING = "rl_module.model_config['attn_implementation']"
_INSTEAD = "Or leave attn_implementation out: packed rows have a fast attention of torch's own, on CPUs and GPUs."
_PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
    "flash_attention_4": ("flash_attn", "flash-attn-4"),
}
"""Module and distribution that transformers' attentions of these names come from."""


def check_attention_name(name: str | None) -> None:
    """Refuses an attention that transformers does not know in this process, or whose package is not installed.

    Args:
        name: As transformers calls it; a hub name of a kernel has a slash in it. None for ours.

    Raises:
        SettingError: There is none of that name here.
    """
    if name is None or "/" in name:
        return
    known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    if name not in known:
        raise SettingError(f"{_SETTING} is {name!r}, which transformers does not know. {did_you_mean(name, known)}")
    module, package = _PACKAGES.get(name, (None, None))
    if module is not None and importlib.util.find_spec(module) is None:
        raise SettingError(
            f"{_SETTING} is {name!r}, but the package {package} is not installed: `pip install {package}` (it needs a "
            f"CUDA GPU). {_INSTEAD}"
        )


def check_attention_runs(model: PreTrainedModel, name: str | None) -> None:
    """Refuses an attention that transformers will not give this model on this machine.

    Args:
        model: Left with the attention it had.
        name: See ``check_attention_name``.

    Raises:
        SettingError: With the reason that transformers gives.
    """
    try:
        with with_attention(model, name):
            pass
    except (ImportError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        reason = re.split(r"(?<=[.!])\s", described(error, 300).partition(": ")[2])[0]
        raise SettingError(
            f"{_SETTING} is {name!r}, which {type(model).__name__} cannot have on this machine: {reason} {_INSTEAD}"
        ) from error
