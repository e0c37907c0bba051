"""Which tasks an environment has, and what is said where they are others than before."""

from __future__ import annotations

from typing import Any

import pytest

from gspo_rllib.env_pool.task_set import TaskSet, task_set
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.errors import EnvError

DATASET = "gspo_rllib.envs:gspo_rllib/Dataset-v0"
ROWS = [{"question": f"{n} + 1?", "answer": n + 1} for n in range(5)]


class Counted(TextTaskEnv):
    """Counts its tasks; says what they are where it is told to."""

    def __init__(self, count: int, digest: Any = None) -> None:
        super().__init__(max_turns=1)
        self.num_tasks = lambda: count
        if digest is not None:
            self.tasks_digest = digest

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Asks."""
        super().reset(seed=seed)
        return self._begin_task("?", {"task_id": "0"})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Ends."""
        return self._finish("", 0.0, success=False)


def test_tasks_are_compared_by_number_and_by_what_they_are() -> None:
    before = task_set(DATASET, {"rows": ROWS})
    assert before is not None and before.count == 5
    same, grown, corrected = (
        task_set(DATASET, {"rows": rows})
        for rows in (list(ROWS), [*ROWS, *ROWS], [{**ROWS[0], "answer": 0}, *ROWS[1:]])
    )
    assert same is not None and grown is not None and corrected is not None
    assert same.change(before) is None
    assert grown.change(before) == "5 tasks then, 10 now"
    assert corrected.change(before) == "5 tasks then and now, but not the same ones"


def test_an_environment_that_only_counts_is_compared_by_its_count() -> None:
    assert task_set("gspo_rllib.envs:gspo_rllib/Arithmetic-v0", {}) is None
    three, four = task_set(Counted, {"count": 3}), task_set(Counted, {"count": 4})
    assert three == TaskSet(3) and four is not None
    assert three.change(three) is None and four.change(three) == "3 tasks then, 4 now"
    told = task_set(Counted, {"count": 3, "digest": lambda: "a"})
    assert told == TaskSet(3, "a")
    assert told.change(three) is None, "nobody knows"


def test_a_digest_that_is_none_is_refused() -> None:
    with pytest.raises(EnvError, match=r"tasks_digest\(\) returned 7; it must return a str"):
        task_set(Counted, {"count": 3, "digest": lambda: 7})
    with pytest.raises(EnvError, match=r"tasks_digest\(\) raised ZeroDivisionError"):
        task_set(Counted, {"count": 3, "digest": lambda: 1 // 0})
