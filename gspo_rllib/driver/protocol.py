"""The interface between an algorithm and what samples its groups: in lock-step with learning, or while it goes on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from gspo_rllib.types import TrajectoryGroup
from gspo_rllib.weight_sync import Weights


class GroupSource(Protocol):
    """Samples groups with the training env runners, each with weights of a known version.

    ``start`` comes first, and again after ``stop``; then ``take`` and ``advance`` alternate, with any number of
    ``overtake`` between them.
    """

    @property
    def unfinished(self) -> list[str]:
        """Names of the groups that were drawn and not yet taken, in that order."""

    def start(self, weights: Weights) -> None:
        """Begins at some version: every healthy runner has acknowledged it on return.

        Raises:
            WeightSyncError: A runner acknowledged another version.
        """

    def take(self, count: int) -> tuple[list[TrajectoryGroup], list[Any]]:
        """Waits for groups to train on.

        Args:
            count: Number of groups.

        Returns:
            ``count`` groups less those that were given up, in the order they were drawn; and the runners' metrics.

        Raises:
            NoProgressError: Not a single group could be completed.
        """

    def advance(self, weights: Weights) -> None:
        """From now on samples with the weights of the latest update."""

    def overtake(self, weights: Weights) -> None:
        """Like ``advance``, after an update on groups from elsewhere; those made too old by it are sampled again."""

    def readmit(self) -> None:
        """Takes notice that training runners were restarted and hold no weights yet."""

    def paused(self) -> AbstractContextManager[None]:
        """Keeps every engine idle inside the ``with`` block, so that it can be used for something else."""

    def stop(self) -> list[str]:
        """Abandons everything that is in flight.

        Returns:
            Names of the groups that were drawn and not taken.
        """

    def measure(self) -> dict[str, float]:
        """Metrics since the last call, by their names in ``gspo_rllib.metrics``."""
