"""The ``gradients`` section of a study: where, for which objectives and how far from the policy that sampled."""

from __future__ import annotations

from dataclasses import dataclass

from gspo_rllib.errors import SettingError
from gspo_rllib.study.design import Cell, Settings, Study


@dataclass(frozen=True, slots=True)
class GradientPlan:
    """The ``gradients`` section of a study.

    Attributes:
        cells: Where to measure; those of the study that it names.
        objectives: Names of those to measure; the first one's steps move the policy. None for those of a cell.
        lr: Learning rate of the steps.
        steps: After how many optimiser steps.
        groups: Groups per estimate, of the old policy and of the moved one.
        minibatch_groups: Groups of a minibatch.
        noise: Standard deviations (nats) of noise on the recorded log-probs, each measured at the first of the steps.
        seeds: Seeds.
    """

    cells: tuple[Cell, ...]
    objectives: tuple[str, ...] | None
    lr: float
    steps: tuple[int, ...]
    groups: int
    minibatch_groups: int
    noise: tuple[float, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, study: Study) -> GradientPlan:
        """Reads the section.

        Raises:
            SettingError: An entry is unknown or refused.
        """
        given, place = dict(study.gradients), f"{study.name}: gradients"
        named = {cell.name: cell for cell in study.cells}
        cells = given.pop("cells", [study.cells[0].name])
        if not isinstance(cells, list) or not cells or any(name not in named for name in cells):
            raise SettingError(f"{place}.cells: expected a list of the study's cells, got {cells!r}.")
        objectives = given.pop("objectives", None)
        known = [name for name, settings in study.objectives.items() if not measures_range(settings)]
        if objectives is not None and (
            not isinstance(objectives, list) or not objectives or any(name not in known for name in objectives)
        ):
            raise SettingError(
                f"{place}.objectives: expected a list out of {', '.join(known)} (not those whose range follows from "
                f"training), got {objectives!r}."
            )
        lr = given.pop("lr", 1e-5)
        if type(lr) is not float or not 0 < lr < 1:
            raise SettingError(f"{place}.lr: expected a number between 0 and 1, got {lr!r}.")
        counts = {name: given.pop(name, default) for name, default in (("groups", 32), ("minibatch_groups", 4))}
        lists = {"steps": [1, 2, 4, 8], "seeds": [0], "noise": []}
        lists = {name: given.pop(name, default) for name, default in lists.items()}
        if given:
            raise SettingError(
                f"{place}: no entry {next(iter(given))!r}; "
                "allowed: cells, groups, lr, minibatch_groups, noise, objectives, seeds, steps."
            )
        for name, count in counts.items():
            if type(count) is not int or count < 1:
                raise SettingError(f"{place}.{name}: expected a whole number >= 1, got {count!r}.")
        if counts["groups"] < 3 * counts["minibatch_groups"]:
            raise SettingError(
                f"{place}.groups: {counts['groups']} are less than three minibatches: nothing to compare."
            )
        for name, least in (("steps", 1), ("seeds", 0)):
            values = lists[name]
            if not isinstance(values, list) or not values or any(type(v) is not int or v < least for v in values):
                raise SettingError(f"{place}.{name}: expected a list of whole numbers >= {least}, got {values!r}.")
        noise = lists["noise"]
        if not isinstance(noise, list) or any(type(v) not in (int, float) or not 0 < v < 100 for v in noise):
            raise SettingError(f"{place}.noise: expected a list of numbers > 0 (nats), got {noise!r}.")
        return cls(
            cells=tuple(named[name] for name in cells),
            objectives=None if objectives is None else tuple(objectives),
            lr=lr,
            steps=tuple(sorted(set(lists["steps"]))),
            noise=tuple(map(float, noise)),
            seeds=tuple(lists["seeds"]),
            **counts,
        )


def measures_range(settings: Settings) -> bool:
    """Whether an objective's clip range follows from what its own training measured."""
    return bool(settings.get("training.clip_scaling", "none") != "none")
