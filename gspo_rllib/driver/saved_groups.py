"""Groups that were sampled and wait for their update, as a checkpoint holds them: lines of text, to the bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gspo_rllib.driver.group_file import group_lines, load_groups
from gspo_rllib.errors import CheckpointError, RecordError
from gspo_rllib.types import TrajectoryGroup

WHOLE_BATCHES = "whole_batches"
"""Key in the state of a source of groups: whether its batches are those that updates are made of."""

BATCHES = "batches"
"""Key in that state: for each batch its ``group_ids``, their ``version``, and the ``groups`` or None."""


def saved_groups(groups: Sequence[TrajectoryGroup]) -> list[str]:
    """Groups as data.

    Args:
        groups: Complete groups, any number.

    Raises:
        CheckpointError: A trajectory holds what JSON cannot.
    """
    try:
        return group_lines(groups) if groups else []
    except RecordError as error:
        raise CheckpointError(f"save: a trajectory that waits for its update cannot be saved: {error}") from error


def restored_groups(lines: Any) -> list[TrajectoryGroup]:
    """What ``saved_groups`` was given.

    Args:
        lines: What it returned.

    Raises:
        CheckpointError: It did not return that.
    """
    try:
        return list(load_groups([json.loads(line) for line in lines])) if lines else []
    except (RecordError, ValueError, TypeError) as error:
        raise CheckpointError(f"restore: the checkpoint's trajectories cannot be read: {error}") from error
