"""Learner connector piece: generalised advantage estimation with the module's critic, token by token."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib import columns
from gspo_rllib.connectors.scoring import score
from gspo_rllib.ops import gae
from gspo_rllib.types import TokenTrajectory


class GeneralAdvantageEstimation(ConnectorV2):
    """Fills in per-token advantages and value targets; the counterpart of RLlib's piece of that name.

    A turn's reward is earned by the last token of the turn. Advantages are standardised over all tokens of the batch,
    over all learners, as RLlib's PPO does.

    Args:
        gamma: Discount per sampled token.
        lambda_: Decay of the estimator per sampled token.
        max_tokens: Token budget of one forward pass.
    """

    def __init__(self, *args: Any, gamma: float, lambda_: float, max_tokens: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._gamma, self._lambda, self._max_tokens = gamma, lambda_, max_tokens

    def __call__(
        self,
        *,
        rl_module: RLModule,
        batch: dict[str, Any],
        episodes: list[SingleAgentEpisode],
        explore: bool | None = None,
        shared_data: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See ``ConnectorV2``."""
        trajectories: list[TokenTrajectory] = batch[DEFAULT_MODULE_ID][columns.TRAJECTORIES]
        module: Any = rl_module[DEFAULT_MODULE_ID].unwrapped()
        device = next(module.parameters()).device
        values = score(
            trajectories,
            module.compute_values,
            max_tokens=self._max_tokens,
            device=device,
            sharing=module.prefix_sharing(),
            module=module,
        )
        estimated = [self._estimate(t, value_L) for t, value_L in zip(trajectories, values, strict=True)]
        mean, std = _moments([advantages_L for advantages_L, _ in estimated], device)
        for i, (advantages_L, targets_L) in enumerate(estimated):
            trajectories[i] = dataclasses.replace(
                trajectories[i],
                advantages=((advantages_L - mean) / max(std, 1e-4)).astype(np.float32),
                value_targets=targets_L.astype(np.float32),
            )
        return batch

    def _estimate(self, trajectory: TokenTrajectory, value_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reward_L = np.zeros(trajectory.num_loss_tokens)
        ends = np.flatnonzero(np.diff(trajectory.turn_index, append=-1))
        np.add.at(reward_L, ends, trajectory.turn_rewards[trajectory.turn_index[ends]])
        advantage_1L, target_1L = gae(
            torch.as_tensor(reward_L)[None],
            torch.as_tensor(value_L).double()[None],
            torch.ones(1, len(reward_L), dtype=torch.bool),
            gamma=self._gamma,
            lambda_=self._lambda,
        )
        return advantage_1L[0].numpy(), target_1L[0].numpy()


def _moments(parts: list[np.ndarray], device: torch.device) -> tuple[float, float]:
    """Mean and standard deviation over all learners."""
    values = np.concatenate([*parts, np.zeros(0)])
    sums = torch.tensor([len(values), values.sum(), np.square(values).sum()], dtype=torch.float64, device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    count, total, squares = sums.tolist()
    mean = total / max(count, 1.0)
    return mean, max(squares / max(count, 1.0) - mean**2, 0.0) ** 0.5
