"""What the driver sends to the learners: whole groups, split into minibatches and ranks ahead of time."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from ray.rllib.core.learner.training_data import TrainingData

from gspo_rllib.ops import REDUCTIONS, Reduction, Span
from gspo_rllib.types import TrajectoryGroup, turns


@dataclasses.dataclass(frozen=True)
class MinibatchPlan:
    """One optimiser step, the same on every rank.

    Attributes:
        group_ids: The groups it trains on, over all ranks.
        num_trajectories: Trajectories with at least one sampled token, over all ranks.
        num_turns: Turns with at least one sampled token, over all ranks.
        num_sampled_tokens: Sampled tokens, over all ranks.
    """

    group_ids: frozenset[str]
    num_trajectories: int
    num_turns: int
    num_sampled_tokens: int

    @classmethod
    def of(cls, groups: Sequence[TrajectoryGroup]) -> MinibatchPlan:
        """The step that trains on these groups, however many members each has."""
        sampled = [[len(turn.action_token_ids) for turn in turns(e)] for group in groups for e in group.episodes]
        return cls(
            group_ids=frozenset(group.group_id for group in groups),
            num_trajectories=sum(any(lengths) for lengths in sampled),
            num_turns=sum(length > 0 for lengths in sampled for length in lengths),
            num_sampled_tokens=sum(map(sum, sampled)),
        )

    def denominator(self, reduction: Reduction) -> int:
        """What a reduction's mean divides by: the same number for every micro-batch on every rank."""
        counts = {
            Span.TRAJECTORY: self.num_trajectories,
            Span.TURN: self.num_turns,
            Span.TOKEN: self.num_sampled_tokens,
        }
        return counts[REDUCTIONS[reduction].mean_over]


@dataclasses.dataclass
class GroupTrainingData(TrainingData):
    """RLlib training data that is sharded by whole groups: neither a group nor a trajectory is ever split.

    RLlib's own sharding cuts episodes to equal lengths; this one gives whole groups to the ranks, balanced by tokens.

    Attributes:
        groups: Complete groups, whose trajectories are RLlib's ``episodes`` too.
        minibatches: The optimiser steps of one epoch, in order.
    """

    groups: list[TrajectoryGroup] = dataclasses.field(default_factory=list)
    minibatches: list[MinibatchPlan] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.episodes = [episode for group in self.groups for episode in group.episodes]

    @classmethod
    def from_groups(
        cls,
        groups: Sequence[TrajectoryGroup],
        *,
        num_minibatches: int,
        seed: int,
        min_informative: int = 0,
        num_informative: Callable[[TrajectoryGroup], int] = lambda group: len(group.episodes),
    ) -> GroupTrainingData:
        """Shuffles the groups into minibatches.

        Args:
            groups: Complete groups, at least one.
            num_minibatches: How many optimiser steps an epoch has; fewer when there are fewer groups.
            seed: Seed of the shuffle.
            min_informative: Fewest informative trajectories of a minibatch; minibatches are joined until all have as
                many. 0: minibatches are of as equal a number of groups as possible, whatever is in them.
            num_informative: How many trajectories of a group have an advantage.
        """
        order = list(groups)
        random.Random(seed).shuffle(order)
        parts = min(num_minibatches, len(order))
        minibatches = [order[i::parts] for i in range(parts)]
        if min_informative:
            minibatches = _informative_minibatches(order, parts, min_informative, num_informative)
        return cls(groups=list(groups), minibatches=[MinibatchPlan.of(members) for members in minibatches])

    def shard(
        self, num_shards: int, len_lookback_buffer: int | None = None, **kwargs: Any
    ) -> list[tuple[TrainingData, dict[str, Any]]]:
        """Shares every minibatch's groups among ``num_shards`` ranks: largest first, to the rank with fewest tokens."""
        shards: list[list[TrajectoryGroup]] = [[] for _ in range(num_shards)]
        groups = {group.group_id: group for group in self.groups}
        for plan in self.minibatches:
            load = [0] * num_shards
            for group in sorted((groups[i] for i in plan.group_ids), key=lambda g: (-g.num_tokens, g.group_id)):
                rank = load.index(min(load))
                load[rank] += group.num_tokens
                shards[rank].append(group)
        return [(GroupTrainingData(groups=shard, minibatches=self.minibatches), {}) for shard in shards]


def _informative_minibatches(
    order: Sequence[TrajectoryGroup], most: int, least: int, num_informative: Callable[[TrajectoryGroup], int]
) -> list[list[TrajectoryGroup]]:
    """As many minibatches as have ``least`` informative trajectories each, at most ``most``, at least one."""
    counts = [num_informative(group) for group in order]
    for parts in range(most, 0, -1):
        minibatches: list[list[TrajectoryGroup]] = [[] for _ in range(parts)]
        informative, sizes = [0] * parts, [0] * parts
        # Those that teach something first, to whom has fewest of these; the others then even out the sizes.
        for group, count in sorted(zip(order, counts, strict=True), key=lambda pair: -pair[1]):
            load = informative if count else sizes
            part = load.index(min(load))
            minibatches[part].append(group)
            informative[part] += count
            sizes[part] += len(group.episodes)
        if min(informative) >= least:
            break
    return minibatches
