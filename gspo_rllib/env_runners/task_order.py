"""Which of an environment's countable tasks a group plays: each once per epoch, shuffled; in evaluation each in turn.

Drawn with replacement, twenty tasks of a file of twenty are thirteen different ones on average: a score over them is of
no known set, and an iteration may miss all the hard ones. Here training visits a permutation, and an evaluation of n
groups plays the tasks 0 … n-1.

Like everything random, the task is a function of names: of the run's seed and the number in the group's name. So it
depends neither on which env runner plays the group, nor on when, nor on whether the run was resumed before it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from gspo_rllib.env_runners.group_names import number_of, stage_of
from gspo_rllib.seeds import derive_seed


class TaskOrder:
    """The tasks ``"0"`` … ``"num_tasks - 1"`` in the order in which groups play them.

    Args:
        num_tasks: How many tasks the environment has, >= 1; None where it does not count them.
        stages: The same of each stage of a curriculum.
        run_seed: Root of every seed.
        shuffled: Whether each pass over the tasks has an order of its own, as in training.

    Example:
        >>> order = TaskOrder(3, run_seed=0, shuffled=True)
        >>> sorted(order.task(str(group), 0) for group in range(3, 6))
        ['0', '1', '2']
        >>> [order.epoch(str(group)) for group in range(2, 7)]
        [0, 1, 1, 1, 2]
        >>> [TaskOrder(3, run_seed=0, shuffled=False).task(f"evaluation/{group}", 0) for group in range(4)]
        ['0', '1', '2', '0']
    """

    def __init__(
        self, num_tasks: int | None, *, run_seed: int, shuffled: bool, stages: Sequence[int | None] = ()
    ) -> None:
        self._num_tasks = num_tasks
        self._stages = stages
        self._run_seed = run_seed
        self._shuffled = shuffled
        # The groups of one iteration are in one epoch or two; those of an overlapped run in few.
        self._permutation = functools.lru_cache(maxsize=4)(self._permute)

    def task(self, group_id: str, replacement: int) -> str | None:
        """The task of a group; None where tasks are not counted.

        Args:
            group_id: The group's name; what follows its last slash is its number.
            replacement: How many of the group's tasks could not be played so far: one that takes the place of such a
                task is any, so that all others keep theirs.
        """
        number, num_tasks = number_of(group_id), self._count(group_id)
        if num_tasks is None:
            return None
        if replacement or number is None:
            return str(derive_seed(self._run_seed, "task", group_id, replacement, bits=64) % num_tasks)
        epoch, place = divmod(number, num_tasks)
        return str(self._permutation(epoch, num_tasks)[place] if self._shuffled else place)

    def epoch(self, group_id: str) -> int:
        """How many times every task had been drawn before this group's; 0 without a number, or without a count."""
        num_tasks = self._count(group_id)
        return (number_of(group_id) or 0) // num_tasks if num_tasks else 0

    def _count(self, group_id: str) -> int | None:
        stage = stage_of(group_id)
        return self._num_tasks if stage is None else self._stages[stage]

    def _permute(self, epoch: int, num_tasks: int) -> np.ndarray:
        seed = derive_seed(self._run_seed, "epoch", epoch, bits=64)
        return np.random.default_rng(seed).permutation(num_tasks)
