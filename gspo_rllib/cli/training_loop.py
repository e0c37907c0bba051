"""The iterations of one run: shown, recorded, evaluated and saved, until a limit, a signal or a collapse ends them."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli import progress
from gspo_rllib.cli.best import EVALUATED, SAMPLED, Score, has_collapsed
from gspo_rllib.cli.recorder import Result, RunRecorder, flatten
from gspo_rllib.cli.resume import BEST
from gspo_rllib.cli.run_checkpoints import RunCheckpoints
from gspo_rllib.cli.terminal import tell
from gspo_rllib.errors import (
    CheckpointError,
    EngineError,
    EnvError,
    GSPOError,
    LearnersLostError,
    ModelError,
    NoProgressError,
    WeightSyncError,
)
from gspo_rllib.trajectory_table import FOLDER

if TYPE_CHECKING:
    from gspo_rllib.algorithms import PolicyGradient
    from gspo_rllib.configs import Run, RunSettings

HEADER_EVERY = 25

ENDING = (NoProgressError, EngineError, ModelError, EnvError, LearnersLostError, WeightSyncError)
"""What ends a run while it samples, or before an update was made: what was trained so far is saved first."""

MAX_RESTORES = 4
"""Times a run goes back to its best checkpoint, each time with half the step, before it ends."""


class TrainingLoop:
    """Trains one run.

    Args:
        run: The config and the limits.
        algorithm: Built from that config; the loop stops it.
        recorder: Takes every result; checkpoints are written below its folder.
        interrupted: Whether the run was asked to end after the iteration at hand.
        best: The best evaluation of a run that is continued, whose checkpoint is there.
        shows: Whether a line is printed per iteration.

    Attributes:
        algorithm: What is being trained; another object after a return to the best checkpoint. ``close`` stops it.
        best: The best evaluation so far; None before the first.
    """

    def __init__(
        self,
        run: Run,
        algorithm: PolicyGradient,
        recorder: RunRecorder,
        *,
        interrupted: Callable[[], bool],
        best: Score | None = None,
        shows: bool = True,
    ) -> None:
        self.algorithm = algorithm
        self._limits = run.settings
        self._config = run.config
        self._recorder = recorder
        self._checkpoints = RunCheckpoints(recorder.folder / "checkpoints", run.settings)
        self._interrupted = interrupted
        self._columns = progress.columns(evaluates=bool(run.config.evaluation_interval))
        # One clock for a run, however often it is started or goes back to its best checkpoint.
        self._seconds_before = 0.0
        self._scores: list[Score] = []
        for row in recorder.rows():
            self._seconds_before = float(row["time_total_s"])
            self._note_score(row)
        self._seconds_here = 0.0
        self._num_here = 0
        self._num_restores = 0
        self._shows = shows
        self.best = best
        self._record_groups()

    @property
    def best_checkpoint(self) -> Path:
        """Where the checkpoint of the best evaluation is, once there was one."""
        return self._checkpoints.folder / BEST

    @property
    def _seconds(self) -> float:
        return self._seconds_before + self._seconds_here

    def close(self) -> None:
        """Stops the algorithm, its actors and engines."""
        self.algorithm.stop()
        # RLlib makes a folder of its own for results, which the recorder writes elsewhere.
        with contextlib.suppress(OSError):
            os.rmdir(self.algorithm.logdir)

    def run(self) -> tuple[Path, str]:
        """Trains to the end; returns the last checkpoint, and why it ended."""
        while True:
            try:
                result = self._train()
            except ENDING as error:
                self._save_at_the_end(error)
                raise
            self._record(result)
            flat = flatten(result)
            self._note_score(flat)
            reason = stop_reason(result, self._limits, minutes=self._seconds / 60)
            if self._interrupted():
                reason = "interrupted"
            iteration = result["training_iteration"]
            evaluated = Score.of(flat, EVALUATED)
            if evaluated is not None:
                reason = self._judge(evaluated, ends=reason)
            if reason or (self._limits.checkpoint_every and iteration % self._limits.checkpoint_every == 0):
                saved = self._checkpoints.save_iteration(self.algorithm, self._scores, must=bool(reason))
            if reason:
                assert saved is not None, "the last save raises where it fails"
                return saved, reason

    def _save_at_the_end(self, error: GSPOError) -> None:
        """Saves what was trained so far, before an error ends the run.

        Args:
            error: What ends the run; raised in place of a save's own error.
        """
        if not self.algorithm.iteration:
            return
        try:
            saved = self._checkpoints.save_iteration(self.algorithm, self._scores, must=True)
        except LearnersLostError:
            raise error from None  # which says the same, and more
        except CheckpointError as failed:
            print(f"not saved before the run ends: {failed}", file=sys.stderr)
            raise error from None
        print(f"saved {saved} before the run ends", file=sys.stderr)

    def _record_groups(self) -> None:
        """Has the algorithm write what it samples; groups after a return have their names anew, and their own file."""
        self.algorithm.failed_updates = self._recorder.folder
        self.algorithm.trajectory_folder = self._recorder.folder / FOLDER
        if self._limits.record_groups:
            part = f"_{self._num_restores}" if self._num_restores else ""
            self.algorithm.record_groups(self._recorder.folder / f"groups{part}.jsonl", goes_on=not part)

    def _train(self) -> Result:
        begun = time.monotonic()
        result: dict[str, Any] = self.algorithm.train()
        # Tune's own measure is of the machine's date, which may be set back.
        result["time_this_iter_s"] = time.monotonic() - begun
        interval = self._config.evaluation_interval
        if not interval or result["training_iteration"] % interval:
            # RLlib reports an evaluation a second time, with the iteration after it.
            result.pop("evaluation", None)
        self._seconds_here += result["time_this_iter_s"]
        result["time_total_s"] = self._seconds
        return result

    def _record(self, result: Result) -> None:
        self._recorder.record(result)
        if self._shows and self._num_here % HEADER_EVERY == 0:
            print(progress.header(self._columns))
        self._num_here += 1
        known = {progress.LAST_ITERATION: self._limits.iterations, progress.SECONDS_LEFT: self._seconds_left(result)}
        if self._shows:
            print(progress.line(flatten(result) | known, self._columns), flush=True)

    def _note_score(self, flat: Result) -> None:
        """Keeps what an iteration was worth: of its result the one thing that is asked for later."""
        if (score := _score_of(flat, self._limits)) is not None:
            self._scores.append(score)

    def _seconds_left(self, result: Result) -> float | None:
        """Until the first limit but success, if iterations take as long as they took so far; None without such one."""
        limits, left = self._limits, []
        if limits.iterations is not None:
            left.append((limits.iterations - result["training_iteration"]) * self._seconds_here / self._num_here)
        if limits.minutes is not None:
            left.append(limits.minutes * 60 - self._seconds)
        return max(0.0, min(left)) if left else None

    def _judge(self, evaluated: Score, *, ends: str | None) -> str | None:
        """Keeps the best policy, and looks whether it was lost.

        Args:
            evaluated: The latest evaluation.
            ends: Why the run is to end anyway, if it is.

        Returns:
            Why the run is to end, if it is.
        """
        if self.best is None or evaluated.value > self.best.value:
            if self._checkpoints.save(self.algorithm, BEST) is not None:
                self.best = evaluated
            return ends
        if not has_collapsed(evaluated, self.best):
            return ends
        fallen = (
            f"evaluated {evaluated} at iteration {evaluated.iteration}, far below {self.best} at iteration "
            f"{self.best.iteration}"
        )
        if ends or self._limits.on_collapse is None:
            tell(f"{fallen}: the policy may be lost. run.on_collapse=restore would go back, with half the step.")
            return ends
        if self._limits.on_collapse == "stop":
            return f"{fallen} (run.on_collapse=stop); the best checkpoint is {self.best_checkpoint}"
        if self._num_restores == MAX_RESTORES:
            return f"{fallen}, after {MAX_RESTORES} returns to the best checkpoint"
        self._restore_best(fallen)
        return None

    def _restore_best(self, fallen: str) -> None:
        assert self.best is not None, "a fall is from somewhere"
        self._num_restores += 1
        self._config = self._config.copy(copy_frozen=False)
        self._config.training(lr=halved(self._config.lr))
        if schedule := self._config.lr_schedule:
            self._config.training(lr_schedule={**schedule, **{k: v / 2 for k, v in schedule.items() if k == "min"}})
        tell(f"{fallen}: back to iteration {self.best.iteration}, with lr={self._config.lr}")
        self.close()
        self.algorithm = self._config.build_algo()
        self.algorithm.restore_from_path(str(self.best_checkpoint))
        self._record_groups()


def halved(lr: float | list[list[float]]) -> float | list[list[float]]:
    """Half of a learning rate, or of every rate of a schedule.

    Example:
        >>> halved(1e-4), halved([[0, 1e-4], [1000, 1e-5]])
        (5e-05, [[0, 5e-05], [1000, 5e-06]])
    """
    if isinstance(lr, (list, tuple)):
        return [[when, rate / 2] for when, rate in lr]
    return lr / 2


def stop_reason(result: Result, limits: RunSettings, *, minutes: float) -> str | None:
    """Which limit a result has reached, in words; None to go on.

    Args:
        result: What ``Algorithm.train`` returned.
        limits: The ``run:`` section.
        minutes: Wall time spent training, all starts of the run together.
    """
    flat = flatten(result)
    score = _score_of(flat, limits)
    if limits.success is not None and score is not None and score.is_success and score.value >= limits.success:
        where = "evaluated success" if limits.evaluate_every else "success"
        return f"{where} {score.value:.1%} reached {limits.success:.1%}"
    idle = flat.get("group_selection/num_iterations_idle", 0)
    if limits.give_up_after is not None and idle >= limits.give_up_after:
        return f"{idle:.0f} iterations had nothing to learn from (run.give_up_after)"
    if limits.iterations is not None and flat["training_iteration"] >= limits.iterations:
        return f"{limits.iterations} iterations done"
    if limits.minutes is not None and minutes >= limits.minutes:
        return f"{limits.minutes:g} minutes are over"
    return None


def _score_of(flat: Result, limits: RunSettings) -> Score | None:
    # Where a run evaluates, success on an iteration's own tasks says little: the next one's may be harder.
    return Score.of(flat, EVALUATED if limits.evaluate_every else SAMPLED)
