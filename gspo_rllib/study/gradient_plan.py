"""The ``gradients`` section of a study: where, for which objectives and how far from the policy that sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gspo_rllib.errors import SettingError
from gspo_rllib.study.design import Cell, Settings, Study, same_folder


@dataclass(frozen=True, slots=True)
class Noise:
    """Normal noise on recorded log-probs.

    Attributes:
        deviation: Standard deviation of the noise on a token, in nats.
        share: Share of the tokens that have any; below 1 it has heavy tails, and a standard deviation over all tokens
            of ``deviation * sqrt(share)``.
    """

    deviation: float
    share: float = 1.0

    def __str__(self) -> str:
        return f"{self.deviation:g}" if self.share == 1 else f"{self.deviation:g} on {self.share:.3g} of them"

    def on(self, logp_T: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Log-probs with noise on them, none above 0.

        Args:
            logp_T: [tokens], in nats.
            random: What draws it.
        """
        noise_T = random.normal(0.0, self.deviation, size=logp_T.shape)
        if self.share < 1:
            noise_T *= random.random(size=logp_T.shape) < self.share
        return np.minimum(logp_T + noise_T, 0.0).astype(logp_T.dtype)


NO_NOISE = Noise(0.0)


@dataclass(frozen=True, slots=True)
class GradientPlan:
    """What is measured in one cell.

    Attributes:
        cell: The cell.
        objectives: Name to settings of those to measure; the first one's steps move the policy. What tuning finds is
            compared by runs, as is a range that training measures.
        lr: Learning rate of the steps.
        steps: After how many optimiser steps.
        groups: Groups per estimate, of the old policy and of the moved one.
        minibatch_groups: Groups of a minibatch.
        noise: Noise on the recorded log-probs, each measured at the first of the steps.
        seeds: Seeds.
        like: The study's cell that this one is but for ``changed``; "" for one of the study's.
        changed: Settings that are others than there.
    """

    cell: Cell
    objectives: Mapping[str, Settings]
    lr: float
    steps: tuple[int, ...]
    groups: int
    minibatch_groups: int
    noise: tuple[Noise, ...]
    seeds: tuple[int, ...]
    like: str = ""
    changed: Settings = field(default_factory=dict)


def gradient_plans(study: Study) -> tuple[GradientPlan, ...]:
    """Reads the section; a plan for each of its cells, none without the section.

    Raises:
        SettingError: An entry is unknown or refused.
    """
    if not study.gradients:
        return ()
    shared, place = dict(study.gradients), f"{study.name}: gradients"
    named = {cell.name: cell for cell in study.cells}
    cells = shared.pop("cells", [study.cells[0].name])
    if isinstance(cells, list) and all(isinstance(name, str) for name in cells):
        cells = dict.fromkeys(cells)
    if not isinstance(cells, dict) or not cells or any(name not in named and not own for name, own in cells.items()):
        raise SettingError(
            f"{place}.cells: expected a list of the study's cells, or a mapping of them, or of other names, to entries "
            f"of their own, got {cells!r}."
        )
    if twice := same_folder(list(dict.fromkeys([*named, *map(str, cells)]))):
        raise SettingError(f"{place}.cells: {twice}.")
    _check_entries(shared, place, ("cells", *_ENTRIES))
    plans = []
    for name, own in cells.items():
        if own is not None and not isinstance(own, dict):
            raise SettingError(f"{place}.cells.{name}: expected 'key: value' lines, got {own!r}.")
        where, own = f"{place}.cells.{name}" if own else place, dict(own or {})
        like, changed = "", dict[str, Any]()
        if (cell := named.get(name)) is None:
            cell, like, changed = _changed_cell(name, own, named, where)
        _check_entries(own, where, _ENTRIES)
        plans.append(replace(_plan(study, cell, {**shared, **own}, where), like=like, changed=changed))
    return tuple(plans)


def _changed_cell(
    name: str, own: dict[str, Any], named: Mapping[str, Cell], place: str
) -> tuple[Cell, str, dict[str, Any]]:
    """A cell that nothing is trained in; takes what says which out of its entries."""
    like, changed = own.pop("like", None), own.pop("settings", None)
    if like not in named:
        raise SettingError(f"{place}.like: expected one of the study's cells, {', '.join(named)}, got {like!r}.")
    if not isinstance(changed, dict) or not changed or any("." not in str(key) for key in changed):
        raise SettingError(
            f"{place}.settings: expected settings as section.key, e.g. training.lr, that are others than in {like!r}, "
            f"got {changed!r}."
        )
    return replace(named[like], name=name, settings={**named[like].settings, **changed}), like, changed


_ENTRIES = ("groups", "lr", "minibatch_groups", "noise", "objectives", "seeds", "steps")


def _check_entries(given: Mapping[str, Any], place: str, allowed: Sequence[str]) -> None:
    for entry in given:
        if entry not in allowed:
            raise SettingError(f"{place}: no entry {entry!r}; allowed: {', '.join(allowed)}.")


def _plan(study: Study, cell: Cell, given: Mapping[str, Any], place: str) -> GradientPlan:
    objectives = _objectives(study, cell, given.get("objectives"), place)
    lr = given.get("lr", 1e-5)
    if type(lr) is not float or not 0 < lr < 1:
        raise SettingError(f"{place}.lr: expected a number between 0 and 1, got {lr!r}.")
    counts = {name: given.get(name, default) for name, default in (("groups", 32), ("minibatch_groups", 4))}
    lists = {name: given.get(name, default) for name, default in (("steps", [1, 2, 4, 8]), ("seeds", [0]))}
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise SettingError(f"{place}.{name}: expected a whole number >= 1, got {count!r}.")
    if counts["groups"] < 3 * counts["minibatch_groups"]:
        raise SettingError(f"{place}.groups: {counts['groups']} are less than three minibatches: nothing to compare.")
    for name, least in (("steps", 1), ("seeds", 0)):
        values = lists[name]
        if not isinstance(values, list) or not values or any(type(v) is not int or v < least for v in values):
            raise SettingError(f"{place}.{name}: expected a list of whole numbers >= {least}, got {values!r}.")
    return GradientPlan(
        cell=cell,
        objectives=objectives,
        lr=lr,
        steps=tuple(sorted(set(lists["steps"]))),
        noise=_noises(given.get("noise", []), f"{place}.noise"),
        seeds=tuple(lists["seeds"]),
        **counts,
    )


def _objectives(study: Study, cell: Cell, named: Any, place: str) -> dict[str, Settings]:
    known = {name: settings for name, settings in study.objectives.items() if not _measures_range(settings)}
    named = [name for name in cell.objectives if name in known] if named is None else named
    if not isinstance(named, list) or not named or any(name not in known for name in named):
        raise SettingError(
            f"{place}.objectives: expected a list out of {', '.join(known)} (not those whose range follows from "
            f"training), got {named!r}."
        )
    return {name: known[name] for name in named}


def _measures_range(settings: Settings) -> bool:
    return bool(settings.get("training.clip_scaling", "none") != "none")


def _noises(given: Any, place: str) -> tuple[Noise, ...]:
    found = [_noise(one) for one in given] if isinstance(given, list) else [None]
    noises = tuple(one for one in found if one is not None)
    if len(noises) < len(found):
        raise SettingError(
            f"{place}: expected a list of numbers > 0 (nats, on every token) or of "
            f"{{deviation: nats, share: of the tokens}}, got {given!r}."
        )
    return noises


def _noise(given: Any) -> Noise | None:
    parts: dict[str, Any] = {"share": 1.0, **(given if isinstance(given, dict) else {"deviation": given})}
    if parts.keys() != {"deviation", "share"} or any(type(value) not in (int, float) for value in parts.values()):
        return None
    deviation, share = float(parts["deviation"]), float(parts["share"])
    return Noise(deviation, share) if 0 < deviation < 100 and 0 < share <= 1 else None
