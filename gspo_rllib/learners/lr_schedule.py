"""A learning-rate schedule that counts updates: warm-up, then a decay.

An update is what the learners make of one iteration's groups (several optimiser steps), and what versions of the
weights are numbered by; an iteration that had nothing to learn from makes none. The rate is a function of the number of
updates alone, so a restored run goes on exactly where its checkpoint was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gspo_rllib.errors import SettingError, did_you_mean, shown

_SETTING = "training.lr_schedule"
_KEYS = ("unit", "warmup", "decay", "total", "min")
_EXAMPLE = "{'unit': 'updates', 'warmup': 10, 'decay': 'cosine', 'total': 200, 'min': 1e-7}"

DECAYS: Mapping[str, Callable[[float], float] | None] = {
    "constant": None,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
"""By name: what is left of the rate, from 1 to 0, at a progress from 0 to 1; None for one that does not fall."""

_UNITS = {
    "turns": "an RLlib schedule counts turns: lr=[[0, 1e-5], [100000, 1e-6]]",
    "timesteps": "an RLlib schedule counts turns: lr=[[0, 1e-5], [100000, 1e-6]]",
    "steps": "an update makes num_minibatches * num_epochs optimiser steps",
    "iterations": "an iteration makes one update, and none where it has nothing to learn from",
}


@dataclass(frozen=True, slots=True)
class LRSchedule:
    """How a learning rate changes with the number of updates.

    Attributes:
        warmup: Updates over which it rises to its whole: the first one has a ``warmup``-th of it.
        decay: How it falls afterwards; a name in ``DECAYS``.
        total: Updates after which it has fallen to the least; None where it does not fall.
        least: The least share of the whole rate.

    Example:
        >>> schedule = LRSchedule.of({"warmup": 2, "decay": "linear", "total": 6, "min": 1e-6}, lr=1e-5)
        >>> [round(schedule.share(updates), 3) for updates in range(8)]
        [0.5, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1]
    """

    warmup: int
    decay: str
    total: int | None
    least: float

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, lr: Any) -> LRSchedule | None:
        """The schedule that ``training.lr_schedule`` describes; None for None.

        Args:
            given: The setting.
            lr: ``training.lr``, the whole rate.

        Raises:
            SettingError: A key is unknown, missing or of no effect, or a value is illegal.
        """
        if given is None:
            return None
        if isinstance(lr, (list, tuple)):
            raise SettingError(
                f"{_SETTING} and an RLlib schedule in training.lr are both set; keep one. RLlib's counts turns, "
                "lr_schedule counts updates and scales a single lr."
            )
        for key in given:
            if key not in _KEYS:
                raise SettingError(f"{_SETTING}[{key!r}] is unknown. {did_you_mean(str(key), _KEYS)}")
        unit, decay = given.get("unit", "updates"), given.get("decay", "constant")
        if unit != "updates":
            note = f": {_UNITS[unit]}" if isinstance(unit, str) and unit in _UNITS else ""
            raise SettingError(f"{_SETTING}['unit'] is {shown(unit)}; allowed: 'updates'{note}.")
        if not isinstance(decay, str) or decay not in DECAYS:
            raise SettingError(f"{_SETTING}['decay'] is {shown(decay)}; allowed: {', '.join(map(repr, DECAYS))}.")
        warmup = _whole(given, "warmup", 0)
        if DECAYS[decay] is None:
            for key in ("total", "min"):
                if given.get(key) is not None:
                    raise SettingError(
                        f"{_SETTING}[{key!r}] has no effect with a constant rate; set 'decay' to 'linear' or 'cosine', "
                        "or leave it out."
                    )
            if not warmup:
                raise SettingError(f"{_SETTING} is {dict(given)!r}, which changes nothing. For example {_EXAMPLE}.")
            return cls(warmup, decay, None, 1.0)
        if given.get("total") is None:
            raise SettingError(
                f"{_SETTING}['total'] is missing: after how many updates the rate has fallen, for example {_EXAMPLE}."
            )
        total = _whole(given, "total", 1)
        if total <= warmup:
            raise SettingError(f"{_SETTING}['total'] is {total}; it counts the warm-up, too, so it must be > {warmup}.")
        least = given.get("min", 0.0)
        is_number = isinstance(least, (int, float)) and not isinstance(least, bool)
        if not is_number or not 0.0 <= least <= lr:
            raise SettingError(f"{_SETTING}['min'] is {shown(least)}; allowed: float, >= 0, <= training.lr ({lr:g}).")
        return cls(warmup, decay, total, least / lr if lr else 0.0)

    def share(self, updates: int) -> float:
        """The share of the whole rate that the next update has.

        Args:
            updates: Updates so far.
        """
        if updates < self.warmup:
            return (updates + 1) / self.warmup
        fall = DECAYS[self.decay]
        if fall is None or self.total is None:
            return 1.0
        progress = min(1.0, (updates - self.warmup) / (self.total - self.warmup))
        return self.least + (1.0 - self.least) * fall(progress)


def _whole(given: Mapping[str, Any], key: str, least: int) -> int:
    value = given.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingError(f"{_SETTING}[{key!r}] is {shown(value)}; allowed: int, >= {least}, a number of updates.")
    return value
