"""Decoder layers through ``torch.compile``: everything of a layer but its attention, which has kernels of its own.

On a GPU also what the head computes element by element.

A layer's norms, rotary embedding, residual stream and activation function are many small operations; on a GPU launching
them and moving their results is much of what a step takes beside the matrices. Fused they are a few.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from gspo_rllib.errors import ModelError
from gspo_rllib.modules.attention import PACKED, packed_attention
from gspo_rllib.modules.recomputation import decoder_layers
from gspo_rllib.modules.scoring import Scoring
from gspo_rllib.ops import compile_head

_ATTENTION_NAME = "gspo_rllib_packed_compiled"
_OF_A_ROW = ("segment_lengths", "segment_prefixes")


class _Row:
    """The segments of a row, as something a compiler does not look into: other lengths are no other program."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given


def compile_layers(models: Sequence[PreTrainedModel], scoring: Scoring, backend: str, mode: str | None) -> None:
    """Compiles the decoder layers of models, once for rows of any length; the first passes are slow for it.

    Args:
        models: Whose layers.
        scoring: How the policy's tokens are scored.
        backend: Name that ``torch.compile`` knows.
        mode: The same; None for its default.

    Raises:
        ModelError: Rows of this policy are not packed, or nobody knows what its layers are.
    """
    # Not where it is defined: what may not be compiled is told to the compiler, whose import takes seconds.
    AttentionInterface.register(_ATTENTION_NAME, torch.compiler.disable(_attend))
    for model in models:
        layers = list(decoder_layers(model))
        if scoring.attention != PACKED or not layers:
            reason = f"it is scored with {scoring}" if layers else "it does not say which its layers are"
            raise ModelError(
                f"{type(model).__name__} cannot be compiled: {reason}. Leave framework.torch_compile_learner out."
            )
        model.set_attn_implementation(_ATTENTION_NAME)
        for layer in layers:
            compiled = torch.compile(layer.forward, dynamic=True, backend=backend, mode=mode)
            layer.forward = functools.partial(_with_row, compiled)
    compile_head(backend, mode)


def as_written(models: Sequence[torch.nn.Module]) -> AbstractContextManager[Any]:
    """Within, nothing is compiled if any of the models is: for a pass that is watched."""
    configs = [getattr(model, "config", None) for model in models]
    compiled = any(getattr(config, "_attn_implementation", None) == _ATTENTION_NAME for config in configs)
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _with_row(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    row = _Row({name: kwargs.pop(name) for name in _OF_A_ROW if name in kwargs})
    return forward(*args, row=row, **kwargs)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    row: _Row,
    **settings: Any,
) -> tuple[Tensor, None]:
    return packed_attention(module, query, key, value, mask, **row.given, **settings)
