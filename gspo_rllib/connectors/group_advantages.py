"""Learner connector piece: scores every trajectory against the others of its group."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor

from gspo_rllib import columns
from gspo_rllib.errors import EnvError
from gspo_rllib.ops import (
    Span,
    group_mean_baseline,
    group_z_score,
    leave_one_out,
    reward_parts_z_score,
    step_groups,
    turn_returns,
)
from gspo_rllib.types import REWARD_PARTS, TokenTrajectory


@dataclasses.dataclass(frozen=True)
class GroupOutcome:
    """What a group's trajectories earned, as an estimator sees it.

    Attributes:
        trajectories: The K >= 2 trajectories of the group.
        episodes: The same trajectories as RLlib episodes.
    """

    trajectories: Sequence[TokenTrajectory]
    episodes: Sequence[SingleAgentEpisode]

    # float64 throughout: a z-score of returns that differ in the last bits must not turn rounding into an advantage.

    @property
    def return_K(self) -> Tensor:
        """Sum of each trajectory's rewards."""
        return torch.tensor([t.turn_rewards.sum() for t in self.trajectories], dtype=torch.float64)

    @property
    def reward_KN(self) -> Tensor:
        """Reward of each turn, 0 behind a trajectory's end."""
        rewards = [torch.as_tensor(t.turn_rewards, dtype=torch.float64) for t in self.trajectories]
        return torch.nn.utils.rnn.pad_sequence(rewards, batch_first=True)

    @property
    def mask_KN(self) -> Tensor:
        """Which turns were played."""
        length_K = torch.tensor([t.num_turns for t in self.trajectories])
        return torch.arange(int(length_K.max()))[None, :] < length_K[:, None]

    @property
    def state_ids_KN(self) -> Tensor:
        """Which observation each turn answered; equal texts have equal ids."""
        ids: dict[Any, int] = {}
        rows = [
            torch.tensor([ids.setdefault(text, len(ids)) for text in episode.get_observations()[:-1]])
            for episode in self.episodes
        ]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def part_KP(self, names: Sequence[str]) -> Tensor:
        """Each trajectory's sum of each reward part.

        Raises:
            EnvError: A trajectory's ``info`` never held one of them.
        """
        return torch.tensor([[_part(e, name) for name in names] for e in self.episodes], dtype=torch.float64)


def _part(episode: SingleAgentEpisode, name: str) -> float:
    values = [info[REWARD_PARTS][name] for info in episode.get_infos() if name in info.get(REWARD_PARTS, {})]
    if not values:
        raise EnvError(
            f'info["{REWARD_PARTS}"] never held {name!r} in episode {episode.id_}, but training.reward_part_weights '
            "names it. Report it in every episode's info, or take it out of the weights."
        )
    return float(sum(values))


Estimator = Callable[[GroupOutcome], Tensor]
"""A group's outcome -> advantages, [K] or [K, N]."""


class EstimatorKnobs(NamedTuple):
    """The numbers that estimators are set with; each uses some of them. See ``group_estimator``."""

    gamma: float = 1.0
    step_weight: float = 1.0
    part_weights: dict[str, float] | None = None


def _of_returns(function: Callable[[Tensor], Tensor]) -> Callable[[EstimatorKnobs], Estimator]:
    return lambda knobs: lambda outcome: function(outcome.return_K)


def _reward_parts(knobs: EstimatorKnobs) -> Estimator:
    weights = knobs.part_weights or {}
    names = sorted(weights)
    weight_P = torch.tensor([weights[n] for n in names], dtype=torch.float64)
    return lambda outcome: reward_parts_z_score(outcome.part_KP(names), weight_P)


def _turn_returns(knobs: EstimatorKnobs) -> Estimator:
    return lambda outcome: turn_returns(outcome.reward_KN, outcome.mask_KN, gamma=knobs.gamma)


def _step_groups(knobs: EstimatorKnobs) -> Estimator:
    return lambda outcome: step_groups(
        outcome.reward_KN, outcome.mask_KN, outcome.state_ids_KN, gamma=knobs.gamma, step_weight=knobs.step_weight
    )


@dataclasses.dataclass(frozen=True)
class AdvantageTraits:
    """What follows from an advantage estimator.

    Attributes:
        span: The sampled tokens that share one advantage.
        make: Knobs -> the estimator of a group; None: a critic estimates, and no group is needed.
        follows_returns: Whether trajectories with equal returns have equal advantages.
        reads_reward_parts: Whether it reads ``info["reward_parts"]`` instead of the rewards.
        discounts: Whether ``gamma`` changes it.
        weighs_steps: Whether ``step_advantage_weight`` does.
    """

    span: Span
    make: Callable[[EstimatorKnobs], Estimator] | None
    follows_returns: bool = True
    reads_reward_parts: bool = False
    discounts: bool = False
    weighs_steps: bool = False

    @property
    def needs_critic(self) -> bool:
        """Whether values of states are estimated."""
        return self.make is None

    @property
    def needs_group(self) -> bool:
        """Whether it compares the trajectories of one task with each other."""
        return self.make is not None


ADVANTAGE_ESTIMATORS: dict[str, AdvantageTraits] = {
    "group_z_score": AdvantageTraits(Span.TRAJECTORY, _of_returns(group_z_score)),
    "group_mean": AdvantageTraits(Span.TRAJECTORY, _of_returns(group_mean_baseline)),
    "leave_one_out": AdvantageTraits(Span.TRAJECTORY, _of_returns(leave_one_out)),
    "reward_parts": AdvantageTraits(Span.TRAJECTORY, _reward_parts, follows_returns=False, reads_reward_parts=True),
    "turn_returns": AdvantageTraits(Span.TURN, _turn_returns, follows_returns=False, discounts=True),
    "step_groups": AdvantageTraits(Span.TURN, _step_groups, follows_returns=False, discounts=True, weighs_steps=True),
    "gae": AdvantageTraits(Span.TOKEN, None, follows_returns=False, discounts=True),
}
"""Every ``training.advantage_estimator`` and what follows from it."""


def group_estimator(
    name: str, *, gamma: float = 1.0, step_weight: float = 1.0, part_weights: dict[str, float] | None = None
) -> Estimator:
    """The estimator of a name in ``ADVANTAGE_ESTIMATORS`` that needs no critic.

    Args:
        name: ``training.advantage_estimator``.
        gamma: Discount per turn, used by the estimators that score turns.
        step_weight: Weight of the step advantage in ``"step_groups"``.
        part_weights: Parts and weights for ``"reward_parts"``.
    """
    make = ADVANTAGE_ESTIMATORS[name].make
    assert make is not None, name
    return make(EstimatorKnobs(gamma, step_weight, part_weights))


class GroupAdvantages(ConnectorV2):
    """Fills in the advantages of token trajectories, group by group; stands where RLlib's PPO has its GAE piece.

    A group of one has nothing to be compared with: its advantage is 0.

    Args:
        estimator: See ``group_estimator``.
    """

    def __init__(self, *args: Any, estimator: Estimator | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._estimator = estimator or group_estimator("group_z_score")

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
        """See ``ConnectorV2``; the episodes must be whole groups."""
        trajectories: list[TokenTrajectory] = batch[DEFAULT_MODULE_ID][columns.TRAJECTORIES]
        members: dict[str, list[int]] = {}
        for position, trajectory in enumerate(trajectories):
            members.setdefault(trajectory.group_id, []).append(position)
        for positions in members.values():
            if len(positions) < 2:
                continue
            positions.sort(key=lambda i: trajectories[i].index)
            outcome = GroupOutcome([trajectories[i] for i in positions], [episodes[i] for i in positions])
            for position, advantage in zip(positions, self._estimator(outcome).numpy(), strict=True):
                trajectories[position] = _with_advantage(trajectories[position], advantage)
        return batch


def _with_advantage(trajectory: TokenTrajectory, advantage: np.ndarray) -> TokenTrajectory:
    """Spreads one advantage, or one per turn, over the sampled tokens."""
    per_token = advantage[trajectory.turn_index] if advantage.ndim else np.full(trajectory.num_loss_tokens, advantage)
    return dataclasses.replace(trajectory, advantages=per_token.astype(np.float32))
