"""How much of a GPU an engine may fill with its cache, where a learner keeps a part of it."""

from __future__ import annotations

import torch

FILLABLE = 0.92
"""Share of a GPU that can be filled: the rest is the CUDA context, the allocator's holes and libraries' workspaces."""

_CACHE_SHARE = 0.8
"""Of what is left for an engine beside its weights; the rest is for what one step computes, and CUDA graphs."""


def colocated_room(kept_bytes: int, weight_bytes: int) -> int:
    """Bytes for the keys and values of an engine that samples while a learner waits on the same GPU.

    Args:
        kept_bytes: What the learner keeps there meanwhile.
        weight_bytes: The engine's weights.
    """
    total = torch.cuda.mem_get_info()[1]
    return int(_CACHE_SHARE * max(0.0, FILLABLE * total - kept_bytes - weight_bytes))


def weight_bytes(model: torch.nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a model's parameters in some precision, those that are tied once."""
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
