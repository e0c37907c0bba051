"""What each tensor of a policy is sent to engines in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from gspo_rllib.precision import sync_dtype

_Sent = TypeVar("_Sent")


@dataclass(frozen=True, slots=True)
class Wire:
    """What each tensor is sent in: as engines hold it, so that an engine in bfloat16 is sent half of the bytes.

    Engines keep some tensors in float32 whatever they multiply in: vectors, which weigh nothing, or parts that the
    model's class names.

    Attributes:
        matrices: For tensors of two dimensions and more.
        kept: Parts of names of tensors that stay float32.
    """

    matrices: torch.dtype = torch.float32
    kept: frozenset[str] = frozenset()

    @classmethod
    def of(cls, module: Any, config: Any, dtype: str | None = None) -> Wire:
        """As the settings of a run say.

        Args:
            module: A causal-LM RLModule.
            config: The learner's config.
            dtype: For matrices, whatever the settings say.
        """
        kept = getattr(module.model, "_keep_in_fp32_modules_strict", None) or ()
        return cls(getattr(torch, dtype or sync_dtype(config, module.settings)), frozenset(kept))

    def dtype_of(self, name: str, tensor: torch.Tensor) -> torch.dtype:
        """What a tensor is sent in; of whole numbers, as it is."""
        if not tensor.is_floating_point():
            return tensor.dtype
        is_kept = tensor.dim() < 2 or any(f".{part}." in f".{name}." for part in self.kept)
        return torch.float32 if is_kept else self.matrices


def each_once(tensors: Mapping[str, torch.Tensor], convert: Callable[[str, torch.Tensor], _Sent]) -> dict[str, _Sent]:
    """Every tensor converted, once where it has several names.

    Args:
        tensors: By name.
        convert: Is given the first name and the tensor.
    """
    sent: dict[tuple[Any, ...], _Sent] = {}
    named = {}
    for name, tensor in tensors.items():
        where = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if where not in sent:
            sent[where] = convert(name, tensor)
        named[name] = sent[where]
    return named
