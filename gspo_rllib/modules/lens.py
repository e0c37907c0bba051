"""Makes differences between ways to score a model visible, and cheap to look for.

Shapes: T tokens of a segment.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gspo_rllib.modules.probe import largest, own_logits

_MANY_PARAMETERS = 2 * 10**8
"""Of a model that is looked at by its first layers only."""

_FLAT, _GAIN = 1.0, 2.0
"""Standard deviation of a distribution's logits below which a model is untrained, and what its matrices are then scaled
to: from an input of size 1 they make an output of this size."""

_REACH = re.compile(r"window|chunk|topk|local_attention|block_size")
"""What configs call how far a layer sees, in tokens."""


@contextmanager
def lens(model: PreTrainedModel, ids_T: Tensor) -> Iterator[None]:
    """Makes differences visible and cheap to look for, inside the block.

    Of a large model the first layers are kept, until every kind of layer is among them. Where the distributions are
    nearly flat, as an untrained model's are, a soft cap or a wrong mask would hardly show: its matrices are scaled up
    and its vectors shaken.
    """
    with contextlib.ExitStack() as stack:
        if sum(p.numel() for p in model.parameters()) > _MANY_PARAMETERS:
            _enter_if_it_works(stack, _first_layers(model), model, ids_T)
        with torch.no_grad():
            flat = not float(own_logits(model, ids_T).float().std(dim=-1).mean()) >= _FLAT
        if flat:
            _enter_if_it_works(stack, _stirred(model), model, ids_T)
        yield


@torch.no_grad()
def _enter_if_it_works(
    stack: contextlib.ExitStack, change: AbstractContextManager[None], model: PreTrainedModel, ids_T: Tensor
) -> None:
    """Changes a model until the stack is left, unless its own forward pass does not survive it."""
    with contextlib.ExitStack() as attempt:
        attempt.enter_context(change)
        try:
            works = bool(own_logits(model, ids_T).isfinite().all())
        except Exception:  # noqa: BLE001  # foreign code; as it was, it worked
            works = False
        if works:
            stack.push(attempt.pop_all())


@contextmanager
def _stirred(model: PreTrainedModel) -> Iterator[None]:
    kept = [(parameter, parameter.data) for parameter in model.parameters() if parameter.is_floating_point()]
    generator = torch.Generator().manual_seed(0)
    try:
        for parameter, data in kept:
            if data.dim() < 2:
                parameter.data = data + 0.1 * torch.randn(data.shape, generator=generator).to(data)
            else:
                size = float(data.square().mean().sqrt()) * data.shape[-1] ** 0.5
                parameter.data = data * max(1.0, _GAIN / size) if size > 0 else data
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


@contextmanager
def _first_layers(model: PreTrainedModel) -> Iterator[None]:
    """Without the layers behind the first of the last kind; with all where nothing says which they are."""
    config = model.config.get_text_config()
    lists, kinds = _lists_of_layers(model), kinds_of_layers(model)
    needed = num_of_every_kind(kinds)
    if not 0 < needed < len(kinds):
        yield
        return
    try:
        with contextlib.suppress(NotImplementedError):  # by configs that count layers otherwise
            config.num_hidden_layers = needed
        for parent, name, layers in lists:
            setattr(parent, name, layers[:needed])
        yield
    finally:
        with contextlib.suppress(NotImplementedError):
            config.num_hidden_layers = len(kinds)
        for parent, name, layers in lists:
            setattr(parent, name, layers)


def kinds_of_layers(model: PreTrainedModel) -> list[str]:
    """What tells each layer from others: their parts, shapes and settings; nothing where no list is one of layers."""
    config, lists = model.config.get_text_config(), _lists_of_layers(model)
    number = getattr(config, "num_hidden_layers", None) or 0
    return [repr([_kind(layers[i], config, i) for _, _, layers in lists]) for i in range(number)]


def num_of_every_kind(kinds: Sequence[str]) -> int:
    """How many of the first have every kind among them.

    Example:
        >>> num_of_every_kind(["full", "window", "full", "window"]), num_of_every_kind([])
        (2, 0)
    """
    return max((kinds.index(kind) for kind in kinds), default=-1) + 1


def _lists_of_layers(model: PreTrainedModel) -> list[tuple[torch.nn.Module, str, torch.nn.ModuleList]]:
    number = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == number
    ]


def _kind(layer: torch.nn.Module, config: Any, index: int) -> list[Any]:
    """What tells layers apart: their parts, shapes and settings, not which number they have."""
    found: list[Any] = [(getattr(config, "layer_types", None) or [])[index : index + 1]]
    for part in layer.modules():
        settings = {
            name: value
            for name, value in vars(part).items()
            if isinstance(value, (bool, int, float, str)) and not re.search(r"^_|idx|index|layer_id|training", name)
        }
        shapes = [tuple(p.shape) for p in part.parameters(recurse=False)]
        found.append((type(part).__name__, sorted(settings.items(), key=str), shapes))
    return found


@contextmanager
def short_reach(model: PreTrainedModel, ids_T: Tensor) -> Iterator[bool]:
    """Shortens sliding windows, chunks and the like that are longer than a segment to less, inside the block.

    Yields:
        Whether there was anything to shorten.
    """
    config = model.config.get_text_config()
    names = {
        name: value
        for name, value in vars(config).items()
        if _REACH.search(name) and isinstance(value, int) and value >= len(ids_T)
    }
    changed: list[tuple[Any, str, int]] = []
    try:
        for owner in (config, *model.modules()):
            for name, value in names.items():
                if vars(owner).get(name) == value:
                    changed.append((owner, name, value))
                    setattr(owner, name, max(2, len(ids_T) // 4))
        yield bool(changed)
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


def longest_unchanged(model: PreTrainedModel, ids_T: Tensor, longest: int, bound: float) -> int | None:
    """Up to which length a segment's log-probabilities do not depend on how long it will become.

    A segment that goes on to position ``p`` is imitated by a second row that ends there, so that nothing is as long.

    Args:
        model: With its own attention.
        ids_T: A short segment.
        longest: Tokens; nothing is said about longer segments.
        bound: Nats that are float noise.

    Returns:
        Tokens; None where no such limit was found.
    """
    rows = torch.stack([ids_T, ids_T])
    short = torch.arange(len(ids_T), device=ids_T.device)

    def scores(length: int) -> Tensor:
        own_logits(model, ids_T)  # what some keep of the longest segment they saw, they give up for a short one
        position_ids = torch.stack([short, short + length - len(ids_T)])
        logits: Tensor = model(input_ids=rows, position_ids=position_ids, use_cache=False).logits[0]
        return logits.float().log_softmax(-1)

    with torch.no_grad():
        try:
            expected = scores(len(ids_T))
            same, differs = len(ids_T), longest
            if longest <= same or largest(scores(longest) - expected) <= bound:
                return None
            while differs - same > 1:
                middle = (same + differs) // 2
                same, differs = (middle, differs) if largest(scores(middle) - expected) <= bound else (same, middle)
            return same
        except (TypeError, IndexError, RuntimeError, ValueError):  # it is not told positions, or has none so far
            return None
        finally:
            own_logits(model, ids_T)
