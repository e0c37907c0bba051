"""What ``--resume`` continues: a run in its own folder, or a checkpoint in a new one."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib import checkpoints
from gspo_rllib.cli.best import EVALUATED, Score
from gspo_rllib.cli.recorder import flatten, read_results
from gspo_rllib.errors import CheckpointError, SettingError
from gspo_rllib.places import named_path

if TYPE_CHECKING:
    from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
    from gspo_rllib.configs import RunSettings

BEST = "best"
"""Name of the checkpoint of the best evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Where a run continues from.

    Attributes:
        checkpoint: The checkpoint, whole.
        folder: The run that goes on in its own folder; None where a new one is made.
        iteration: The iteration of the checkpoint; None where only the checkpoint itself knows it.
        minutes: Wall time the run had taken by then.
        best: The best evaluation of the run, if its checkpoint is there.
        num_lost: Iterations after the checkpoint, which are trained again.
    """

    checkpoint: Path
    folder: Path | None = None
    iteration: int | None = None
    minutes: float = 0.0
    best: Score | None = None
    num_lost: int = 0

    def check_limits(self, limits: RunSettings) -> None:
        """Refuses to continue a run that has reached its limits already.

        Raises:
            SettingError: One is reached.
        """
        if self.iteration is not None and limits.iterations is not None and self.iteration >= limits.iterations:
            raise SettingError(
                f"run.iterations is {limits.iterations}, and {self.folder} has trained {self.iteration}: give a higher "
                f"one to continue, e.g. --iterations {self.iteration + limits.iterations}."
            )
        if limits.minutes is not None and self.minutes >= limits.minutes:
            raise SettingError(
                f"run.minutes is {limits.minutes:g}, and {self.folder} has taken {self.minutes:.1f}, all its starts "
                f"together: give more to continue, e.g. --minutes {self.minutes + limits.minutes:.0f}."
            )

    def check_tasks(self, config: PolicyGradientConfig) -> None:
        """Refuses to continue a run in its folder with other tasks: its epochs and scores would be of neither.

        Raises:
            SettingError: A file of tasks was changed, or the config names other ones.
        """
        from gspo_rllib.algorithms.policy_gradient.task_record import changed_tasks, task_sets

        if self.folder is None:
            return
        if news := changed_tasks(self.checkpoint, task_sets(config)):
            raise SettingError(
                f"{self.folder} has other tasks now than it was trained on ({news}), and one run has one set of tasks. "
                "Put the file back as it was, or go on with the new ones as a run of its own: gspo-rllib train "
                f"{shlex.quote(os.path.relpath(self.folder / 'config.yaml'))} --resume "
                f"{shlex.quote(os.path.relpath(self.checkpoint))}"
            )

    def check_policy(self, config: PolicyGradientConfig) -> None:
        """Refuses to continue with another adapter than was saved, before learners are built that find out.

        Raises:
            ModelError: The config's is another one.
        """
        from gspo_rllib.modules.lora_settings import check_saved_policy

        if not checkpoints.is_pickled(self.checkpoint):
            folder = self.checkpoint / checkpoints.POLICY
            check_saved_policy(folder, config.model_config.get("lora"), source=f"checkpoint {self.checkpoint}")

    def record(self) -> dict[str, Any]:
        """What ``run.json`` says of it."""
        return {"checkpoint": str(self.checkpoint), "iteration": self.iteration}


def is_run(path: str | Path) -> bool:
    """Whether a folder is what ``gspo-rllib train`` writes results into."""
    return os.path.isfile(named_path(path) / "config.yaml")


def name_of(folder: Path) -> str:
    """The name a run was given when it was started first."""
    file = folder / "run.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("name") if file.is_file() else None
    return str(named or folder.name)


def find_resume(path: str | Path) -> Resume:
    """Reads what there is to continue.

    Args:
        path: The folder of a run, of which the newest whole checkpoint is taken, or of a checkpoint.

    Raises:
        CheckpointError: There is no checkpoint that is whole.
    """
    if not is_run(path):
        return Resume(checkpoint=checkpoints.verify(path))
    folder = named_path(path).resolve()
    results = [flatten(result) for result in read_results(folder)]
    best = _best(results) if (folder / "checkpoints" / BEST).is_dir() else None
    iteration, checkpoint = _newest(folder, best)
    trained: Mapping[str, Any] = next((row for row in reversed(results) if row["training_iteration"] == iteration), {})
    return Resume(
        checkpoint=checkpoint,
        folder=folder,
        iteration=iteration,
        minutes=trained.get("time_total_s", 0.0) / 60,
        best=best,
        num_lost=max(0, results[-1]["training_iteration"] - iteration) if results else 0,
    )


def _best(results: list[dict[str, Any]]) -> Score | None:
    best: Score | None = None
    for score in [score for row in results if (score := Score.of(row, EVALUATED)) is not None]:
        # As in the run: the first of equals is kept.
        best = score if best is None or score.value > best.value else best
    return best


def _newest(folder: Path, best: Score | None) -> tuple[int, Path]:
    found: Mapping[int, Path] = {
        int(path.name.removeprefix("iteration_")): path for path in (folder / "checkpoints").glob("iteration_*")
    }
    if best is not None:
        found = {best.iteration: folder / "checkpoints" / BEST, **found}
    for iteration in sorted(found, reverse=True):
        try:
            return iteration, checkpoints.verify(found[iteration])
        except CheckpointError as error:
            print(f"passed over: {error}", file=sys.stderr)
    raise CheckpointError(
        f"run {folder}: it has no whole checkpoint, so there is nothing to continue. Train it anew: "
        f"gspo-rllib train {folder / 'config.yaml'}"
    )
