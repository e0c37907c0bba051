"""Decoder layers through ``torch.compile``: everything of a layer but its attention, which has kernels of its own.

A layer's norms, rotary embedding, residual stream and activation function are many small operations; on a GPU launching them
and moving their results is most of what a step takes beside the matrices. Fused they are a few.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from gspo_rllib.modules.attention import packed_attention
from gspo_rllib.modules.recomputation import decoder_layers

_ATTENTION_NAME = "gspo_rllib_packed_compiled"
_OF_A_ROW = ("segment_lengths", "segment_prefixes")


class _Row:
    """The segments of a row, as something a compiler does not look into: other lengths are no other program."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given


def compile_layers(models: Sequence[PreTrainedModel], *, backend: str, mode: str | None) -> None:
    """Compiles the decoder layers of models for rows of any length.

    Args:
        models: Scored with ``packed_attention``.
        backend: Of ``torch.compile``.
        mode: Of ``torch.compile``.
    """
    attend = torch.compiler.disable(_attend)
    AttentionInterface.register(_ATTENTION_NAME, attend)
    for model in models:
        model.set_attn_implementation(_ATTENTION_NAME)
        for layer in decoder_layers(model):
            compiled = torch.compile(layer.forward, dynamic=True, backend=backend, mode=mode)
            layer.forward = functools.partial(_with_row, compiled)


def _with_row(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    row = _Row({name: kwargs.pop(name) for name in _OF_A_ROW if name in kwargs})
    return forward(*args, row=row, **kwargs)


def _attend(*tensors: Any, row: _Row, **settings: Any) -> Any:
    return packed_attention(*tensors, **row.given, **settings)
