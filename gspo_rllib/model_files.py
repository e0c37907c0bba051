"""Writing a Hugging Face folder: what came with the model as it came, and the weights as they are now.

What came with it is read when the model is loaded: its folder may be gone by the time of the first checkpoint, and
whatever could not be saved is found before anything is trained.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

KEPT = (".json", ".jinja", ".model", ".txt", ".py", ".tiktoken")
"""Endings of what a folder holds beside its weights: configs, tokenizer, chat template, processor, code."""
LOADED_DTYPES = "loaded_dtypes.json"
"""File of a checkpoint that says in which dtype the model came in; see ``LoadedDtypes``."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of a saved adapter, as peft names them."""
ADAPTER_BASE = "adapter_base.json"
"""File beside them that says which weights an adapter was trained on."""
DTYPES = ("float32", "bfloat16", "float16")
"""Dtypes a folder is written in, as ``config.json`` names them."""

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_WEIGHTS_PATTERN = "model{suffix}.safetensors"
_CHAT_TEMPLATES = "additional_chat_templates"
_NOT_THE_MODELS = ("metadata.json", ADAPTER_CONFIG, ADAPTER_BASE, LOADED_DTYPES)  # RLlib's, an adapter's, and ours
_SHARD = "5GB"


@dataclasses.dataclass(frozen=True)
class LoadedDtypes:
    """The dtypes of the weights a model was loaded from.

    Attributes:
        main: That of most parameters.
        others: By name of the tensor in the folder, that of each floating-point tensor that had another one.
    """

    main: str
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def of(self, name: str) -> str:
        """The dtype in which a tensor of the folder came."""
        return self.others.get(name, self.main)


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """All files of a Hugging Face folder except the weights.

    Attributes:
        files: Content by name relative to the folder; ``config.json`` is that of a float32 model.
        dtypes: In which dtypes the weights came.
    """

    files: Mapping[str, bytes]
    dtypes: LoadedDtypes

    @classmethod
    def of(cls, path: str, model: PreTrainedModel, *, config_class: type) -> ModelFiles:
        """Reads the files of the folder a model has just been loaded from, and tries what writing it takes.

        Args:
            path: Local Hugging Face folder or hub name.
            model: The model, not changed since.
            config_class: Class of the folder's own config; that of the model may be a part of it.

        Raises:
            ModelError: The weights could not be written in the folder's format.
        """
        folder = _local_folder(path)
        found = sorted([*folder.iterdir(), *folder.glob(f"{_CHAT_TEMPLATES}/*")])
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in found
            if file.is_file() and _is_kept(file) and not file.name.endswith(".index.json")
        }
        own: dict[str, Any] = json.loads(files[_CONFIG])
        dtypes = _loaded_dtypes(folder, own)
        if type(model.config) is not config_class:
            own = json.loads(model.config.to_json_string(use_diff=True))
        if getattr(model.config, "quantization_config", None) is None:
            own.pop("quantization_config", None)
        own["architectures"] = [type(model).__name__]
        files[_CONFIG] = with_dtype(json.dumps(own).encode(), "float32")
        _check_writable(model)
        return cls(files, dtypes)

    def write(
        self, model: PreTrainedModel, folder: str | Path, *, state: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Writes a folder that transformers and vLLM load.

        Args:
            model: The model that was read, trained since.
            folder: An existing local folder.
            state: Weights by name; None for those in the model.
        """
        target = Path(folder)
        self.write_all_but_weights(target)
        _write_weights(in_folder_format(model, model.state_dict() if state is None else dict(state)), target)

    def write_all_but_weights(self, folder: Path) -> None:
        """Writes what came with the model into an existing local folder, and in which dtypes its weights came."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / LOADED_DTYPES).write_text(json.dumps(dataclasses.asdict(self.dtypes)))


def export_folder(source: Path, target: Path, *, dtype: str | None) -> str:
    """Copies a policy's folder out of a checkpoint, in another dtype.

    Args:
        source: The folder in the checkpoint.
        target: An existing folder.
        dtype: One of ``DTYPES``; None for that in which each tensor came.

    Returns:
        The dtype of the written folder, as its ``config.json`` names it.

    Raises:
        ModelError: A weight is too large for the dtype.
    """
    said = source / LOADED_DTYPES
    # Checkpoints of 0.1 do not say it, and hold float32.
    came = LoadedDtypes(**json.loads(said.read_text())) if said.is_file() else LoadedDtypes("float32")
    dtypes = came if dtype is None else LoadedDtypes(dtype)
    total = 0
    for file in sorted([*source.iterdir(), *source.glob(f"{_CHAT_TEMPLATES}/*")]):
        copy = target / file.relative_to(source)
        if file.suffix == ".safetensors":
            total += _cast(file, copy, dtypes)
        elif file.name == _CONFIG:
            copy.write_bytes(with_dtype(file.read_bytes(), dtypes.main))
        elif file.is_file() and _is_kept(file):
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    if (target / _INDEX).is_file():
        index = json.loads((target / _INDEX).read_text())
        index["metadata"]["total_size"] = total
        (target / _INDEX).write_text(json.dumps(index, indent=2))
    return dtypes.main


def export_adapter(source: Path, target: Path, *, dtype: str | None) -> str:
    """Copies an adapter out of a checkpoint, in another dtype; see ``export_folder``."""
    for name in (ADAPTER_CONFIG, ADAPTER_BASE):
        (target / name).write_bytes((source / name).read_bytes())
    _cast(source / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS, LoadedDtypes(dtype or "float32"))
    return dtype or "float32"


def with_dtype(config_json: bytes, dtype: str) -> bytes:
    """A ``config.json`` that says which dtype its weights have, in all its parts, under the names it uses already.

    Example:
        >>> with_dtype(b'{"torch_dtype": "float16", "text_config": {"dtype": "float16"}}', "float32")
        b'{\\n  "torch_dtype": "float32",\\n  "text_config": {\\n    "dtype": "float32"\\n  }\\n}\\n'
    """
    config: dict[str, Any] = json.loads(config_json)
    if "torch_dtype" not in config:
        config["dtype"] = dtype
    _set_dtype(config, dtype)
    return (json.dumps(config, indent=2) + "\n").encode()


def copy_files(source: str, target: str, filesystem: Any, source_filesystem: Any = None) -> None:
    """Copies a folder's files between file systems of pyarrow; None is the local one."""
    from pyarrow import fs

    local = fs.LocalFileSystem()
    fs.copy_files(
        source, target, source_filesystem=source_filesystem or local, destination_filesystem=filesystem or local
    )


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    for name, value in config.items():
        if name in ("dtype", "torch_dtype"):
            config[name] = dtype
        elif name.endswith("_config") and name != "quantization_config" and isinstance(value, dict):
            _set_dtype(value, dtype)


def _local_folder(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        # What loading did not ask for, such as a processor's settings, a served model may need.
        return Path(snapshot_download(path, allow_patterns=[f"*{ending}" for ending in KEPT]))
    except OSError:
        return Path(snapshot_download(path, local_files_only=True))


def _loaded_dtypes(folder: Path, config: Mapping[str, Any]) -> LoadedDtypes:
    """As the weights themselves say; where their format does not, as the config does."""
    from safetensors import safe_open

    if (folder / LOADED_DTYPES).is_file():
        return LoadedDtypes(**json.loads((folder / LOADED_DTYPES).read_text()))
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    found: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            for tensor in weights.keys():  # noqa: SIM118  # no mapping
                view = weights.get_slice(tensor)
                kind = view.get_dtype()
                if kind.startswith(("F", "BF")):
                    sizes[kind] += math.prod(view.get_shape())
                    found[tensor] = names.get(kind, "")
    main = names.get(sizes.most_common(1)[0][0]) if sizes else None
    if main is None:
        parts = [
            config,
            *(part for name, part in config.items() if name.endswith("_config") and isinstance(part, dict)),
        ]
        said = [part.get(name) for part in parts for name in ("dtype", "torch_dtype")]
        return LoadedDtypes(next((dtype for dtype in said if dtype in DTYPES), "float32"))
    return LoadedDtypes(main, {tensor: dtype for tensor, dtype in found.items() if dtype and dtype != main})


def _is_kept(file: Path) -> bool:
    return file.suffix in KEPT and file.name not in _NOT_THE_MODELS


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        return [folder / name for name in sorted(set(json.loads((folder / _INDEX).read_text())["weight_map"].values()))]
    return [folder / _WEIGHTS] if (folder / _WEIGHTS).is_file() else []


def in_folder_format(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state under the names and in the shapes of the folder: some experts are fused in memory, a tied head is one."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    left_out = model._keys_to_ignore_on_save or ()
    state = {name: tensor for name, tensor in state.items() if name not in left_out}
    written: dict[str, torch.Tensor] = revert_weight_conversion(
        model, remove_tied_weights_from_state_dict(state, model)
    )
    return written


def _check_writable(model: PreTrainedModel) -> None:
    """Goes through all of writing that may fail, on tensors without storage."""
    try:
        in_folder_format(model, {name: without_storage(tensor) for name, tensor in model.state_dict().items()})
    except Exception as error:  # of any class: what matters is that saving would fail
        raise ModelError(
            f"{type(model).__name__} could be trained but not saved: transformers cannot turn its weights back into "
            f"the format of their folder ({type(error).__name__}: {str(error)[:300]}). Use another model, or save it "
            "with transformers (from_pretrained, save_pretrained(save_original_format=False)) and train that folder."
        ) from error


def without_storage(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same kind that holds nothing; of a share, as the whole."""
    import torch

    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def file_plan(state: Mapping[str, torch.Tensor]) -> Any:
    """Which tensors of a folder go into which file; huggingface_hub's."""
    from huggingface_hub import split_torch_state_dict_into_shards

    return split_torch_state_dict_into_shards(dict(state), filename_pattern=_WEIGHTS_PATTERN, max_shard_size=_SHARD)


def write_index(plan: Any, folder: Path) -> None:
    """Says in the folder which tensor is in which of its files, if there are several."""
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / _INDEX).write_text(json.dumps(index, indent=2))


def _write_weights(state: dict[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    plan = file_plan(state)
    for file, names in plan.filename_to_tensors.items():
        save_file({name: state.pop(name).contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    write_index(plan, folder)


def _cast(source: Path, target: Path, dtypes: LoadedDtypes) -> int:
    """Copies one file of weights and returns the bytes of its tensors; what is no floating-point number stays."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    written = {}
    with safe_open(source, framework="pt") as weights:
        metadata = weights.metadata()
        for name in weights.keys():  # noqa: SIM118  # no mapping
            tensor = weights.get_tensor(name)
            if tensor.is_floating_point():
                cast = tensor.to(getattr(torch, dtypes.of(name)))
                if not torch.equal(cast.isfinite(), tensor.isfinite()):
                    raise ModelError(
                        f"{name} holds a weight of {tensor.abs().max():.3g}, more than {dtypes.of(name)} can. Export "
                        "as bfloat16 or float32."
                    )
                tensor = cast
            written[name] = tensor
    save_file(written, target, metadata=metadata)
    return sum(tensor.nbytes for tensor in written.values())
