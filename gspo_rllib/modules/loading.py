"""Loading a causal language model as it is trained: in float32, whole, and nothing beside it.

transformers fills in weights that a folder lacks, and passes over those that it holds and the config has no place for,
with a line of the log each. Either way another model than the folder's would be trained.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from gspo_rllib.errors import ModelError
from gspo_rllib.model_folder import load_model_config, quiet_transformers, translated

logger = logging.getLogger(__name__)

_COMPUTED = re.compile(r"inv_freq$|(cos|sin)_cached$|(attn|attention)\.(masked_)?bias$|position_ids$")
"""What old folders hold although it is computed: rotations, and masks of attention, which itself has no bias."""


def load_causal_lm(path: str, *, trust_remote_code: bool) -> tuple[PreTrainedModel, type[Any]]:
    """Loads the model of a local Hugging Face folder or hub name.

    Args:
        path: The folder or hub name.
        trust_remote_code: Whether the folder may run its own code.

    Returns:
        The model in evaluation mode, and the class of the config that its folder describes.

    Raises:
        ModelError: It cannot be loaded, lacks weights, holds some that its parts have no place for, or two where its
            config says that there is one, or has an adapter beside it.
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
    _check_tied(path, model)
    _check_unused(path, model, loading["unexpected_keys"])
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"model path {path!r} holds an adapter beside its model. Merge both, or leave it out.")
    return model.eval(), type(config)


def _check_tied(path: str, model: PreTrainedModel) -> None:
    """Refuses two weights that the config calls one and that differ: transformers trains both, and vLLM samples one."""
    for second, first in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        tied = second in model.all_tied_weights_keys or model.get_parameter(second) is model.get_parameter(first)
        if not tied:
            raise ModelError(
                f"model path {path!r}: {second} and {first} are one weight by config.json (tie_word_embeddings), but "
                "the folder holds both, and they differ. Set tie_word_embeddings to false in config.json if the model "
                "was trained with both, or save the model again without the one that was not."
            )


def _check_unused(path: str, model: PreTrainedModel, names: Collection[str]) -> None:
    """Refuses weights inside of a part that is at work; tells of parts that are not, as a head for something else."""
    computed = {name for name, _ in model.named_buffers()}
    unused = sorted(name for name in names if name not in computed and not _COMPUTED.search(name))
    inside = [name for name in unused if _is_at_work(model, name)]
    if inside:
        raise ModelError(
            f"model path {path!r}: {len(inside)} weights of the folder have no place in the model that config.json "
            f"describes, {inside[0]} for one, although the part they are of has: another model would be trained. "
            "Correct config.json (a bias that is switched off there, say), or download or save the model again."
        )
    if unused:
        logger.warning(
            "model path %r: %d weights of the folder, %s for one, are of parts that config.json does not describe. "
            "They are neither trained nor sampled with, and checkpoints are without them.",
            path,
            len(unused),
            unused[0],
        )


def _is_at_work(model: PreTrainedModel, name: str) -> bool:
    """Whether the part that a weight is named after is one of the model's, with weights of its own in it."""
    parts = name.split(".")[:-1]
    for count in range(len(parts), 0, -1):
        try:
            part = model.get_submodule(".".join(parts[:count]))
        except AttributeError:
            continue
        # What holds the layers is the whole model, or its trunk: any part, and any further layer, may be beside them.
        in_a_layer = any(step.isdigit() for step in parts[:count])
        return in_a_layer or not any(isinstance(inner, torch.nn.ModuleList) for inner in part.modules())
    return False
