"""Activations that a backward pass computes again instead of finding them kept: none, all, or as few as fit a budget.

transformers does so in training mode only, and a policy is left in evaluation mode (``sampling_mode``). With a budget,
what a layer keeps is observed in two short passes of the first row and grows with the row in a straight line; then each
row gets the cheapest plan that fits. Layers that recompute are the first ones: the others are differentiated, and their
activations gone, before the first of them is computed again.

Shapes: T tokens of a row · D hidden.
"""

from __future__ import annotations

import enum
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from gspo_rllib.errors import SettingError
from gspo_rllib.freed_memory import return_large_blocks
from gspo_rllib.modules.activation_costs import ATTENTION, ActivationCosts, Observer

logger = logging.getLogger(__name__)

TILE = 1024
"""Tokens that a part which treats each token alone is computed with at a time, where it recomputes in tiles."""

LIMIT = "max_activation_gb"
"""Name of the setting that a budget comes from."""

_LEAST, _MOST = 8, 64
"""Tokens of the shorter pass that costs are observed in."""


class Depth(enum.IntEnum):
    """What a layer forgets, the cheapest to compute again first."""

    NOTHING = 0
    ALL_BUT_ATTENTION = 1
    ALL = 2
    ALL_IN_TILES = 3


_kept: ContextVar[bool] = ContextVar("kept", default=False)
_depth: ContextVar[Depth] = ContextVar("depth", default=Depth.NOTHING)


@contextmanager
def activations_kept() -> Iterator[None]:
    """Nothing is recomputed inside the block, whatever a ``Recomputation`` says."""
    token = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(token)


class Recomputation:
    """Lets every layer of some models forget its activations in the forward pass.

    Args:
        models: In the order in which a pass runs them; changed in place, so copies must be made before.
        budget: Bytes that the activations of a pass may take, their gradients included; None recomputes every layer,
            always, as a budget does until ``fit`` is called.

    Attributes:
        depths: The present plan, one for each layer.

    Raises:
        SettingError: A model does not say which its layers are.
    """

    def __init__(self, models: Sequence[torch.nn.Module], budget: float | None = None) -> None:
        self._models = tuple(models)
        self._layers: list[torch.nn.Module] = []
        for model in models:
            found = list(decoder_layers(model))
            if not found:
                asked = "activation_checkpointing'] is True" if budget is None else f"{LIMIT}'] is {budget / 1e9:g}"
                raise SettingError(
                    f"rl_module.model_config['{asked}, but {type(model).__name__} does not say which its layers are "
                    "(neither GradientCheckpointingLayer nor _no_split_modules); set it to "
                    f"{'False' if budget is None else 'None'}."
                )
            self._layers += found
        self._budget = budget
        self._costs: ActivationCosts | None = None
        self.depths = [Depth.ALL] * len(self._layers)
        self._observer: Observer | None = None
        self._warned = False
        for index, layer in enumerate(self._layers):
            layer.forward = functools.partial(self._run, index, layer.forward)

    @staticmethod
    def is_wanted(settings: Mapping[str, Any]) -> bool:
        """Whether a module's settings ask for any."""
        return settings[LIMIT] is not None or bool(settings["activation_checkpointing"])

    @classmethod
    def wanted(cls, settings: Mapping[str, Any], models: Sequence[torch.nn.Module]) -> Recomputation | None:
        """What a module's settings ask for; None where all layers keep their activations.

        Args:
            settings: A module's, checked.
            models: As for the class.
        """
        if not cls.is_wanted(settings):
            return None
        limit = settings[LIMIT]
        return cls(models, None if limit is None else limit * 1e9)

    @property
    def num_recomputed(self) -> int:
        """Layers that forget anything in the present plan."""
        return sum(depth is not Depth.NOTHING for depth in self.depths)

    def fit(self, tokens: int, short_pass: Callable[[int], Any], longest: int) -> None:
        """Plans the next pass with a gradient; does nothing without a budget.

        Args:
            tokens: Tokens of the pass, padding included.
            short_pass: Runs a forward pass of so many tokens, with a gradient.
            longest: Tokens that it can be given at most.
        """
        if self._budget is None:
            return
        if self._costs is None and longest >= 2 * _LEAST:
            self._costs = self._observed(short_pass, min(longest, 2 * _MOST))
        if self._costs is None:
            self.depths = [Depth.NOTHING] * len(self._layers)  # nothing is as short as that and does not fit
            return
        needed, depth, number = self._cheapest(self._costs, tokens, self._budget)
        self.depths = [depth] * number + [Depth.NOTHING] * (len(self._layers) - number)
        if number:
            return_large_blocks()
        if needed > self._budget and not self._warned:
            self._warned = True
            logger.warning(
                "A row of %d tokens needs about %.3g GB of activations even where all is recomputed, and "
                "rl_module.model_config['" + LIMIT + "'] is %.3g. It is trained all the same. Lower "
                "training(max_tokens_per_micro_batch=...) where the row holds several trajectories, or "
                "generation(max_model_len=...), or raise the limit.",
                tokens, needed / 1e9, self._budget / 1e9,
            )  # fmt: skip

    @staticmethod
    def _cheapest(costs: ActivationCosts, tokens: int, budget: float) -> tuple[float, Depth, int]:
        """Bytes, what the first layers forget, and how many they are: the first plan that fits, or the smallest."""
        at = costs.at(tokens)
        plans = [(at.peak(0), Depth.NOTHING, 0)]
        for depth, sizes in (
            (Depth.ALL_BUT_ATTENTION, at.with_attention_kept()),
            (Depth.ALL, at),
            (Depth.ALL_IN_TILES, at.in_tiles(costs.at(TILE))),
        ):
            if sizes is not None:
                plans += [(sizes.peak(number), depth, number) for number in range(1, len(at.kept) + 1)]
        fitting = (plan for plan in plans if plan[0] <= budget)
        return next(fitting, min(plans, key=lambda plan: plan[0]))

    def _observed(self, short_pass: Callable[[int], Any], tokens: int) -> ActivationCosts:
        observers = []
        with activations_kept():
            for count in (tokens // 2, tokens):
                self._observer = Observer(self._layers, self._weights())
                try:
                    with self._observer.watching():
                        short_pass(count)
                finally:
                    observers.append(self._observer)
                    self._observer = None
        for layer, name in zip(self._layers, observers[-1].tokenwise, strict=True):
            if name is not None:
                part = layer.get_submodule(name)
                part.forward = functools.partial(_in_tiles, part.forward)
        return ActivationCosts.between(*observers, few=tokens // 2, many=tokens)

    def _weights(self) -> Iterator[Tensor]:
        for model in self._models:
            yield from model.parameters()
            yield from model.buffers()

    def _run(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._observer is not None:
            with self._observer.layer(index, args, kwargs):
                return forward(*args, **kwargs)
        depth = self.depths[index]
        if depth is Depth.NOTHING or _kept.get() or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # A plan may be another one by the time of the backward pass.
        planned = functools.partial(_at_depth, depth, forward)
        if depth is Depth.ALL_BUT_ATTENTION:
            return checkpoint(planned, *args, use_reentrant=False, context_fn=_keeping_attention, **kwargs)
        return checkpoint(planned, *args, use_reentrant=False, **kwargs)


_keeping_attention = functools.partial(create_selective_checkpoint_contexts, list(ATTENTION))


def _at_depth(depth: Depth, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    token = _depth.set(depth)
    try:
        return forward(*args, **kwargs)
    finally:
        _depth.reset(token)


def _in_tiles(forward: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
    """A part that treats each token alone, some tokens at a time where its layer says so."""
    if _depth.get() is not Depth.ALL_IN_TILES or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    (whole,) = (*args, *kwargs.values())
    tiles = [checkpoint(forward, tile, use_reentrant=False) for tile in whole.split(TILE, dim=1)]
    return torch.cat(tiles, dim=1)


def decoder_layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The outermost modules that transformers would checkpoint; where there are none, those it would not split."""
    unsplit = getattr(model, "_no_split_modules", None) or ()
    found = list(_outermost(model, lambda module: isinstance(module, GradientCheckpointingLayer)))
    yield from found or _outermost(model, lambda module: type(module).__name__ in unsplit)


def _outermost(module: torch.nn.Module, wanted: Callable[[torch.nn.Module], bool]) -> Iterator[torch.nn.Module]:
    for child in module.children():
        if wanted(child):
            yield child
        else:
            yield from _outermost(child, wanted)
