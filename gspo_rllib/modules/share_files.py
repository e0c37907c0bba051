"""Writing a sharded model's folder: each tensor is gathered when its turn comes, and gone before the next.

What a folder holds of one parameter may be several tensors, as a folder's experts are those of one fused parameter.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from gspo_rllib.model_files import ModelFiles, file_plan, in_folder_format, without_storage, write_index
from gspo_rllib.modules.sharding import device_of_shares, is_first, together, whole
from gspo_rllib.tensor_files import write_one_by_one

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
"""A layer's number in the name of a parameter."""


def write_shares(files: ModelFiles, model: PreTrainedModel, folder: str | Path) -> None:
    """Writes the folder of a model that several processes share; all call it, and the first one writes.

    Args:
        files: All of the folder but its weights.
        model: A sharded model.
        folder: An existing local folder.

    Raises:
        OSError: It cannot be written, in every process.
    """
    target = Path(folder)
    with together(device_of_shares(model)):
        if is_first():
            files.write_all_but_weights(target)
        write_weights(model, target)


def write_weights(model: PreTrainedModel, folder: Path) -> None:
    """The weights alone; see ``write_shares``."""
    parts = in_folder_format(model, {name: without_storage(tensor) for name, tensor in model.state_dict().items()})
    # Each by itself: what is a part of another one is counted as all of that where files are planned.
    written = {name: torch.empty(part.shape, dtype=part.dtype, device="meta") for name, part in parts.items()}
    gathering = _Gathering(model, written)
    plan = file_plan(written)
    failure: OSError | None = None
    for file, names in plan.filename_to_tensors.items():
        like = {name: written[name] for name in sorted(names)}
        try:
            write_one_by_one(folder / file, like, gathering.fetch, metadata={"format": "pt"})
        except OSError as error:  # the others go on gathering
            failure = failure or error
    if failure is not None:
        raise failure
    if is_first():
        write_index(plan, folder)


class _Gathering:
    """A model's tensors as its folder has them, each made of what is gathered for it."""

    def __init__(self, model: PreTrainedModel, written: Mapping[str, torch.Tensor]) -> None:
        self._model = model
        self._state = model.state_dict()
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._group_of = self._smallest_groups(written)
        self._waiting: dict[str, torch.Tensor | None] = {}

    def fetch(self, name: str) -> torch.Tensor | None:
        """A tensor of the folder, in the first process; None in others, which take part."""
        if name not in self._waiting:
            group = self._group_of[name]
            gathered = {own: whole(self._parameters.get(own, self._state[own])) for own in group}
            here = {own: tensor for own, tensor in gathered.items() if tensor is not None}
            made = revert_weight_conversion(self._model, here) if here else {}
            self._waiting |= {other: made.get(other) for other, of in self._group_of.items() if of is group}
        return self._waiting.pop(name)

    def _smallest_groups(self, written: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, ...]]:
        """By name in the folder, which parameters it is made of: one if that will do, those of a layer, or all."""
        ways: tuple[Callable[[str], str], ...] = (
            lambda name: name,
            lambda name: _LAYER.split(name, maxsplit=1)[0] + "".join(_LAYER.findall(name)[:1]),
            lambda name: "",
        )
        for way in ways:
            members = defaultdict[str, list[str]](list)
            for name in self._state:
                members[way(name)].append(name)
            found: dict[str, tuple[str, ...]] = {}
            shapes: dict[str, torch.Size] = {}
            for names in members.values():
                group = tuple(names)
                try:
                    made = in_folder_format(self._model, {name: without_storage(self._state[name]) for name in group})
                except Exception:  # noqa: BLE001  # foreign code; more at once will do
                    break
                found |= dict.fromkeys(made, group)
                shapes |= {name: tensor.shape for name, tensor in made.items()}
            needed = {name: found[name] for name in written if name in found}
            if len(needed) == len(written) and all(shapes[name] == written[name].shape for name in written):
                return needed
        raise AssertionError("all at once is how the folder was made out")
