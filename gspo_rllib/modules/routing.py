"""Which experts a mixture-of-experts model sends its tokens to, noted in its own forward pass.

Shapes:  C cells of one call (tokens, padding included) · L sampled tokens of a row · K experts of a token.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gspo_rllib.errors import SettingError
from gspo_rllib.modules.scoring import calls

if TYPE_CHECKING:
    from gspo_rllib.modules.causal_lm import CausalLMModule

_CHOICE = ("top_k_index", "router_indices")
"""What transformers' modules of experts call their argument with the experts of each token, [C, K]."""


def expert_layers(model: torch.nn.Module, setting: str = "router_drift") -> list[tuple[torch.nn.Module, str]]:
    """The modules of a model that are given the experts of each token, and that argument's name.

    Args:
        model: A causal language model.
        setting: The training setting that asks for them.

    Raises:
        SettingError: There are none.
    """
    found = []
    for module in model.modules():
        takes = inspect.signature(module.forward).parameters
        found += [(module, name) for name in _CHOICE if name in takes]
    if not found:
        raise SettingError(
            f"training.{setting}: {type(model).__name__} has no layer that tells which experts a token goes to: it "
            "is no mixture of experts, or keeps that to itself. Leave the setting out."
        )
    return found


@contextmanager
def experts_noted(model: torch.nn.Module) -> Iterator[list[list[Tensor]]]:
    """Gives, per layer of experts, the experts of each call inside the block, [C, K]."""
    layers = expert_layers(model)
    noted: list[list[Tensor]] = [[] for _ in layers]
    handles = []
    for place, (layer, name) in enumerate(layers):
        number = list(inspect.signature(layer.forward).parameters).index(name)

        def note(
            _: Any,
            given: tuple[Any, ...],
            named: Mapping[str, Any],
            place: int = place,
            number: int = number,
            name: str = name,
        ) -> None:
            chosen = named[name] if name in named else given[number]
            noted[place].append(chosen.detach().reshape(-1, chosen.shape[-1]))

        handles.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def experts_of(module: CausalLMModule, row: dict[str, Any]) -> list[Tensor]:
    """The experts of the tokens that predict a row's sampled tokens, by a pass over it.

    Args:
        module: A policy with experts, not wrapped.
        row: One packed row; see ``columns``.

    Returns:
        Per layer [L, K], each token's in ascending order.
    """
    with experts_noted(module.model) as noted:
        module.forward_train(row)
    made = calls(row, module.scoring)
    # The latest: a pass that is longer than any before is made twice.
    latest = [layer[-len(made) :] for layer in noted]
    return [
        torch.cat([cells_CK[call.cell_L] for cells_CK, call in zip(layer, made, strict=True)]).sort(dim=-1).values
        for layer in latest
    ]


def num_changed(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """How many tokens go to another set of experts, and how many there are, both summed over layers.

    Args:
        before: From ``experts_of``, or the like.
        after: The same tokens and layers.

    Example:
        >>> num_changed([torch.tensor([[0, 1], [0, 2]])], [torch.tensor([[0, 1], [1, 2]])])
        (1.0, 2.0)
    """
    changed = sum(float((old != new).any(dim=-1).sum()) for old, new in zip(before, after, strict=True))
    return changed, float(sum(len(old) for old in before))
