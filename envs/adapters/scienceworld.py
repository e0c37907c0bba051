"""ScienceWorld: elementary-school experiments in a house with a laboratory, 30 kinds of tasks; needs Java.

Observation  str, at first the task and what there is to see, then what the action led to, 10 to 2,000 characters
Action       str in the suite's language, e.g. "open door to kitchen", "focus on thermometer", "move orange to red box";
             when an action is ambiguous, the suite asks, and the answer is a number
Reward       the change of the suite's score, and what is left to 1.0 for solving the task; a failure's return is -1.0
Ends         terminated by success or failure; truncated after `max_turns` turns
Info         {"task_id": str} from reset; from step {"valid_action": bool, "obs_role": "user", "score": float}, and at
             the end {"success": bool}, with {"truncated_by": "turns"} when truncated
Settings     task: e.g. "boil", "find-plant"; split: "train", "dev" or "test", where variations are drawn from;
             simplifications: comma-separated, "easy" for all; max_turns: 1 to 10,000; heap_mb: 64 to 65,536, of the one
             Java machine of this process, decided by the first environment
Tasks        variations of the task, "0" to one less than their number; those of other splits can be asked for
Expert       plays the suite's own solution: privileged, and not always the full score (lifespan-longest-lived gets 0.5)
Ladder       find-living-thing, easy: expert 1.00 in 12.8 turns (5 tasks); random valid actions 0.04 in 15 turns
Cannot       replay bit by bit: the simulator draws heat and the order of lists at random, so the same task and actions
             may read differently; for the same reason a running game cannot be pickled, nor its state saved
Versions     v0, for scienceworld 1.2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gspo_rllib.envs.adapters.jvm import java_machine
from gspo_rllib.envs.adapters.suite import Outcome, SuiteEnv, encodable, load_suite
from gspo_rllib.envs.tasks import checked_integer, unknown_task
from gspo_rllib.errors import EnvError, SettingError, did_you_mean
from gspo_rllib.types import ChatSpec

SPLITS = ("train", "dev", "test")

_REFUSALS = ("No known action", "Unknown action")
# The simulator tries every way to read an action: 10,000 characters take it seconds.
_LONGEST_ACTION = 300


class ScienceWorldEnv(SuiteEnv):
    """See the card at the top of this file.

    Args:
        task: The task's name.
        split: Where variations are drawn from.
        simplifications: Comma-separated; ``"easy"`` for all.
        max_turns: Turns until truncation.
        heap_mb: Largest Java heap in MiB.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is unknown or out of range.
        EnvError: The package or Java is missing.
    """

    metadata = SuiteEnv.metadata | {"deterministic": False, "picklable": False}
    chat = ChatSpec(
        system_prompt="Do the task in the simulated house. Reply with one action only, such as look around, open door "
        "to kitchen, pick up orange, focus on orange, move orange to red box, use thermometer on orange, wait."
    )

    def __init__(
        self,
        task: str = "find-living-thing",
        split: str = "train",
        simplifications: str = "",
        max_turns: int = 100,
        heap_mb: int = 1024,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(max_turns, render_mode)
        if split not in SPLITS:
            raise SettingError(f"split={split!r}: no such split. {did_you_mean(str(split), SPLITS)}")
        self.task, self.split, self.simplifications = task, split, simplifications
        self.heap_mb = checked_integer("heap_mb", heap_mb, 64, 65_536)
        self._game: Any = self._new_game()
        self._check_names()
        # The lists of variations belong to the task that is loaded.
        self._game.load(task, 0, simplifications, False)
        self._variations: dict[str, list[int]] = {
            "train": list(self._game.getVariationsTrain()),
            "dev": list(self._game.getVariationsDev()),
            "test": list(self._game.getVariationsTest()),
        }
        self._start = self._score = self._paid = 0.0

    def expert(self) -> Callable[[str], str]:
        """The suite's own solution of the task at hand; ask for a new one per episode."""
        remaining: list[str] | None = None

        def policy(_observation: str) -> str:
            nonlocal remaining
            if remaining is None:
                assert self._task_id is not None
                solver = self._new_game()
                solver.load(self.task, int(self._task_id), self.simplifications, True)
                remaining = list(solver.getGoldActionSequence())
            return remaining.pop(0) if remaining else "wait1"

        return policy

    def random_action(self, rng: np.random.Generator) -> str:
        """One of the actions that are valid now; listing those takes the simulator most of a second."""
        actions: list[str] = sorted(self._game.getValidActionObjectCombinations())
        return actions[rng.integers(len(actions))]

    def get_state(self) -> dict[str, Any]:
        """Is not offered.

        Raises:
            EnvError: Always.
        """
        raise EnvError("ScienceWorld cannot replay a game exactly, so its state cannot be saved. Start the task anew.")

    def __getstate__(self) -> dict[str, Any]:
        raise EnvError("A ScienceWorld game cannot be pickled. Make the environment where it is used.")

    def _new_game(self) -> Any:
        constants = load_suite("scienceworld.constants", "scienceworld")
        machine = java_machine(constants.JAR_PATH, heap_mb=self.heap_mb, extra="scienceworld")
        return machine.scienceworld.runtime.pythonapi.PythonInterface()

    def _check_names(self) -> None:
        tasks = list(self._game.getTaskNames())
        if self.task not in tasks:
            raise SettingError(f"task={self.task!r}: no such task. {did_you_mean(str(self.task), tasks)}")
        known = ["easy", *self._game.getPossibleSimplifications().split(", ")]
        for name in filter(None, self.simplifications.split(",")):
            if name not in known:
                raise SettingError(f"simplifications={self.simplifications!r}: {did_you_mean(name, known)}")

    def _draw_task(self) -> str:
        return str(self.np_random.choice(self._variations[self.split]))

    def _begin(self, task_id: str) -> tuple[str, dict[str, Any]]:
        count = sum(map(len, self._variations.values()))
        digits = task_id.isascii() and task_id.isdigit() and len(task_id) < 9
        if not digits or str(int(task_id)) != task_id or int(task_id) >= count:
            raise unknown_task(task_id, f"a variation of {self.task!r}, '0' to '{count - 1}'")
        self._game.load(self.task, int(task_id), self.simplifications, False)
        self._game.reset()
        seen = self._game.step("look around").strip()
        # Some tasks begin with points, for being in the right room; they are paid with the last ones.
        self._start = self._score = float(self._game.getScore())
        self._paid = 0.0
        return f"{self._game.getTaskDescription().strip()}\n{seen}", {}

    def _play(self, action: str) -> Outcome:
        if len(action) > _LONGEST_ACTION or action.strip() == "reset task":
            return Outcome("No known action matches that input.", valid=False, facts={"score": self._score})
        observation = self._game.step(encodable(action)).strip()
        self._score = float(self._game.getScore())
        failed, success = self._score < 0, self._score >= 1.0
        paid, self._paid = self._paid, -1.0 if failed else 1.0 if success else self._score - self._start
        return Outcome(
            observation,
            self._paid - paid,
            valid=not observation.startswith(_REFUSALS),
            over=failed or success or bool(self._game.getCompleted()),
            success=success,
            facts={"score": self._score},
        )
