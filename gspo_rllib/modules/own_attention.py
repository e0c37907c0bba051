"""Which attention a model computes with, for a while: its own, which its authors wrote, or another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from gspo_rllib.errors import ModelError

OWN = "eager"
"""transformers' name of the attention in a model's own file. The others get what a layer passes on and leave out what
they do not know: ``sdpa``, the default, drops soft caps (Gemma-2) without a word."""


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """The model's own attention inside the block; what it has, where that cannot be replaced."""
    with with_attention(model, OWN if model._can_set_attn_implementation() else None):
        yield


@contextmanager
def with_attention(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Another attention inside the block.

    Args:
        model: Left with what it had.
        name: transformers' name of an attention; None for what there is.

    Raises:
        ModelError: The model's attention cannot be replaced.
    """
    if name is None:
        yield
        return
    if not model._can_set_attn_implementation():
        raise ModelError(f"{type(model).__name__} does not let its attention be replaced")
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    configs = {id(config): config for part in parts for config in _with_parts(part.config)}
    kept = [(config, config._attn_implementation_internal) for config in configs.values()]
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        # Its own setter cannot put back what was never set.
        for config, own in kept:
            config._attn_implementation_internal = own


def _with_parts(config: Any) -> list[Any]:
    parts = [getattr(config, name, None) for name in config.sub_configs]
    return [config, *(part for part in parts if part is not None)]
