"""What Ray Tune is given for a sweep: the trials, what they are judged by, and how they are reported."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, SearchAlgorithm, Searcher, SearchGenerator

from gspo_rllib.cli.best import EVALUATED, SAMPLED, Score
from gspo_rllib.cli.progress import clock
from gspo_rllib.cli.recorder import flatten, read_results
from gspo_rllib.cli.sweep_points import Point
from gspo_rllib.cli.terminal import tell
from gspo_rllib.cli.training_loop import stop_reason
from gspo_rllib.errors import SettingError, own_error
from gspo_rllib.trajectory_table import FOLDER

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from gspo_rllib.configs import Run, RunSettings

SCORE = "sweep/score"
"""Where a trial's result has what it is judged by, as Tune's keys are written."""

TIME = "training_iteration"
"""What schedulers count in."""

SHOW_EVERY_S = 60.0
"""Seconds between two lines about a trial that is running."""

HEADER = f"{'iter':>9} {'success':>7} {'return':>7} {'time':>7}  {'state':<7}  trial"


class _HandOut(Searcher):
    """Suggests the trials, in their order; nothing is learnt from any."""

    def __init__(self, points: Sequence[Point]) -> None:
        super().__init__()
        self._points = list(points)
        self._num_made = 0

    def suggest(self, trial_id: str) -> Any:
        if self._num_made == len(self._points):
            return Searcher.FINISHED
        self._num_made += 1
        return dict(self._points[self._num_made - 1].values)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(str(self._num_made), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        self._num_made = int(Path(checkpoint_path).read_text(encoding="utf-8"))


class Points(SearchAlgorithm):
    """Makes the trials, in their order: whole combinations, where Tune's own grid knows single attributes only.

    Around Tune's generator for searchers, because PBT refuses those by their class: it moves trials by itself, and a
    searcher that learns from them would be misled. This one does not.

    Args:
        points: The trials, or a searcher that chooses them.
        at_once: Most trials that run at a time; None for as many as fit.

    Attributes:
        goes_on: Whether a sweep goes on: Tune would begin anew where it cannot read how far it was. Of the class, since
            Tune brings an object of its own back.
    """

    goes_on: ClassVar[bool] = False

    def __init__(self, points: Sequence[Point] | Searcher, at_once: int | None) -> None:
        searcher: Searcher = points if isinstance(points, Searcher) else _HandOut(points)
        self._inner = SearchGenerator(ConcurrencyLimiter(searcher, at_once) if at_once else searcher)

    @property
    def total_samples(self) -> int:
        """How many trials there will be."""
        return int(self._inner.total_samples)

    def add_configurations(self, experiments: Any) -> None:
        """Called by Tune with what all trials share, where it begins."""
        if self.goes_on:
            raise SettingError(
                "--resume: Ray Tune cannot read how far the sweep was; with --verbose it says why. Go on with each "
                "trial by itself: gspo-rllib train CONFIG --resume CHECKPOINT."
            )
        self._inner.add_configurations(experiments)

    def next_trial(self) -> Trial | None:
        """Called by Tune when there is room for a trial."""
        trial: Trial | None = self._inner.next_trial()
        return trial

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Called by Tune when a trial has ended, which makes room."""
        self._inner.on_trial_complete(trial_id, result, error)

    def is_finished(self) -> bool:
        """Whether every trial has been made."""
        return bool(super().is_finished() or self._inner.is_finished())

    def save_to_dir(self, dirpath: str, **kwargs: Any) -> None:
        """Called by Tune whenever it writes down how far the sweep is."""
        self._inner.save_to_dir(dirpath, **kwargs)

    def has_checkpoint(self, dirpath: str) -> bool:
        """Called by Tune where a sweep goes on."""
        return bool(self._inner.has_checkpoint(dirpath))

    def restore_from_dir(self, dirpath: str) -> None:
        """Called by Tune where a sweep goes on: only the trials that were never made are made."""
        self._inner.restore_from_dir(dirpath)


class KeepsInItsFolder:
    """Has a trial keep trajectories in its own folder, or all groups that it samples there; an RLlib callback.

    Args:
        folder: The sweep's, as an absolute path.
        groups: Whether all groups are written, to ``groups.jsonl``.
    """

    is_of_the_command = True

    def __init__(self, folder: Path, *, groups: bool) -> None:
        self._folder = folder
        self._groups = groups

    def __call__(self, *, algorithm: Any, **_: Any) -> None:
        """Called by RLlib with a new algorithm, in the trial's process."""
        # Tune tells a trial its name only later; the folder that it works in is called like the one of its results.
        trial = self._folder / Path(algorithm.logdir).name
        trial.mkdir(parents=True, exist_ok=True)  # on another machine, or before Tune has written there
        algorithm.trajectory_folder = trial / FOLDER
        if self._groups:
            algorithm.record_groups(trial / "groups.jsonl", goes_on=True)


class Judge:
    """Adds to every result of a trial what the trial is judged by: the latest value there is.

    An RLlib callback, so that schedulers find it in each result: an evaluation comes only so often.

    Args:
        metric: ``"success"`` (the return, where an environment reports none), ``"return"``, or a key of the results.
        evaluates: Whether runs evaluate, so that those are the success and return that count.
    """

    is_of_the_command = True

    def __init__(self, metric: str, *, evaluates: bool) -> None:
        self._metric = metric
        self._place = EVALUATED if evaluates else SAMPLED
        self._latest = math.nan

    def __call__(self, *, result: dict[str, Any], **_: Any) -> None:
        """Called by RLlib with a new result, which it changes."""
        value = self.of(flatten(result))
        self._latest = self._latest if value is None else value
        if not math.isnan(self._latest):
            result["sweep"] = {"score": self._latest}

    def of(self, flat: Mapping[str, Any]) -> float | None:
        """What a flat result says of it; None for nothing."""
        if self._metric == "success":
            score = Score.of(flat, self._place)
            return None if score is None else score.value
        value = flat.get(f"{self._place}episode_return_mean" if self._metric == "return" else self._metric)
        return float(value) if isinstance(value, (int, float)) and not math.isnan(value) else None


class Halving(ASHAScheduler):
    """Tune's, which forgets what trials had reached where a sweep goes on, and would compare others with nothing."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Called by Tune with every trial, those from before included."""
        super().on_trial_add(tune_controller, trial)
        for result in read_results(Path(trial.path)) if trial.has_reported_at_least_once else []:
            super().on_trial_result(tune_controller, trial, flatten(result))


class Population(PopulationBasedTraining):
    """Tune's, which forgets when trials were compared last where a sweep goes on, and would do it at once."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Called by Tune with every trial, those from before included."""
        super().on_trial_add(tune_controller, trial)
        if trial.has_reported_at_least_once:
            passed = int(trial.last_result[TIME] // self._perturbation_interval)
            self._trial_state[trial].last_perturbation_time = passed * self._perturbation_interval


def scheduler(name: str | None, limits: RunSettings, points: Sequence[Point]) -> TrialScheduler | None:
    """Tune's scheduler of a name.

    Args:
        name: ``"asha"`` stops the worse two thirds at a ninth and at a third of the iterations; ``"pbt"`` has the worst
            quarter go on from the best one's weights with neighbouring values, every ninth; None runs all to their end.
        limits: The ``run:`` section.
        points: The trials.
    """
    interval = max(limits.evaluate_every or 1, (limits.iterations or 90) // 9)
    if name == "asha":
        longest = max(limits.iterations or 10**6, interval)
        return Halving(TIME, metric=SCORE, mode="max", grace_period=interval, reduction_factor=3, max_t=longest)
    if name == "pbt":
        values: dict[str, list[Any]] = {}
        for attribute in [a for a in points[0].values if a != "seed"]:
            for point in points:
                if point.values[attribute] not in values.setdefault(attribute, []):
                    values[attribute].append(point.values[attribute])
        return Population(
            TIME,
            metric=SCORE,
            mode="max",
            perturbation_interval=interval,
            hyperparam_mutations=values,
            require_attrs=False,  # there is no score before the first evaluation
        )
    return None


class Report(tune.Callback):
    """Prints one line when a trial ends, and one a minute while it runs.

    Args:
        run: What all trials share.

    Attributes:
        shows: Whether anything is printed before the end. Of the class, since Tune brings an object of its own back
            where a sweep goes on.
    """

    shows: ClassVar[bool] = True

    def __init__(self, run: Run) -> None:
        self._limits = run.settings
        self._shown_at: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune."""
        self._shown_at.setdefault(trial.trial_id, time.monotonic())

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune."""
        now = time.monotonic()
        if self.shows and now - self._shown_at.get(trial.trial_id, now) >= SHOW_EVERY_S:
            self._shown_at[trial.trial_id] = now
            print(row(result, self._limits, "running", str(trial)), flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune."""
        if self.shows:
            print(row(trial.last_result, self._limits, state(trial.last_result, self._limits), str(trial)), flush=True)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune."""
        if self.shows:
            print(row(trial.last_result or {}, self._limits, "failed", str(trial)), flush=True)


def state(result: Mapping[str, Any], limits: RunSettings) -> str:
    """Whether a trial that ended reached a limit of its run, or was ended by the scheduler."""
    done = stop_reason(result, limits, minutes=result.get("time_total_s", 0.0) / 60) if result else None
    return "done" if done else "stopped"


def row(result: Mapping[str, Any], limits: RunSettings, how: str, label: str) -> str:
    """One trial as a line: the measures in columns, then its settings in full, which may be long.

    Example:
        >>> from gspo_rllib.configs import RunSettings
        >>> result = {"training_iteration": 8, "time_total_s": 75.0, "env_runners": {"success_mean": 0.5}}
        >>> print(HEADER, row(result, RunSettings(iterations=8), "done", "lr=1e-05"), sep="\\n")
             iter success  return    time  state    trial
              8/8     50%       -    1:15  done     lr=1e-05
    """
    flat = flatten(result)
    place = EVALUATED if limits.evaluate_every else SAMPLED
    score, mean = Score.of(flat, place) if flat else None, flat.get(f"{place}episode_return_mean")
    success = str(score) if score is not None and score.is_success else "-"
    iterations = f"{flat.get('training_iteration', 0)}" + (f"/{limits.iterations}" if limits.iterations else "")
    returned = "-" if mean is None or math.isnan(mean) else f"{mean:.3f}"
    seconds = clock(flat.get("time_total_s", 0.0))
    return f"{iterations:>9} {success:>7} {returned:>7} {seconds:>7}  {how:<7}  {label}"


def report(
    results: tune.ResultGrid, run: Run, points: Sequence[Point], metric: str, short: Callable[[Any], str]
) -> int:
    """Prints the trials, best first, and where the best one's checkpoint is.

    Args:
        results: What Tune returned.
        run: What all trials share.
        points: The trials.
        metric: What they were judged by.
        short: How a path is shown.

    Returns:
        0, or 1 when a trial failed.
    """
    made = {point.folder: point for point in points}
    ranked = sorted(results, key=lambda result: (-_score(result), result.error is not None))
    print()
    print(HEADER)
    for result in ranked:
        how = "failed" if result.error else state(result.metrics or {}, run.settings)
        print(row(result.metrics or {}, run.settings, how, _label(result, made)))
        if result.error:
            tell(f"{reason(result.error)}; see {short(result.path)}/error.txt")
    best = ranked[0]
    if math.isfinite(_score(best)):
        tell(f"best: {_label(best, made)}")
        tell(f"checkpoint: {short(best.checkpoint.path) if best.checkpoint else 'none'}")
    elif not results.errors:
        tell(f"no trial reported {metric!r} (--metric), so none is the best; result.json has what there is")
    return 1 if results.errors else 0


def reason(error: BaseException, most: int = 300) -> str:
    """Why a trial failed, in a line: our own error behind Ray's, else the last line of what Ray says.

    Args:
        error: What Tune has of it.
        most: Length to which it is cut, in characters.

    Example:
        >>> reason(RuntimeError("The actor died\\nTraceback\\n  File x\\nValueError: too wide\\n"))
        'ValueError: too wide'
    """
    ours = own_error(error)
    lines = [line.strip() for line in str(ours or error).splitlines() if line.strip()]
    text = " ".join(lines) if ours is not None else lines[-1] if lines else type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"


def _label(result: tune.Result, made: Mapping[str, Point]) -> str:
    """A trial's settings, and those that a scheduler changed since."""
    point = made[result.path.rstrip("/").rpartition("/")[2]]
    config = result.config or {}
    # Where a sweep went on, Tune has read the config from JSON, which has no tuples.
    told = {name: json.dumps(config.get(name, value), default=str) for name, value in point.values.items()}
    changed = [name for name, value in point.values.items() if told[name] != json.dumps(value, default=str)]
    now = [f"{name}={config[name]}" for name in changed]
    return point.label + (f" (now {','.join(now)})" if now else "")


def _score(result: tune.Result) -> float:
    value = ((result.metrics or {}).get("sweep") or {}).get("score", -math.inf)
    return float(value)
