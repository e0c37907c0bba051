"""The names of groups. Everything about a group is a function of its name and of the run's seed.

This module imports nothing of the project.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_STAGED = re.compile(r"stage([0-9]+)/")


def training_group(number: int, stage: int | None = None) -> str:
    """The name of a training group.

    Args:
        number: How many groups were drawn before it.
        stage: The stage of the curriculum that it plays; None for the environment itself.

    Example:
        >>> training_group(7), training_group(7, stage=1)
        ('7', 'stage1/7')
    """
    return str(number) if stage is None else f"stage{stage}/{number}"


def evaluation_group(number: int) -> str:
    """Name of an evaluation's group: the same in every evaluation, and no training group's."""
    return f"evaluation/{number}"


def stage_of(group_id: str) -> int | None:
    """The stage of the curriculum that a group plays; None for the environment itself.

    Example:
        >>> stage_of("stage1/7"), stage_of("7"), stage_of(evaluation_group(7))
        (1, None, None)
    """
    match = _STAGED.match(group_id)
    return int(match[1]) if match else None


def number_of(group_id: str) -> int | None:
    """What follows the last slash of a group's name; None where that is no number.

    Example:
        >>> number_of("stage1/7"), number_of("7"), number_of("mine")
        (7, 7, None)
    """
    digits = group_id.rpartition("/")[2]
    return int(digits) if digits.isascii() and digits.isdigit() else None


def in_order(group_ids: Iterable[str]) -> list[str]:
    """Groups in the order in which they were drawn, whatever happened since.

    Example:
        >>> in_order(["stage1/10", "9", "mine"])
        ['mine', '9', 'stage1/10']
    """
    return sorted(group_ids, key=lambda group_id: -1 if (number := number_of(group_id)) is None else number)
