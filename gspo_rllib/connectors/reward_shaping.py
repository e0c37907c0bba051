"""Learner connector pieces that change rewards before the advantages are computed.

Whether a group has any variance is decided earlier, on the environment's own rewards.
"""

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
from gspo_rllib.ops import KLEstimator, kl_estimate, soft_overlong_penalty
from gspo_rllib.types import TokenTrajectory


class _RewardShaping(ConnectorV2):
    def extra_rewards(self, trajectory: TokenTrajectory) -> np.ndarray:
        """What is added to the reward of each turn, [N]."""
        raise NotImplementedError

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
        for i, trajectory in enumerate(trajectories):
            shaped = trajectory.turn_rewards + self.extra_rewards(trajectory)
            trajectories[i] = dataclasses.replace(trajectory, turn_rewards=shaped)
        return batch


class KLPenalty(_RewardShaping):
    """Takes ``kl_coeff`` times the divergence from the reference off the reward of every turn; needs its log-probs.

    Args:
        kl_coeff: Size of the penalty, in reward per nat of divergence.
        kl_estimator: ``"k1"`` | ``"k2"`` | ``"k3"``, summed over the turn's tokens.
    """

    def __init__(self, *args: Any, kl_coeff: float, kl_estimator: KLEstimator, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._kl_coeff: float = kl_coeff
        self._kl_estimator: KLEstimator = kl_estimator

    def extra_rewards(self, trajectory: TokenTrajectory) -> np.ndarray:
        """Minus the turn's divergence."""
        assert trajectory.reference_logp is not None
        logp_L, reference_L = map(torch.as_tensor, (trajectory.behavior_logp, trajectory.reference_logp))
        kl_L = kl_estimate(logp_L, reference_L, estimator=self._kl_estimator).double().numpy()
        return -self._kl_coeff * np.bincount(trajectory.turn_index, kl_L, minlength=trajectory.num_turns)


class OverlongPenalty(_RewardShaping):
    """Takes up to 1 off the last reward of a trajectory that samples nearly as many tokens as it may, or more.

    Args:
        max_tokens: Sampled tokens of a whole trajectory from which the penalty is 1.
        buffer: Number of tokens below ``max_tokens`` over which the penalty grows from 0.
    """

    def __init__(self, *args: Any, max_tokens: int, buffer: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._max_tokens, self._buffer = max_tokens, buffer

    def extra_rewards(self, trajectory: TokenTrajectory) -> np.ndarray:
        """The penalty on the last turn."""
        length_1 = torch.tensor([trajectory.num_loss_tokens])
        extra_N = np.zeros(trajectory.num_turns)
        extra_N[-1] = float(soft_overlong_penalty(length_1, max_tokens=self._max_tokens, buffer=self._buffer))
        return extra_N
