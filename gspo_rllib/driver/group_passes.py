"""Passes over a file of groups, a few groups at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from gspo_rllib.driver.group_file import load_groups
from gspo_rllib.types import TrajectoryGroup


class GroupPasses:
    """Reads a file of groups again and again; only the groups asked for are in memory.

    Args:
        path: A JSONL file; see ``load_groups``. What is added to it later is not looked at.
        config: The run's config, for groups that are given as messages.

    Raises:
        RecordError: There is no such file.
    """

    def __init__(self, path: str | os.PathLike[str], config: AlgorithmConfig) -> None:
        self._path = path
        self._config = config
        self._groups: Iterator[TrajectoryGroup] = load_groups(path, config)
        self._place = 0
        with Path(path).expanduser().open("rb") as file:
            self._count = sum(1 for line in file if line.strip())

    def take(self, count: int, *, taken: int) -> list[TrajectoryGroup]:
        """The next groups.

        Args:
            count: How many; fewer are given where a pass ends, so that no group is there twice.
            taken: How many were taken before, in this run and those that it goes on from.

        Raises:
            RecordError: One of them is wrong, or there are none.
        """
        place = taken % max(1, self._count)
        if place != self._place:
            self._groups = load_groups(self._path, self._config)
            next(islice(self._groups, place, place), None)
        found = list(islice(self._groups, count))
        self._place = place + len(found)
        return found
