"""Whether a model folder holds what its config says, told before anything is started and without reading a weight.

Only local folders are looked at; a hub name is read when it is loaded.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from gspo_rllib.errors import ModelError
from gspo_rllib.model_files import in_folder_format
from gspo_rllib.model_folder import load_model_config, translated

Shapes = Mapping[str, tuple[int, ...]]

_AGAIN = "Download or save the model again"
_LONGEST_HEADER = 100_000_000
_ALIKE = 0.5
"""Share of a model's weights that must be in its folder by name, for one that is not to be called missing: transformers
loads folders under older names, too."""


def check_weights(path: str) -> None:
    """Whether the files with the weights of a local folder are all there and whole; a hub name is not asked.

    Raises:
        ModelError: There are none, one that the folder's index names is missing, or one is cut off.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
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
        elif not file.is_file() or file.stat().st_size == 0:
            raise ModelError(f"model path {path!r}: {file.name} is empty. {_AGAIN}.")


def check_model(path: str, *, trust_remote_code: bool = False) -> None:
    """Whether a local folder's weights are those of the model that its config describes; a hub name is not asked.

    Args:
        path: Local Hugging Face folder or hub name.
        trust_remote_code: Whether the folder may run its own code.

    Raises:
        ModelError: The config describes no model, or another one than the weights are of.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    check_weights(path)
    config = load_model_config(path, trust_remote_code=trust_remote_code)
    there: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        there |= _shapes(path, file)
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if there and isinstance(layers, int) and not 0 < layers <= len(there):
        raise ModelError(
            f"model path {path!r}: config.json has num_hidden_layers={layers}, but the folder holds {len(there)} "
            f"weights in all; allowed: at least 1, and no more than there are weights for. {_AGAIN}."
        )
    wanted = _wanted(path, config, trust_remote_code=trust_remote_code)
    for name, shape in wanted.items():
        if name in there and there[name] != shape:
            raise ModelError(
                f"model path {path!r}: the weight {name} has the shape {list(there[name])}, but config.json describes "
                f"a model in which it has {list(shape)}. {_AGAIN}."
            )
    missing = [name for name in wanted if name not in there]
    if missing and len(wanted) - len(missing) > _ALIKE * len(wanted):
        raise ModelError(
            f"model path {path!r}: {len(missing)} of {len(wanted)} weights of the model that config.json describes "
            f"are not in the folder, {missing[0]} for one. {_AGAIN}."
        )


def _wanted(path: str, config: Any, *, trust_remote_code: bool) -> Shapes:
    """Names and shapes of the weights of the model that a config describes, as its folder would have them."""
    import torch
    from transformers import AutoModelForCausalLM

    heads = getattr(config.get_text_config(), "num_attention_heads", 1)
    with translated(path, "config.json describes no causal language model"), torch.device("meta"):
        if isinstance(heads, int) and heads < 1:
            raise ValueError(f"num_attention_heads is {heads}; it must be at least 1")
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    try:
        state = in_folder_format(model, model.state_dict())
    except Exception:  # noqa: BLE001, what can be loaded and not saved is told by whoever loads it
        return {}
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


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
