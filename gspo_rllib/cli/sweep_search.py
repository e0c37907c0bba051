"""Optuna for a sweep, through Ray Tune's searcher: which combination the next trial has, by the scores so far."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from gspo_rllib.cli.sweep_points import Point

SEED = "seed"
"""Attribute of the algorithm config that makes two trials of one combination differ."""


def with_seeds(points: Sequence[Point], *, seed: int, samples: int) -> list[Point]:
    """Each point as often as a search may choose it, every time with the next seed.

    Args:
        points: One per combination.
        seed: The run's own, which the first of each has.
        samples: How many trials there will be.

    Example:
        >>> [p.label for p in with_seeds([Point("lr=1", {"lr": 1}), Point("lr=2", {"lr": 2})], seed=7, samples=2)]
        ['lr=1', 'lr=2', 'lr=1,seed=8', 'lr=2,seed=8']
    """
    made = []
    for turn in range(samples):
        for point in points:
            own = [f"debugging.seed={seed + turn}"] if turn else []
            label = f"{point.label},seed={seed + turn}" if turn else point.label
            values = {**point.values, SEED: seed + turn}
            made.append(dataclasses.replace(point, label=label, values=values, overrides=[*point.overrides, *own]))
    return made


class ByOptuna(Searcher):
    """Chooses among the values given by Optuna's tree of Parzen estimators.

    Args:
        points: From ``with_seeds``.
        metric: Key of a flat result that is to be high; a result may lack it.
        samples: How many trials it suggests.
        seed: What its first choices, which know nothing yet, depend on.
    """

    def __init__(self, points: Sequence[Point], *, metric: str, samples: int, seed: int) -> None:
        from ray.tune.search.optuna import OptunaSearch

        super().__init__(metric=metric, mode="max")
        logging.getLogger("optuna").setLevel(logging.WARNING)  # it says of each study that it made one
        self._left = samples
        self._times: Counter[str] = Counter()
        self._by_choice: dict[str, list[Point]] = {}
        axes: dict[str, list[str]] = {}
        for point in points:
            for key, text in point.chosen.items():
                if text not in axes.setdefault(key, []):
                    axes[key].append(text)
            self._by_choice.setdefault(_name(point.chosen), []).append(point)
        space = {key: tune.choice(texts) for key, texts in axes.items()}
        self._inner = OptunaSearch(OptunaSearch.convert_search_space(space), metric=metric, mode="max", seed=seed)

    def suggest(self, trial_id: str) -> Any:
        """Called by Tune when there is room for a trial."""
        if not self._left:
            return Searcher.FINISHED
        self._left -= 1
        name = _name(self._inner.suggest(trial_id))
        self._times[name] += 1
        return dict(self._by_choice[name][self._times[name] - 1].values)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Called by Tune with a flat result."""
        if self.metric in result:
            self._inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Called by Tune with a trial that has ended; one that failed is known to Optuna as such."""
        self._inner.on_trial_complete(trial_id, None if error else result, error)


def _name(chosen: Mapping[str, str]) -> str:
    return " ".join(f"{key}={text}" for key, text in sorted(chosen.items()))
