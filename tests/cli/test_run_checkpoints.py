"""The checkpoints of a run: a disk that fails costs a save, and those that may go are deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gspo_rllib.cli.best import Score
from gspo_rllib.cli.run_checkpoints import RunCheckpoints
from gspo_rllib.configs import RunSettings
from gspo_rllib.errors import CheckpointError, SettingError


class Saver:
    """An algorithm as far as a save is concerned."""

    def __init__(self) -> None:
        self.iteration = 0
        self.works = True

    def save_to_path(self, path: Path) -> str:
        if not self.works:
            raise CheckpointError("the disk is full.")
        path.mkdir(parents=True)
        return str(path)


def _run(folder: Path, worth: list[float | None], **limits: Any) -> list[int]:
    """The iterations whose checkpoints are there after a run with these scores; None where one was not judged."""
    saver: Any = Saver()
    checkpoints, scores = RunCheckpoints(folder, RunSettings(**limits)), []
    (folder / "best").mkdir(parents=True)
    for iteration, value in enumerate(worth, 1):
        saver.iteration = iteration
        if value is not None:
            scores.append(Score(iteration, value, 0.0, True))
        checkpoints.save_iteration(saver, scores)
    assert (folder / "best").is_dir()
    return sorted(int(path.name[-6:]) for path in folder.glob("iteration_*"))


def test_those_that_are_kept_are_the_newest_or_the_best(tmp_path: Path) -> None:
    scores: list[float | None] = [0.1, 0.9, 0.3, 0.9, 0.2]
    assert _run(tmp_path / "a", scores) == [1, 2, 3, 4, 5]
    assert _run(tmp_path / "b", scores, keep_checkpoints=2) == [4, 5]
    # The newest is what the run is continued from; of equals the newer is kept.
    assert _run(tmp_path / "c", scores, keep_checkpoints=2, keep_by="score") == [4, 5]
    assert _run(tmp_path / "d", [0.1, 0.9, 0.3, 0.2], keep_checkpoints=3, keep_by="score") == [2, 3, 4]
    assert _run(tmp_path / "e", scores, keep_checkpoints=1, keep_by="score") == [5]
    # Evaluated at every other iteration: a checkpoint has the score of the last evaluation before it.
    limits = {"keep_checkpoints": 2, "keep_by": "score"}
    assert _run(tmp_path / "f", [None, 0.9, None, 0.1, None], **limits) == [3, 5]
    assert Score.of({"training_iteration": 1}, "env_runners/") is None


def test_a_save_that_fails_is_tried_again_and_ends_the_run_when_it_fails_too_often(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver: Any = Saver()
    checkpoints = RunCheckpoints(tmp_path, RunSettings(max_failed_saves=3))
    saver.iteration = 1
    assert checkpoints.save_iteration(saver, []) == tmp_path / "iteration_000001"
    for works in (False, False, True, False, False):
        saver.iteration, saver.works = saver.iteration + 1, works
        assert (checkpoints.save_iteration(saver, []) is not None) == works
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert said[1] == (
        "not saved, failure 2 of 3 (run.max_failed_saves): the disk is full. Training goes on; the next save tries "
        "again."
    )
    saver.iteration = 7
    with pytest.raises(CheckpointError, match=r"the disk is full. The newest checkpoint is .*/iteration_000004\.$"):
        checkpoints.save_iteration(saver, [])


def test_the_last_save_of_a_run_may_not_fail(tmp_path: Path) -> None:
    saver: Any = Saver()
    saver.works = False
    with pytest.raises(CheckpointError, match=r"the disk is full. The run has no checkpoint."):
        RunCheckpoints(tmp_path, RunSettings()).save_iteration(saver, [], must=True)


def test_a_new_start_removes_what_a_killed_save_left_and_only_that(tmp_path: Path) -> None:
    for name in (".writing_iteration_000002", ".deleting_iteration_000001", "iteration_000001", ".mine", "mine"):
        (tmp_path / name).mkdir()
    RunCheckpoints(tmp_path, RunSettings())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "iteration_000001", "mine"]


@pytest.mark.parametrize("setting", [{"keep_by": "age"}, {"keep_checkpoints": 0}, {"max_failed_saves": 0}])
def test_settings_that_mean_nothing_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"run.{next(iter(setting))}"):
        RunSettings(**setting)
