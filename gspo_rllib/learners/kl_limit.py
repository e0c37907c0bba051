"""Ends an update whose policy has moved too far from the one it started with; can undo the step that went too far.

As PPO implementations do: the divergence is estimated on the minibatch just seen, from the forward pass its gradient
needs anyway, before its step is taken.

Source:  the estimator is k3 of ``ops.divergences``; all learners add up their tokens and so decide alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gspo_rllib.ops import k3


class KLLimit:
    """One update's limit on KL(policy before the update || policy being trained), in nats per sampled token.

    Args:
        target: The limit; > 0.
        distributed: Whether there are other learners, each of which makes the same calls.
        device: Where this learner computes.
    """

    def __init__(self, target: float, *, distributed: bool, device: torch.device | str) -> None:
        self._target = target
        self._distributed = distributed
        self._sum_and_count = torch.zeros(2, dtype=torch.float64, device=device)
        self.exceeded = False
        """Whether the latest minibatch was beyond the limit."""
        self.latest: float | None = None
        """Divergence on the latest minibatch that sampled anything, over all learners; None before."""

    @torch.no_grad()
    def add(self, old_logp_L: Tensor, logp_L: Tensor) -> None:
        """A micro-batch's tokens: their log-probabilities (nats) before the update, and now."""
        kl_L = k3(old_logp_L, logp_L).double()
        self._sum_and_count += torch.stack([kl_L.sum(), kl_L.new_tensor(float(len(kl_L)))])

    def check(self, *, has_moved: bool = True) -> bool:
        """Ends a minibatch: whether it was beyond the limit, all learners' tokens together.

        Args:
            has_moved: Whether a step was taken. Before, what differs is the engine's noise or its older weights, and
                is never beyond the limit.
        """
        if self._distributed:
            torch.distributed.all_reduce(self._sum_and_count)
        total, count = self._sum_and_count.tolist()
        self._sum_and_count.zero_()
        if count:
            self.latest = total / count
            # A divergence that is not a number is beyond any limit.
            self.exceeded = has_moved and not self.latest <= self._target
        return self.exceeded


class StepMemory:
    """Weights and optimiser state as they were before the latest step.

    Args:
        optimizers: Those that step together.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self._weights: list[tuple[Tensor, Tensor]] = []
        self._states: list[dict[Any, dict[str, Any]]] = []

    @torch.no_grad()
    def remember(self) -> None:
        """Copies both, in place of what was remembered before."""
        parameters = (p for o in self._optimizers for group in o.param_groups for p in group["params"])
        self._weights = [(parameter, parameter.detach().clone()) for parameter in parameters]
        self._states = [
            {parameter: {name: _copy(value) for name, value in state.items()} for parameter, state in o.state.items()}
            for o in self._optimizers
        ]

    @torch.no_grad()
    def undo(self) -> bool:
        """Puts both back, bit by bit; whether a step was there to be undone."""
        if not self._weights:
            return False
        for parameter, weights in self._weights:
            parameter.copy_(weights)
        for optimizer, states in zip(self._optimizers, self._states, strict=True):
            optimizer.state.clear()
            optimizer.state.update(states)
        self._weights, self._states = [], []
        return True


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
