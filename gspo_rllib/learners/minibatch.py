"""One optimiser step as RLlib's update loop takes it."""

from __future__ import annotations

from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import columns
from gspo_rllib.learners.training_data import MinibatchPlan


class Minibatch:
    """One optimiser step: this rank's micro-batches and the plan all ranks share.

    It answers what RLlib's update loop asks of its ``MultiAgentBatch``, which can only hold equally long columns.
    """

    def __init__(self, micro_batches: list[dict[str, Any]], plan: MinibatchPlan, num_turns: int) -> None:
        self.policy_batches = {DEFAULT_MODULE_ID: _SampledTokens(micro_batches, plan)}
        self._num_turns = num_turns

    def env_steps(self) -> int:
        """Turns it trains on."""
        return self._num_turns


class _SampledTokens(dict[str, Any]):
    """The module's part of a minibatch; its length is what RLlib logs as steps trained: sampled tokens."""

    def __init__(self, micro_batches: list[dict[str, Any]], plan: MinibatchPlan) -> None:
        super().__init__(micro_batches=micro_batches, plan=plan)

    def __len__(self) -> int:
        return sum(len(m[columns.LOSS_TOKEN_IDS]) for m in self["micro_batches"] if not m.get(columns.EMPTY))
