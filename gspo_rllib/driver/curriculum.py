"""When the next stage of a curriculum begins; what a stage is, says ``env_runners/curriculum.py``."""

from __future__ import annotations

from collections.abc import Iterable

from gspo_rllib.env_runners.group_names import stage_of, training_group
from gspo_rllib.errors import SettingError
from gspo_rllib.types import TrajectoryGroup, succeeded


class Curriculum:
    """Goes from stage to stage, and at last to the environment itself, as trajectories succeed.

    Args:
        num_stages: How many stages come before the environment itself.
        threshold: Share of successful trajectories, 0 … 1, at which a stage is left.
        least_groups: Groups of the present stage that are needed to tell.

    Attributes:
        stage: Position of the present stage; ``num_stages`` when the environment itself is played.
    """

    def __init__(self, num_stages: int, *, threshold: float, least_groups: int) -> None:
        self.stage = 0
        self._num_stages = num_stages
        self._threshold = threshold
        self._least_groups = least_groups
        self._shares: list[float] = []

    def restore(self, stage: int) -> None:
        """Goes on at the stage of a checkpoint, or at the last there is."""
        self.stage = min(stage, self._num_stages)
        self._shares.clear()

    def group(self, number: int) -> str:
        """The name of the next group.

        Args:
            number: How many groups were drawn before it.
        """
        return training_group(number, self.stage if self.stage < self._num_stages else None)

    def watch(self, groups: Iterable[TrajectoryGroup]) -> None:
        """Notes how groups did; those of an earlier stage do not count.

        Raises:
            SettingError: The environment does not say whether a trajectory succeeded.
        """
        if self.stage == self._num_stages:
            return
        for group in groups:
            if stage_of(group.group_id) != self.stage:
                continue
            said = [success for success in map(succeeded, group.episodes) if success is not None]
            if not said:
                raise SettingError(
                    "training.curriculum goes by success, but the environment does not report any: have its last "
                    "step's info hold a bool under 'success', or leave the curriculum out."
                )
            self._shares.append(sum(said) / len(said))

    def advance(self) -> str | None:
        """Begins the next stage if the present one is mastered; returns a line about it, if so."""
        if len(self._shares) < self._least_groups:
            return None
        success = sum(self._shares) / len(self._shares)
        self._shares.clear()
        if success < self._threshold:
            return None
        self.stage += 1
        name = f"stage {self.stage} of" if self.stage < self._num_stages else "the environment itself after"
        return f"Curriculum: success {success:.0%}; on to {name} {self._num_stages} stages."
