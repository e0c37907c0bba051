"""Loading a causal language model as it is trained: in float32, all of it, and nothing beside it.

transformers fills in weights that a folder lacks, and passes over those that it holds and the config has no place for,
with a line of the log each. Either way another model than the folder's would be trained.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
from collections.abc import Collection, Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from gspo_rllib.errors import ModelError
from gspo_rllib.model_check import without_storage
from gspo_rllib.model_folder import load_model_config, quiet_transformers, translated
from gspo_rllib.modules.lens import kinds_of_layers, num_of_every_kind
from gspo_rllib.modules.shares import check_arrived, cut_on_arrival

logger = logging.getLogger(__name__)

_COMPUTED = re.compile(r"inv_freq$|(cos|sin)_cached$|(attn|attention)\.(masked_)?bias$|position_ids$")
"""What old folders hold although it is computed: rotations, and masks of attention, which itself has no bias."""


def load_causal_lm(path: str, *, trust_remote_code: bool) -> tuple[PreTrainedModel, type[Any]]:
    """Loads the model of a local Hugging Face folder or hub name; as shares where ``shares.loaded_as_shares`` says so.

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
    with quiet_transformers(), translated(path, "no causal language model could be loaded"), cut_on_arrival() as bad:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"model path {path!r}: {len(missing)} weights of the model are not in the folder, {missing[0]} for one; "
            "transformers would have made them up. Download or save the model again."
        )
    check_arrived(bad, path)
    _check_tied(path, model)
    _check_unused(path, model, loading["unexpected_keys"])
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"model path {path!r} holds an adapter beside its model. Merge both, or leave it out.")
    return model.eval(), type(config)


def load_first_layers(path: str, *, trust_remote_code: bool) -> PreTrainedModel | None:
    """Loads a model without most of its layers: of the first, as many as have every kind of layer among them.

    What depends on how a model computes, and not on how often, can be found out with it.

    Args:
        path: The folder or hub name.
        trust_remote_code: Whether the folder may run its own code.

    Returns:
        In evaluation mode; None where every layer is needed, or the config cannot say how many there are.

    Raises:
        ModelError: It cannot be loaded.
    """
    config = load_model_config(path, trust_remote_code=trust_remote_code)
    with quiet_transformers(), translated(path, "no causal language model could be loaded"):
        few = _of_first_layers(path, config, trust_remote_code=trust_remote_code)
        if few is None:
            return None
        with _unreported():  # the layers that are left out
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                path, config=few, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
    return model.eval()


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Without transformers' lines on weights that a model has no place for."""
    reports = logging.getLogger("transformers.modeling_utils")
    reports.addFilter(_nothing)
    try:
        yield
    finally:
        reports.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False


def _of_first_layers(path: str, config: Any, *, trust_remote_code: bool) -> Any | None:
    """The config of a model with the first layers of another one; None where that would be another model."""
    few = copy.deepcopy(config)
    whole = without_storage(path, config, trust_remote_code=trust_remote_code)
    kinds = kinds_of_layers(whole)
    needed, text = num_of_every_kind(kinds), few.get_text_config()
    if not 0 < needed < len(kinds):
        return None
    try:
        for name, value in list(vars(text).items()):
            if isinstance(value, (list, tuple)) and len(value) == len(kinds):
                setattr(text, name, value[:needed])
        text.num_hidden_layers = needed
        small = without_storage(path, copy.deepcopy(few), trust_remote_code=trust_remote_code)
    except Exception:  # noqa: BLE001  # foreign code; all layers do as well
        return None
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    is_part = all(shapes.get(name) == tensor.shape for name, tensor in small.state_dict().items())
    return few if is_part and kinds_of_layers(small) == kinds[:needed] else None


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
