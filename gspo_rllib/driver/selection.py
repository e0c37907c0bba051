"""Which of the sampled groups are trained on: truncated trajectories, groups without variance, dynamic sampling.

Runs on the driver, on whole episodes, before anything is sent to the learners. What is left out here is in no group
statistic, no loss and no denominator, because every denominator is counted from the groups that come out.

Source:  Yu et al. 2025 (DAPO), arXiv:2503.14476v2: dynamic sampling; its overlong filtering, here by trajectory.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib import metrics as names
from gspo_rllib.errors import NoProgressError, RunnersLostError, SettingError, did_you_mean
from gspo_rllib.types import TRUNCATED_BY, TURN_REWARDS, TrajectoryGroup, succeeded, turn_rewards

logger = logging.getLogger(__name__)

ZeroVarianceGroups = Literal["keep", "drop", "resample"]
ZeroVarianceMetric = Literal["return", "success"]
TruncatedTrajectories = Literal["keep", "mask", "fail"]


@dataclass(frozen=True)
class ZeroVarianceTraits:
    """What follows from a way to treat groups without variance.

    Attributes:
        leaves_out: Whether they are not trained on.
        replaces: Whether other groups are sampled in their place.
    """

    leaves_out: bool = False
    replaces: bool = False


ZERO_VARIANCE_GROUPS: dict[str, ZeroVarianceTraits] = {
    "keep": ZeroVarianceTraits(),
    "drop": ZeroVarianceTraits(leaves_out=True),
    "resample": ZeroVarianceTraits(leaves_out=True, replaces=True),
}
"""Every ``ZeroVarianceGroups`` and what follows from it."""

COMPARES_RETURNS: dict[str, bool] = {"return": True, "success": False}
"""Every ``ZeroVarianceMetric``, and whether it is the returns that must differ."""

REPLACES_REWARDS: dict[str, bool] = {"keep": False, "mask": False, "fail": True}
"""Every ``TruncatedTrajectories``, and whether it puts another return in the place of the environment's."""

COUNTS = (
    names.NUM_GROUPS_ZERO_VARIANCE,
    names.NUM_GROUPS_DROPPED,
    names.NUM_GROUPS_RESAMPLED,
    names.NUM_TRAJECTORIES_TRUNCATED_MASKED,
    names.NUM_TRAJECTORIES_TRUNCATED_FAILED,
)
"""Every metric counted here; one that did not occur is 0, never absent."""

_Group = TypeVar("_Group")
_Report = TypeVar("_Report")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSelection:
    """Decides what becomes of truncated trajectories and of groups that cannot teach anything.

    Args:
        zero_variance_groups: ``"keep"`` trains on a group whose members all did equally well (its group advantages are
            0, but it counts in the denominators); ``"drop"`` leaves it out; ``"resample"`` leaves it out, and other
            groups are to be sampled instead, see ``sample_until_informative``.
        zero_variance_metric: What "equally well" compares, exactly: ``"return"``, the sum of a trajectory's turn
            rewards; or ``"success"``, its outcome, where the return carries shaping that would keep a group in which
            everybody won. Where a member does not say whether it succeeded, the returns of its group are compared.
        truncated_trajectories: ``"keep"`` trains on them as they are; ``"mask"`` takes them out of their group;
            ``"fail"`` replaces their rewards by 0 in every turn but the last, and counts them as not successful.
        truncated_return: Reward of the last turn, hence the return, of a truncated trajectory that counts as failed.

    Raises:
        SettingError: A choice is unknown, or ``truncated_return`` is not finite.
    """

    zero_variance_groups: ZeroVarianceGroups = "keep"
    zero_variance_metric: ZeroVarianceMetric = "return"
    truncated_trajectories: TruncatedTrajectories = "keep"
    truncated_return: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("zero_variance_groups", self.zero_variance_groups, ZeroVarianceGroups)
        _check_choice("zero_variance_metric", self.zero_variance_metric, ZeroVarianceMetric)
        _check_choice("truncated_trajectories", self.truncated_trajectories, TruncatedTrajectories)
        if not math.isfinite(self.truncated_return):
            raise SettingError(f"truncated_return={self.truncated_return!r}: must be a finite number, e.g. 0.0.")

    def select(self, groups: Sequence[TrajectoryGroup]) -> tuple[list[TrajectoryGroup], dict[str, int]]:
        """Keeps what is to be trained on.

        The environment's own rewards are never changed: the rewards that a failed trajectory is trained with are kept
        beside them in the episode, where ``types.turn_rewards`` finds them.

        Args:
            groups: Complete groups, ragged ones too.

        Returns:
            The groups to train on, in the order given, the very objects unless a member was taken out; and how often
            each of ``COUNTS`` occurred.
        """
        counts = dict.fromkeys(COUNTS, 0)
        kept: list[TrajectoryGroup] = []
        for group in groups:
            members = self._treat_truncated(group.episodes, counts)
            zero_variance = self._has_zero_variance(members)
            counts[names.NUM_GROUPS_ZERO_VARIANCE] += zero_variance
            if not members or (zero_variance and self.zero_variance_groups != "keep"):
                counts[names.NUM_GROUPS_DROPPED] += 1
            elif len(members) == len(group.episodes):
                kept.append(group)
            else:
                kept.append(TrajectoryGroup(group.group_id, members))
        return kept, counts

    def filters_on_shaping(self, kept: Sequence[TrajectoryGroup]) -> bool:
        """Whether a group passed the filter although all its trajectories had the same outcome.

        Its returns then differ in reward shaping only. Training on nothing but such differences is known to ruin a
        policy within tens of updates: it learns the shaping, not the task.
        """
        if self.zero_variance_groups == "keep" or self.zero_variance_metric == "success":
            return False
        if not any("success" in episode.get_infos(-1) for group in kept for episode in group.episodes):
            return False
        return any({self._success(episode) for episode in group.episodes} in ({True}, {False}) for group in kept)

    def _treat_truncated(self, episodes: list[SingleAgentEpisode], counts: dict[str, int]) -> list[SingleAgentEpisode]:
        if self.truncated_trajectories == "keep":
            return episodes
        truncated = [episode for episode in episodes if _is_truncated(episode)]
        if self.truncated_trajectories == "mask":
            counts[names.NUM_TRAJECTORIES_TRUNCATED_MASKED] += len(truncated)
            return [episode for episode in episodes if not _is_truncated(episode)]
        counts[names.NUM_TRAJECTORIES_TRUNCATED_FAILED] += len(truncated)
        for episode in truncated:
            rewards = np.zeros(len(episode))
            rewards[-1] = self.truncated_return
            episode.custom_data[TURN_REWARDS] = rewards
        return episodes

    def _has_zero_variance(self, episodes: Sequence[SingleAgentEpisode]) -> bool:
        # Compared exactly: a tolerance would also swallow real differences of small rewards, and a standard deviation
        # of equal numbers need not be 0.
        if self.zero_variance_metric == "success":
            outcomes = {self._success(episode) for episode in episodes}
            if None not in outcomes:
                return len(outcomes) < 2
        return not returns_differ(episodes)

    def _success(self, episode: SingleAgentEpisode) -> bool | None:
        if _is_truncated(episode) and self.truncated_trajectories == "fail":
            return False
        return succeeded(episode)


def returns_differ(episodes: Sequence[SingleAgentEpisode]) -> bool:
    """Whether the episodes, of one group, are to be trained with different returns; compared exactly."""
    return len({float(turn_rewards(episode).sum()) for episode in episodes}) > 1


def sample_until_informative(
    sample: Callable[[int], tuple[Sequence[_Group], Sequence[_Report]]],
    select: Callable[[Sequence[_Group]], tuple[Sequence[_Group], dict[str, int]]],
    *,
    wanted: int,
    budget: int,
) -> tuple[list[_Group], list[_Report], dict[str, int]]:
    """Samples groups, and others in place of those that were not kept, until there are enough or the budget is spent.

    Args:
        sample: Number of groups -> that many new groups, less those that could not be completed, and any number of
            reports.
        select: ``GroupSelection.select``; called once on every draw.
        wanted: Groups to train on; also the size of the first draw, >= 1.
        budget: Groups that may be asked for beyond the first draw, >= 0; 0 draws once.

    Returns:
        At most ``wanted`` kept groups in the order they were drawn, possibly none; the reports of all draws; and the
        counts of ``select``, added up, with the groups asked for beyond the first draw as ``num_groups_resampled``.

    Raises:
        NoProgressError: Raised by ``sample`` in the first draw. In a later one it ends the sampling: its environment
            keeps failing, and what was kept before is worth training on.
        RunnersLostError: Raised by ``sample`` in any draw.

    Example:
        >>> number = iter(range(100))
        >>> odd = lambda numbers: ([n for n in numbers if n % 2], {"num_groups_dropped": len(numbers) // 2})
        >>> kept, _, counts = sample_until_informative(
        ...     lambda n: ([next(number) for _ in range(n)], []), odd, wanted=4, budget=10)
        >>> kept, counts["num_groups_resampled"]
        ([1, 3, 5, 7], 4)
    """
    drawn, taken = sample(wanted)
    reports = list(taken)
    selected, added = select(drawn)
    kept, counts = list(selected), Counter(added)
    left = budget
    while (missing := min(wanted - len(kept), left)) > 0:
        left -= missing
        try:
            drawn, taken = sample(missing)
        except RunnersLostError:
            raise
        except NoProgressError as error:
            logger.warning("Resampling stops with %d of %d groups: %s", len(kept), wanted, error)
            break
        reports += taken
        selected, added = select(drawn)
        kept += selected
        counts.update(added)
    counts[names.NUM_GROUPS_RESAMPLED] = budget - left
    return kept, reports, dict(counts)


def _is_truncated(episode: SingleAgentEpisode) -> bool:
    return TRUNCATED_BY in episode.custom_data


def _check_choice(name: str, got: str, allowed: Any) -> None:
    if got not in get_args(allowed):
        raise SettingError(f"{name}={got!r} is unknown. {did_you_mean(str(got), get_args(allowed))}")
