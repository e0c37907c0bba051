"""Whether a model folder holds what its config says, told before anything is started and without reading a weight.

Only local folders are looked at; a hub name is read when it is loaded.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gspo_rllib.errors import ModelError, shown
from gspo_rllib.model_files import in_folder_format
from gspo_rllib.model_folder import load_model_config, translated

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]

_AGAIN = "Download or save the model again"
_LONGEST_HEADER = 100_000_000
_RELATED = 0.25
"""Share of the kinds of weights (``q_proj.weight``) that a folder and its config must have in common."""
_ALIKE = 0.5
"""Share of a model's weights that must be in its folder by name, for one that is not to be called missing: transformers
loads folders under older names, too."""


def check_weights(path: str) -> None:
    """Whether the files with the weights of a local folder are all there and whole; a hub name is not asked.

    Raises:
        ModelError: There are none, one that the folder's index names is missing, or one is cut off.
    """
    if not os.path.isdir(path):
        return
    folder = Path(path)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    indices = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    for index in indices:
        named = _indexed(path, index)
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise ModelError(
                f"model path {path!r}: {index.name} names {len(named)} files with weights, of which {len(missing)} are "
                f"missing, {missing[0]!r} for one. {_AGAIN}."
            )
    if not files:
        raise ModelError(f"model path {path!r}: the folder holds no weights (*.safetensors). {_AGAIN}.")
    for file in files:
        if file.suffix == ".safetensors":
            _shapes(path, file)
        else:
            _check_pickled(path, file)


def check_model(path: str, *, trust_remote_code: bool = False) -> None:
    """Whether a local folder's weights are those of the model that its config describes; a hub name is not asked.

    Args:
        path: Local Hugging Face folder or hub name.
        trust_remote_code: Whether the folder may run its own code.

    Raises:
        ModelError: The config describes no model, or another one than the weights are of.
    """
    there: dict[str, tuple[int, ...]] = {}
    if os.path.isfile(os.path.join(path, "config.json")):
        check_weights(path)
        for file in sorted(Path(path).glob("*.safetensors")):
            there |= _shapes(path, file)
        _check_layers(path, len(there))
    config = load_model_config(path, trust_remote_code=trust_remote_code)
    if not os.path.isdir(path):
        return
    wanted = _wanted(path, config, trust_remote_code=trust_remote_code)
    for name, shape in wanted.items():
        if name in there and there[name] != shape:
            raise ModelError(
                f"model path {path!r}: the weight {name} has the shape {list(there[name])}, but config.json describes "
                f"a model in which it has {list(shape)}. {_AGAIN}."
            )
    missing = [name for name in wanted if name not in there]
    kinds = {_leaf(name) for name in wanted}
    if there and len(kinds & {_leaf(name) for name in there}) < _RELATED * len(kinds):
        raise ModelError(
            f"model path {path!r}: config.json describes another kind of model than the weights are of: it has weights "
            f"such as {missing[0]}, and the folder such as {next(iter(there))}. {_AGAIN}."
        )
    if missing and len(wanted) - len(missing) > _ALIKE * len(wanted):
        raise ModelError(
            f"model path {path!r}: {len(missing)} of {len(wanted)} weights of the model that config.json describes "
            f"are not in the folder, {missing[0]} for one. {_AGAIN}."
        )


def without_storage(path: str, config: Any, *, trust_remote_code: bool) -> PreTrainedModel:
    """The model that a config describes, its parameters on torch's meta device: names and shapes, and no memory.

    Args:
        path: What messages call it.
        config: A Hugging Face config.
        trust_remote_code: Whether its folder may run its own code.

    Raises:
        ModelError: The config describes no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    heads = getattr(config.get_text_config(), "num_attention_heads", 1)
    with translated(path, "config.json describes no causal language model"), torch.device("meta"):
        if isinstance(heads, int) and heads < 1:
            raise ValueError(f"num_attention_heads is {heads}; it must be at least 1")
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


def _wanted(path: str, config: Any, *, trust_remote_code: bool) -> Shapes:
    """Names and shapes of the weights of the model that a config describes, as its folder would have them."""
    model = without_storage(path, config, trust_remote_code=trust_remote_code)
    try:
        state = in_folder_format(model, model.state_dict())
    except Exception:  # noqa: BLE001, what can be loaded and not saved is told by whoever loads it
        return {}
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _check_layers(path: str, num_weights: int) -> None:
    """Refuses a number of layers that there are no weights for, before transformers makes a list of as many."""
    try:
        config = json.loads((Path(path) / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):  # told by whoever loads it
        return
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    for part in [part for part in parts if isinstance(part, dict)]:
        layers = part.get("num_hidden_layers")
        if num_weights and isinstance(layers, int) and not 0 < layers <= num_weights:
            raise ModelError(
                f"model path {path!r}: config.json has num_hidden_layers={shown(layers)}, but the folder holds "
                f"{num_weights} weights in all; allowed: at least 1, and no more than there are weights for. {_AGAIN}."
            )


def _leaf(name: str) -> str:
    """The last two parts of a weight's name, which no prefix of the model's changes.

    Example:
        >>> _leaf("model.layers.0.self_attn.q_proj.weight")
        'q_proj.weight'
    """
    return ".".join(name.split(".")[-2:])


def _indexed(path: str, index: Path) -> set[str]:
    """The files that an index names."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = {""}
    if not names or not all(isinstance(name, str) and name and "/" not in name for name in names):
        raise ModelError(
            f'model path {path!r}: {index.name} is no index; it must be {{"weight_map": {{weight: file, ...}}}} with '
            f"files of this folder. {_AGAIN}."
        )
    return names


def _check_pickled(path: str, file: Path) -> None:
    """Refuses a file of torch's that is empty or something else; it is not read."""
    try:
        with file.open("rb") as opened:
            start = opened.read(2)
    except OSError as error:
        raise ModelError(f"model path {path!r}: {file.name} cannot be read ({error.strerror}). {_AGAIN}.") from error
    if not start:
        raise ModelError(f"model path {path!r}: {file.name} is empty. {_AGAIN}.")
    # A zip archive is read from its end: one that is cut off has none. Before torch 1.6 it was a pickle.
    if not zipfile.is_zipfile(file) and start[:1] != b"\x80":
        raise ModelError(
            f"model path {path!r}: {file.name} is cut off, or no file of torch's: it cannot be read. {_AGAIN}."
        )


def _shapes(path: str, file: Path) -> Shapes:
    """The shape of each tensor in a safetensors file, from its header.

    Raises:
        ModelError: The file is empty, cut off, or something else.
    """

    def refuse(what: str) -> NoReturn:
        raise ModelError(f"model path {path!r}: {file.name} {what}. {_AGAIN}.")

    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            header = opened.read(length) if 0 < length <= min(size, _LONGEST_HEADER) else b""
    except OSError as error:
        refuse(f"cannot be read ({error.strerror})")
    if size < 8:
        refuse(f"is cut off or empty: it has {size} bytes")
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        ends = [int(entry["data_offsets"][1]) for entry in tensors.values()]
        shapes = {name: tuple(int(axis) for axis in entry["shape"]) for name, entry in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        refuse("is cut off, or no safetensors file: its header cannot be read")
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        refuse(f"is cut off: it has {size} bytes, and its header names {expected}")
    return shapes
