"""Routing Replay: an update's passes send a mixture's tokens where the policy before it sent them.

A router takes the largest of its scores, with ``topk``. Where a row is noted, what each ``topk`` of a router chose is
kept; where it is held, the scores at those places are the answer, whatever others are larger by now. So the experts of
a token stay, and their weights still are the router's, with its gradient. Source: section 5.3 of arXiv:2507.18071.

Shapes:  C cells of one call (tokens, padding included) · K experts of a token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gspo_rllib import columns
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.modules.routing import expert_layers, experts_noted
from gspo_rllib.modules.scoring import Rows

if TYPE_CHECKING:
    from gspo_rllib.modules.causal_lm import CausalLMModule

_TOPK = (torch.topk, torch.Tensor.topk)


@dataclass(frozen=True, slots=True)
class Choice:
    """What one ``topk`` chose.

    Attributes:
        places: int16, as its indices: [C, K] of experts, others where a router chooses groups of them first.
        num_options: How many there were to choose from.
    """

    places: Tensor
    num_options: int

    def shifted(self) -> Choice:
        """The next option's place for each: none that it was, as long as not all were chosen."""
        return Choice(((self.places + 1) % self.num_options).to(torch.int16), self.num_options)


class _Choosing(TorchFunctionMode):
    """Within, ``tell`` is told what every ``topk`` chooses; or it is answered from ``held`` choices, in their order."""

    def __init__(self, *, tell: Callable[[Choice], Any] | None = None, held: Iterable[Choice] = ()) -> None:
        super().__init__()
        self._tell, self._held = tell, iter(held)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answers ``topk``; any other function answers for itself."""
        kwargs = kwargs or {}
        if func not in _TOPK:
            return func(*args, **kwargs)
        scores, dim = _given(*args, **kwargs)
        if self._tell is not None:
            chosen = func(*args, **kwargs)
            self._tell(Choice(chosen.indices.to(torch.int16), scores.shape[dim]))
            return chosen
        places = next(self._held).places.long()
        if places.transpose(0, dim)[0].shape != scores.transpose(0, dim)[0].shape:
            raise ModelError(
                f"training.routing_replay: a router scores {list(scores.shape)} and {list(places.shape)} is held of "
                "it: this pass is split otherwise than the one that was noted. Leave the setting out."
            )
        return torch.return_types.topk((scores.gather(dim, places), places))


def _given(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, int]:
    """Scores and axis of a call of ``topk``, by torch's names."""
    return input, dim


class RoutingReplay:
    """Notes where a mixture's routers send the tokens of a row, and sends them there again.

    Args:
        module: A policy with experts, not wrapped; its routers' ``forward`` is replaced, so copies must be made before.
        row: Any packed row on its device; see ``columns``.

    Attributes:
        routers: What chooses the experts of each layer, in their order.

    Raises:
        SettingError: The model has no experts, or does not choose them by ``topk``.
        ModelError: What is held would not reach its experts.
    """

    def __init__(self, module: CausalLMModule, row: dict[str, Any]) -> None:
        self._module = module
        if module.recomputation is not None and module.scoring.rows is Rows.SINGLE:
            raise ModelError(
                f"training.routing_replay: {type(module.model).__name__} is scored in one forward pass for each "
                "segment, and layers that compute their activations again do not say of which. Leave "
                "rl_module.model_config['activation_checkpointing'] or routing_replay out."
            )
        self.routers = _routers(module, row)
        self._noted: list[list[list[Choice]]] | None = None
        self._held: Sequence[Sequence[Sequence[Choice]]] | None = None
        self._num_held = [0] * len(self.routers)
        for number, router in enumerate(self.routers):
            router.forward = functools.partial(self._run, number, router.forward)
        self._check(row)

    @contextmanager
    def noted(self, row: dict[str, Any]) -> Iterator[None]:
        """Within, a pass over the row, without a gradient, puts what its routers choose into it, ``ROUTING``."""
        noted: list[list[list[Choice]]] = [[] for _ in self.routers]
        self._noted = noted
        try:
            yield
        finally:
            self._noted = None
        row[columns.ROUTING] = noted

    @contextmanager
    def held(self, row: dict[str, Any]) -> Iterator[None]:
        """Within, passes over a row that was noted, forward and backward, have its tokens go where they went then."""
        self._held = row.get(columns.ROUTING)
        self._num_held = [0] * len(self.routers)
        try:
            yield
        finally:
            self._held = None

    def _run(self, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._held is not None:
            of_router = self._held[number]
            # With a gradient, a pass that is longer than any before may be made twice.
            call = of_router[self._num_held[number] % len(of_router)]
            self._num_held[number] += 1
            with _Choosing(held=call):
                return forward(*args, **kwargs)
        if self._noted is None:
            return forward(*args, **kwargs)
        choices: list[Choice] = []
        with _Choosing(tell=choices.append):
            routed = forward(*args, **kwargs)
        self._noted[number].append(choices)
        return routed

    @torch.no_grad()
    def _check(self, row: dict[str, Any]) -> None:
        """Has tokens go to other experts than they would, and looks whether they get there."""
        model = self._module.model
        row = dict(row)
        with self.noted(row):
            self._module.forward_train(row)
        noted = row[columns.ROUTING]
        held = [[[choice.shifted() for choice in call] for call in of_router] for of_router in noted]
        row[columns.ROUTING] = held
        with self.held(row), experts_noted(model) as given:
            self._module.forward_train(row)
        for of_layer, of_router in zip(given, held, strict=True):
            # The last choice of a router is of experts.
            if not torch.equal(of_layer[-1], of_router[-1][-1].places.long()):
                raise ModelError(
                    f"training.routing_replay: {type(model).__name__} sends tokens to other experts than it is held "
                    "to. Leave the setting out."
                )


@torch.no_grad()
def _routers(module: CausalLMModule, row: dict[str, Any]) -> list[torch.nn.Module]:
    """The innermost modules that choose the experts of each layer, by a pass over a row; in the layers' order."""
    model = module.model
    layers = [layer for layer, _ in expert_layers(model, "routing_replay")]
    running: list[torch.nn.Module] = []
    chosen_by: list[tuple[torch.nn.Module, Choice]] = []
    routers: dict[torch.nn.Module, torch.nn.Module] = {}

    def begin(part: torch.nn.Module, _: Any) -> None:
        running.append(part)

    def end(*_: Any) -> None:
        running.pop()

    with ExitStack() as stack:
        for part in model.modules():
            stack.callback(part.register_forward_pre_hook(begin).remove)
            stack.callback(part.register_forward_hook(end, always_call=True).remove)
        given = dict(zip(layers, stack.enter_context(experts_noted(model)), strict=True))

        def find(layer: torch.nn.Module, _: Any) -> None:
            for router, choice in chosen_by:
                if torch.equal(choice.places.long(), given[layer][-1]):
                    routers[layer] = router
            chosen_by.clear()

        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(find).remove)
        # A critic's own layers choose outside the model, and are not held.
        with _Choosing(tell=lambda choice: chosen_by.extend((part, choice) for part in running[-1:])):
            module.forward_train(row)
    missing = [type(layer).__name__ for layer in layers if layer not in routers]
    if missing or len(set(routers.values())) < len(layers):
        how = f"{missing[0]} is given others than a topk chose" if missing else "layers share a router"
        raise SettingError(
            f"training.routing_replay: {type(model).__name__} chooses experts in a way that cannot be held: {how}. "
            "Leave the setting out."
        )
    return [routers[layer] for layer in layers]
