"""Runs the trials that a study's folder does not hold yet, as trials of Ray Tune."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.study.design import Settings, Study, Trial, candidate_name
from gspo_rllib.study.raw import Result, Row, read_result, write_result
from gspo_rllib.study.statistics import last_third
from gspo_rllib.study.trial import MEASURED

if TYPE_CHECKING:
    from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig

Say = Callable[[str], object]


def results_of(folder: Path, trials: Sequence[Trial]) -> list[Result]:
    """The results that are there.

    Raises:
        SettingError: A file holds something else.
    """
    return [result for trial in trials if (result := read_result(folder, trial)) is not None]


def tuned_settings(study: Study, tuning: Sequence[Result]) -> dict[str, Settings]:
    """What tuning found: for each objective the candidate with the best mean last third; those tuned so far.

    Args:
        study: The study.
        tuning: Results of its tuning trials.
    """
    scores: dict[str, list[float]] = {}
    for result in tuning:
        scores.setdefault(result.objective, []).append(last_third(result.scores))
    found: dict[str, Settings] = {}
    for name, candidates in study.candidates.items():
        means = [
            _mean(scores.get(candidate_name(name, k), []), len(study.tuning_seeds)) for k in range(len(candidates))
        ]
        if all(mean is not None for mean in means):
            best = max(range(len(candidates)), key=lambda k: (means[k], -k))
            found[name] = candidates[best]
    return found


def _mean(scores: Sequence[float], wanted: int) -> float | None:
    return sum(scores) / wanted if len(scores) == wanted else None


def run_missing(
    study: Study,
    folder: Path,
    trials: Sequence[Trial],
    models: Mapping[str, str | None],
    *,
    at_once: int | None,
    record: Mapping[str, Any],
    say: Say,
) -> int:
    """Runs trials, each of which leaves its file when it has ended.

    Args:
        study: The study.
        folder: The study's.
        trials: Those to run.
        models: Trial name to its start model; None for the config's own.
        at_once: Most trials at a time; None for as many as Ray has room for.
        record: Versions and machine, kept with each result.
        say: Called with a line per trial.

    Returns:
        How many failed.
    """
    from ray import tune

    by_name = {trial.name: trial for trial in trials}
    configs = {trial.name: trial.run(models[trial.name]).config for trial in trials}
    iterations = {trial.name: trial.settings["run.iterations"] for trial in trials}
    keeper = _keeper(folder, by_name, record, say, of=len(trials))
    trainable: Any = tune.with_resources(
        tune.with_parameters(_train, configs=configs, iterations=iterations),
        resources=lambda space: _resources(configs[space["trial"]]),
    )
    tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder.absolute()), callbacks=[keeper], verbose=0, failure_config=None
        ),
    ).fit()
    return int(keeper.num_failed)


def _train(
    space: Mapping[str, Any], *, configs: Mapping[str, PolicyGradientConfig], iterations: Mapping[str, int]
) -> None:
    from ray import tune

    from gspo_rllib.study.trial import play

    play(configs[space["trial"]], iterations[space["trial"]], tune.report)


def _resources(config: PolicyGradientConfig) -> Any:
    return config.algo_class.default_resource_request(config)


def _keeper(folder: Path, trials: Mapping[str, Trial], record: Mapping[str, Any], say: Say, *, of: int) -> Any:
    from ray import tune

    class Keeper(tune.Callback):
        """Keeps the rows that trials report, and writes a trial's file when it has ended well."""

        def __init__(self) -> None:
            self.num_failed = 0
            self._num_ended = 0
            self._rows: dict[str, list[Row]] = {}

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any
        ) -> None:
            row = {key: value for key, value in result.items() if key in _ROW}
            self._rows.setdefault(trial.config["trial"], []).append(row)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            name = trial.config["trial"]
            rows = self._rows.pop(name, [])
            write_result(folder, by_name[name], rows, record)
            scores = " ".join(f"{row['score']:.2f}" for row in rows)
            self._say(name, scores)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.num_failed += 1
            name = trial.config["trial"]
            error = ""
            with contextlib.suppress(Exception):  # whatever Tune kept of it is for the reader only
                error = Path(trial.error_file).read_text("utf-8").strip().splitlines()[-1]
            self._say(name, f"failed: {error[:200]} (the whole in {trial.error_file})")

        def _say(self, name: str, text: str) -> None:
            self._num_ended += 1
            say(f"{self._num_ended}/{of}  {name}  {text}")

    by_name = trials
    return Keeper()


_ROW = {*MEASURED, "iteration", "score", "return", "cpu_s", "wall_s", "total_cpu_s"}
"""Of what Tune adds to a report, nothing is kept."""
