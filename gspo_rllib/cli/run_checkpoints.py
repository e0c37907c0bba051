"""The checkpoints of one run: written as it goes, tried again where the disk failed, and those that may go deleted."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gspo_rllib import remote_checkpoints
from gspo_rllib.checkpoints.places import delete_checkpoint, remove_leftovers
from gspo_rllib.cli.best import Score
from gspo_rllib.errors import CheckpointError

if TYPE_CHECKING:
    from gspo_rllib.algorithms import PolicyGradient
    from gspo_rllib.configs import RunSettings

PERIODIC = "iteration_"
"""Leading part of the name of a checkpoint that is written as often as ``run.checkpoint_every`` says."""


class RunCheckpoints:
    """Writes and deletes a run's checkpoints.

    Args:
        folder: Holds them; made if missing. What a save that was killed left there is removed.
        limits: The ``run:`` section.

    Attributes:
        latest: The newest checkpoint that was written here; None before the first.
    """

    def __init__(self, folder: Path, limits: RunSettings) -> None:
        self.folder = folder
        self.latest: Path | None = None
        self._limits = limits
        self._num_failed = 0
        remove_leftovers(folder)

    def save(self, algorithm: PolicyGradient, name: str, *, must: bool = False) -> Path | None:
        """Writes a checkpoint, which appears under its name when it is whole; one of that name is replaced then.

        It is copied to ``run.checkpoint_storage``, if there is one; a copy that fails is said and ends nothing.

        Args:
            algorithm: What to save.
            name: Name of the checkpoint's folder.
            must: Whether this is the last chance.

        Returns:
            The checkpoint; None where it could not be written, which was said.

        Raises:
            CheckpointError: It could not be written, and neither could ``run.max_failed_saves - 1`` before it, or this
                was the last chance.
        """
        try:
            self.latest = Path(algorithm.save_to_path(self.folder / name))
        except CheckpointError as error:
            self._num_failed += 1
            if must or self._num_failed >= self._limits.max_failed_saves:
                raise CheckpointError(f"{error} {self._last_words()}") from error
            print(
                f"not saved, failure {self._num_failed} of {self._limits.max_failed_saves} (run.max_failed_saves): "
                f"{error} Training goes on; the next save tries again.",
                file=sys.stderr,
                flush=True,
            )
            return None
        self._num_failed = 0
        self._copy(self.latest)
        return self.latest

    def save_iteration(self, algorithm: PolicyGradient, scores: Sequence[Score], *, must: bool = False) -> Path | None:
        """``save`` under the name of the iteration; then deletes what ``run.keep_checkpoints`` does not keep.

        Args:
            algorithm: What to save.
            scores: What the run's iterations were worth so far, the latest last.
            must: Whether this is the last chance.
        """
        saved = self.save(algorithm, f"{PERIODIC}{algorithm.iteration:06d}", must=must)
        if saved is not None and self._limits.keep_checkpoints is not None:
            for path in self._dispensable(scores):
                try:
                    delete_checkpoint(path)
                except OSError as error:
                    print(f"{path} could not be deleted: {error}", file=sys.stderr)
        return saved

    def _copy(self, checkpoint: Path) -> None:
        if self._limits.checkpoint_storage is not None:
            try:
                place = remote_checkpoints.joined(self._limits.checkpoint_storage, self.folder.parent.name)
                remote_checkpoints.upload(checkpoint, place)
            except CheckpointError as error:  # the one of this machine is whole, and the next may go through
                print(f"not copied: {error}", file=sys.stderr, flush=True)

    def _dispensable(self, scores: Sequence[Score]) -> list[Path]:
        """Those that may go; never the newest, which a run is continued from."""
        found = {int(path.name.removeprefix(PERIODIC)): path for path in self.folder.glob(f"{PERIODIC}[0-9]*")}
        newest = max(found, default=0)
        worth = {iteration: float(iteration) for iteration in found}
        if self._limits.keep_by == "score":
            # By the evaluation of its weights; of an iteration that was not evaluated, by the last one before it.
            for iteration in found:
                worth[iteration] = next((s.value for s in reversed(scores) if s.iteration <= iteration), -math.inf)
        keep = self._limits.keep_checkpoints or 1
        ranked = sorted(found, key=lambda iteration: (iteration == newest, worth[iteration], iteration), reverse=True)
        return [found[iteration] for iteration in ranked[keep:]]

    def _last_words(self) -> str:
        latest = self.latest or max(self.folder.glob(f"{PERIODIC}[0-9]*"), default=None)
        return f"The newest checkpoint is {latest}." if latest is not None else "The run has no checkpoint."
