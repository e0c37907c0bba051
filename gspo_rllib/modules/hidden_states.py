"""Last hidden states of a Hugging Face model at chosen cells of its input, with or without its head.

Shapes: S rows of the input · T columns · L chosen cells of the flattened [S · T] · D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """The layers of a causal language model without its head, also where its ``base_model`` is itself."""
    trunk: PreTrainedModel = model.base_model
    if trunk is model:
        trunk = next((part for part in model.children() if isinstance(part, PreTrainedModel)), model)
    return trunk


def hidden_states(trunk: Any, inputs: dict[str, Any], cell_L: Tensor) -> Tensor:
    """Runs a model without its head.

    Args:
        trunk: ``trunk_of`` a model.
        inputs: Keyword arguments of the trunk, [S, T] each.
        cell_L: int64, which cells are wanted.

    Returns:
        [L, D], after the model's final norm: what its head multiplies.
    """
    return _at_cells(trunk(**inputs), cell_L)


@contextmanager
def hidden_states_of_call(trunk: torch.nn.Module, cell_L: Tensor) -> Iterator[list[Tensor]]:
    """Records what ``hidden_states`` would compute while the whole model runs, head included.

    Args:
        trunk: ``trunk_of`` the model that will be called.
        cell_L: int64, which cells are wanted.

    Yields:
        A list; every call of the trunk inside the ``with`` block appends its [L, D].
    """
    kept: list[Tensor] = []
    handle = trunk.register_forward_hook(lambda _module, _inputs, output: kept.append(_at_cells(output, cell_L)))
    try:
        yield kept
    finally:
        handle.remove()


def _at_cells(output: Any, cell_L: Tensor) -> Tensor:
    hidden_LD: Tensor = output.last_hidden_state.flatten(0, 1)[cell_L]
    return hidden_LD
