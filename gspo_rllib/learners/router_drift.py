"""How many tokens a mixture of experts sends to other experts after an update than before it: ``router_drift``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gspo_rllib import columns
from gspo_rllib.learners.minibatch import Minibatch
from gspo_rllib.learners.statistics import ROUTER_DRIFT, UpdateStatistics
from gspo_rllib.modules.routing import experts_of, num_changed

if TYPE_CHECKING:
    from gspo_rllib.modules.causal_lm import CausalLMModule


class RouterDrift:
    """Compares the experts of one minibatch's sampled tokens before an update and after it, by a forward pass each.

    Args:
        module: The policy, before its first step.
        module_id: RLlib's.
        minibatch: Whose rows are looked at; where learners share a model, with as many on every rank.
    """

    def __init__(self, module: CausalLMModule, module_id: str, minibatch: Minibatch) -> None:
        self._module = module
        self._rows = minibatch.policy_batches[module_id]["micro_batches"]
        self._before = [experts_of(module, row) for row in self._rows]

    def add_to(self, statistics: UpdateStatistics) -> None:
        """Measures; called after the last step."""
        for row, before in zip(self._rows, self._before, strict=True):
            after = experts_of(self._module, row)
            if not row.get(columns.EMPTY):
                statistics.add_mean(ROUTER_DRIFT, *num_changed(before, after))
