"""Weights & Biases and MLflow for ``gspo-rllib train`` and ``sweep``, through Ray Tune's own callbacks.

A tracker follows a run, and never ends one: what it cannot take is said once, and the run goes on. Names are those of
``result.json``, nested keys joined by ``/``.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem
from ray.tune.logger import LoggerCallback

from gspo_rllib.errors import SettingError, did_you_mean

CALLBACKS = {
    "wandb": ("gspo_rllib.cli.wandb_runs", "WandbRuns"),
    "mlflow": ("ray.air.integrations.mlflow", "MLflowLoggerCallback"),
}
"""Name in ``run.trackers`` to the module and class of Tune's callback."""


def trackers(wanted: Mapping[str, Mapping[str, Any] | None], *, name: str) -> list[Tracker]:
    """Tune callbacks for what ``run.trackers`` names; each has looked whether it can begin.

    Args:
        wanted: Name of a tracker to what its callback is given.
        name: The run's name: the project, or experiment, of a tracker that is given none.

    Raises:
        SettingError: A tracker is not installed, takes no such argument, or cannot begin.
    """
    made = [Tracker(kind, _made(kind, dict(given or {}), name)) for kind, given in wanted.items()]
    for tracker in made:
        tracker.setup()
    return made


def _made(kind: str, given: dict[str, Any], name: str) -> LoggerCallback:
    module, class_name = CALLBACKS[kind]
    try:
        importlib.import_module(kind)
        callback = getattr(importlib.import_module(module), class_name)
    except ImportError as error:
        remedy = "pip install 'gspo-rllib[trackers]'"
        raise SettingError(f"run.trackers: {kind} cannot be imported ({error}); {remedy}.") from error
    takes = inspect.signature(callback.__init__).parameters
    # What Tune's callback does not take itself goes to wandb.init.
    takes_more = inspect.signature(importlib.import_module(kind).init).parameters if kind == "wandb" else {}
    known = {key for key in {*takes, *takes_more} if key not in ("self", "args", "kwargs")}
    for key in given:
        if key not in known:
            raise SettingError(f"run.trackers: {kind} takes no {key!r}. {did_you_mean(key, sorted(known))}".rstrip())
    given.setdefault("project" if kind == "wandb" else "experiment_name", name)
    made: LoggerCallback = callback(**given)
    return made


class Tracker(LoggerCallback):
    """One of Tune's callbacks for a tracker, which may fail without ending what it follows.

    Args:
        kind: The name in ``run.trackers``.
        inner: Tune's callback.
    """

    def __init__(self, kind: str, inner: LoggerCallback) -> None:
        self._kind = kind
        self._inner = inner
        self._failing = False
        self._followed: dict[Any, _Followed] = {}

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Here a tracker says that nobody is logged in, or that there is no such place. Tune calls it again.

        Raises:
            SettingError: It cannot begin.
        """
        try:
            self._inner.setup(*arguments, **info)
        except Exception as error:
            raise SettingError(f"run.trackers: {self._kind} cannot begin: {error}") from error

    def log_trial_start(self, trial: Any) -> None:
        """Called with a trial that starts, or starts again."""
        if trial not in self._followed:
            self._begin(trial, 1)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Called with a trial's result.

        A trial that goes back, to its best checkpoint or by PBT, is another run to a tracker from there on: W&B takes
        no step below one that it has.
        """
        self.log_trial_start(trial)
        followed, at = self._followed[trial], int(result["training_iteration"])
        if at <= followed.latest:
            self._ask("log_trial_end", followed, False)
            followed = self._begin(trial, followed.part + 1)
        followed.latest = at
        # MLflow's callback would count steps in sampled turns, the others and every file count in iterations.
        counted = {key: value for key, value in result.items() if key != "timesteps_total"}
        self._ask("log_trial_result", iteration, followed, counted)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Called with a trial that has ended."""
        if (followed := self._followed.pop(trial, None)) is not None:
            self._ask("log_trial_end", followed, failed)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Called at the end of all trials: waits for what is on its way."""
        # Tune says nothing of the end of those that it interrupts, and the wait below would be for ever.
        for trial in list(self._followed):
            self.log_trial_end(trial)
        self._ask("on_experiment_end", trials, **info)

    def _begin(self, trial: Any, part: int) -> _Followed:
        followed = self._followed[trial] = _Followed(trial, part)
        self._ask("log_trial_start", followed)
        return followed

    def _ask(self, method: str, *arguments: Any, **info: Any) -> None:
        try:
            getattr(self._inner, method)(*arguments, **info)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the run is worth more
            if not self._failing:
                print(f"{self._kind} cannot follow the run: {error!r}; training goes on", file=sys.stderr, flush=True)
            self._failing = True
        else:
            self._failing = False


class _Followed:
    """A trial as a tracker knows it, from one of its returns to the next.

    Args:
        trial: The trial, or what stands for one.
        part: How often it has gone back, and one.

    Attributes:
        latest: The latest iteration, 0 before the first.
    """

    def __init__(self, trial: Any, part: int) -> None:
        self._trial = trial
        self._suffix = f"-back-{part - 1}" if part > 1 else ""
        self.part = part
        self.latest = 0
        self.trial_id = f"{trial.trial_id}{self._suffix}"

    @property
    def local_path(self) -> str:
        """Where a tracker may write on this machine: the trial's folder of results, where that is a local one.

        Tune has a folder of its own for that, below Ray's, and copies it when it likes: what W&B writes at its end, up
        to 32 KiB and in short runs all, would stay behind.
        """
        storage = getattr(self._trial, "storage", None)
        if storage is None or not isinstance(storage.storage_filesystem, LocalFileSystem):
            return str(self._trial.local_path)
        Path(storage.trial_fs_path).mkdir(parents=True, exist_ok=True)
        return str(storage.trial_fs_path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def __str__(self) -> str:
        return f"{self._trial}{self._suffix}"


class _OneRun:
    """What Tune's callbacks ask of a trial, for a run that is none."""

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int) -> None:
        self.trial_id = folder.name + (f"-{start}" if start > 1 else "")
        self.config = dict(config)
        self.local_path = str(folder.absolute())
        self.experiment_dir_name = folder.name

    def __str__(self) -> str:
        return self.trial_id


class Followers:
    """The trackers of one run, which is no trial of Tune's.

    Args:
        callbacks: From ``trackers``.
        folder: The run's folder.
        config: Settings that the trackers show, without secrets.
        start: Which start of the run this is, from 1; each is a run of its own to a tracker.
    """

    def __init__(self, callbacks: Sequence[Tracker], folder: Path, config: Mapping[str, Any], *, start: int) -> None:
        self._callbacks = callbacks
        self._run = _OneRun(folder, config, start)
        for callback in callbacks:
            callback.log_trial_start(self._run)

    def __call__(self, result: Mapping[str, Any]) -> None:
        """Hands a result on."""
        for callback in self._callbacks:
            callback.log_trial_result(int(result["training_iteration"]), self._run, dict(result))

    def close(self, *, failed: bool) -> None:
        """Says how the run ended, and waits for what is on its way."""
        for callback in self._callbacks:
            callback.log_trial_end(self._run, failed)
            callback.on_experiment_end([self._run])
