"""Weights of a learner where they lie on its GPU, for an engine in another process on the same one: nothing is copied.

CUDA lets a process map memory of another (its IPC). A tensor's handle stays what it is for as long as the tensor lives,
so that of a parameter is made once and serves every version; what is read through it is what the learner holds then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gspo_rllib.errors import WeightSyncError, described

_LENT = "_gspo_lent"
"""Attribute of the owner: address -> the tensor that was lent last, which lives until others are, and its handle."""


@dataclass(frozen=True, slots=True)
class LentWeights:
    """A whole ``state_dict`` under Hugging Face names, on a GPU.

    Attributes:
        gpu: Which one, by its UUID.
        numbers: Name to index in ``handles``; a tensor under two names has one.
        handles: What torch maps a tensor from.
    """

    gpu: str
    numbers: Mapping[str, int]
    handles: Sequence[tuple[Any, ...]]

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], owner: Any) -> LentWeights:
        """Handles of tensors on a GPU; what was computed on them is waited for.

        Args:
            tensors: By name.
            owner: Whose tensors they are; keeps them, and their handles, until it lends others.
        """
        from torch.multiprocessing.reductions import reduce_tensor

        before: dict[int, tuple[torch.Tensor, tuple[Any, ...]]] = owner.__dict__.get(_LENT, {})
        lent: dict[int, tuple[torch.Tensor, tuple[Any, ...]]] = {}
        for tensor in tensors.values():
            at = tensor.data_ptr()
            if at not in lent:
                lent[at] = before[at] if at in before else (tensor, reduce_tensor(tensor)[1])
        owner.__dict__[_LENT] = lent
        torch.cuda.synchronize()
        number_of = {at: number for number, at in enumerate(lent)}
        numbers = {name: number_of[tensor.data_ptr()] for name, tensor in tensors.items()}
        return cls(_uuid(), numbers, [handle for _, handle in lent.values()])

    def fetch(self) -> dict[str, torch.Tensor]:
        """The tensors by name, mapped into this process for as long as it holds them.

        Raises:
            WeightSyncError: They are on another GPU, or cannot be mapped here.
        """
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        if not torch.cuda.is_available() or _uuid() != self.gpu:
            raise WeightSyncError(
                f"generation.colocate: the learner is on GPU {self.gpu}, and this env runner has "
                f"{_uuid() if torch.cuda.is_available() else 'none'}: Ray gave them different ones. Have both in one "
                "process (num_env_runners=0, num_learners=0), or leave colocate out."
            )
        try:
            tensors = [rebuild_cuda_tensor(*handle) for handle in self.handles]
        except RuntimeError as error:
            raise WeightSyncError(
                f"generation.colocate: memory of the learner's process cannot be mapped ({described(error, 200)}). "
                "Have both in one process (num_env_runners=0, num_learners=0), or leave colocate out."
            ) from error
        return {name: tensors[number] for name, number in self.numbers.items()}


def _uuid() -> str:
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
