"""What an update needs to know of the policy before it: log-probs in the engine's place, and experts to be held."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import columns
from gspo_rllib.learners.minibatch import Minibatch
from gspo_rllib.modules.routing_replay import RoutingReplay

if TYPE_CHECKING:
    from gspo_rllib.modules.causal_lm import CausalLMModule


@torch.no_grad()
def note_old_policy(
    module: CausalLMModule, minibatches: Iterable[Minibatch], *, recomputes: bool, replay: RoutingReplay | None
) -> None:
    """Puts into every micro-batch what is asked for; called before an update's first step.

    Args:
        module: The policy, not wrapped.
        minibatches: The update's, in their order.
        recomputes: Whether old log-probs are the learner's; the first minibatch gets those of its own forward pass.
        replay: What notes experts; None where they are not held.
    """
    for number, minibatch in enumerate(minibatches):
        for micro_batch in minibatch.policy_batches[DEFAULT_MODULE_ID]["micro_batches"]:
            if recomputes:
                del micro_batch[columns.OLD_LOGP]
            if replay is None and not (recomputes and number):
                continue
            with nullcontext() if replay is None else replay.noted(micro_batch):
                logp = module.forward_train(micro_batch)[columns.LOGP]
            if recomputes and number:
                micro_batch[columns.OLD_LOGP] = logp


def routed_as_noted(replay: RoutingReplay | None, micro_batch: dict[str, Any]) -> AbstractContextManager[None]:
    """Within, passes over a micro-batch go to the experts that were noted, if any were."""
    return nullcontext() if replay is None else replay.held(micro_batch)
