"""TextWorldExpress: household text games such as cooking, map reading and hide-and-seek for a coin; needs Java.

Observation  str, at first the task and what there is to see, then what the action led to, 2 to 1,000 characters; with
             `show_actions` also the actions that are valid now
Action       str, one of the valid actions, e.g. "open fridge", "take coin", "move north"; outer spaces do not matter
Reward       the change of the game's score, which is 1.0 for a solved task; a failed task's return is -1.0
Ends         terminated by success or failure; truncated after `max_turns` turns
Info         {"task_id": str} from reset; from step {"valid_action": bool, "obs_role": "user", "score": float}, and at
             the end {"success": bool}, with {"truncated_by": "turns"} when truncated
Settings     game: one of `GAMES`; params: the game's own settings, e.g. "numLocations=5,includeDoors=0"; split:
             "train", "dev" or "test", where tasks are drawn from; show_actions; max_turns: 1 to 10,000; heap_mb: 64
             to 65,536, of the one Java machine of this process, decided by the first environment
Tasks        seeds "0" to "999" (train), "10000" to "10999" (dev), "20000" to "20999" (test); all three can be asked for
Expert       plays the suite's own solution: privileged, it does not look at the observations
Cannot       pickle a running game: a copy plays the actions again, exactly. Play "sorting": its games of one seed share
             their objects inside a Java machine, so one member of a group would move what another sees. In a few tasks
             of "peckingorder" two things have one name, and which of them is taken is up to the Java machine, so that
             the solution may fail
Ladder       game           expert: return, turns avg (max)   random valid   (15 tasks, at most 50 turns, but 120 in
             simonsays      1.00, 5.0 (5)                     -1.00          cookingworld)
             arithmetic     1.00, 5.0 (5)                     -0.90
             peckingorder   1.00, 9.0 (9)                     -1.00
             mapreader      1.00, 9.0 (11)                     0.20
             twc            1.00, 15.6 (22)                    0.07
             coin           1.00, 15.7 (28)                    0.33
             cookingworld   1.00, 47.7 (109)                   0.16
Versions     v0, for textworld-express 1.1
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from gspo_rllib.envs.adapters.jvm import java_machine
from gspo_rllib.envs.adapters.suite import Outcome, SuiteEnv, load_suite
from gspo_rllib.envs.tasks import checked_integer, unknown_task
from gspo_rllib.errors import SettingError, did_you_mean
from gspo_rllib.types import ChatSpec

GAMES = ("arithmetic", "coin", "cookingworld", "mapreader", "peckingorder", "simonsays", "twc")
SPLITS = {"train": range(0, 1000), "dev": range(10_000, 11_000), "test": range(20_000, 21_000)}


def split_of(task_id: str) -> str | None:
    """The split a task belongs to, None where there is no such task.

    Example:
        >>> split_of("17"), split_of("10017"), split_of("20999")
        ('train', 'dev', 'test')
        >>> split_of("1000"), split_of("017"), split_of("x")
        (None, None, None)
    """
    if not (task_id.isascii() and task_id.isdigit() and str(int(task_id[:6])) == task_id):
        return None
    return next((split for split, seeds in SPLITS.items() if int(task_id) in seeds), None)


class TextWorldExpressEnv(SuiteEnv):
    """See the card at the top of this file.

    Args:
        game: The game's name.
        params: The game's own settings, as comma-separated ``name=value``.
        split: Where tasks are drawn from.
        show_actions: Whether an observation ends with the valid actions.
        max_turns: Turns until truncation.
        heap_mb: Largest Java heap in MiB.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is unknown or out of range.
        EnvError: The package or Java is missing.
    """

    chat = ChatSpec(
        system_prompt="Play the game: reply with one action only, such as look around, open fridge, take coin."
    )
    not_pickled: ClassVar[tuple[str, ...]] = ("_game",)

    def __init__(
        self,
        game: str = "coin",
        params: str = "",
        split: str = "train",
        show_actions: bool = False,
        max_turns: int = 50,
        heap_mb: int = 512,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(max_turns, render_mode)
        if game == "sorting":
            raise SettingError(
                "game='sorting': not offered, since its games of one seed share their objects. "
                f"Allowed: {', '.join(GAMES)}."
            )
        if game not in GAMES:
            raise SettingError(f"game={game!r}: no such game. {did_you_mean(str(game), GAMES)}")
        if split not in SPLITS:
            raise SettingError(f"split={split!r}: no such split. {did_you_mean(str(split), SPLITS)}")
        self.game, self.params, self.split, self.show_actions = game, params, split, show_actions
        self.heap_mb = checked_integer("heap_mb", heap_mb, 64, 65_536)
        self._game: Any = self._new_game()
        self._score = 0.0
        self._valid: list[str] = []

    def expert(self) -> Callable[[str], str]:
        """The suite's own solution of the task at hand; ask for a new one per episode."""
        remaining: list[str] | None = None

        def policy(_observation: str) -> str:
            nonlocal remaining
            if remaining is None:
                assert self._task_id is not None
                solver = self._new_game()
                solver.generateNewGameJSON(int(self._task_id), split_of(self._task_id), True)
                remaining = list(solver.getGoldActionSequence())
            return remaining.pop(0) if remaining else "look around"

        return policy

    def random_action(self, rng: np.random.Generator) -> str:
        """One of the actions that are valid now."""
        return self._valid[rng.integers(len(self._valid))]

    def _new_game(self) -> Any:
        constants = load_suite("textworld_express.constants", "textworld-express")
        machine = java_machine(constants.JAR_PATH, heap_mb=self.heap_mb, extra="textworld-express")
        game = machine.textworldexpress.runtime.PythonInterface()
        if complaint := game.load(self.game, self.params):
            raise SettingError(f"params={self.params!r}: the game {self.game!r} refuses them: {complaint.strip()}")
        return game

    def _draw_task(self) -> str:
        return str(self.np_random.choice(SPLITS[self.split]))

    def _begin(self, task_id: str) -> tuple[str, dict[str, Any]]:
        split = split_of(task_id)
        if split is None:
            raise unknown_task(task_id, "a seed, '0' to '999', '10000' to '10999' or '20000' to '20999'")
        if self._game is None:
            self._game = self._new_game()
        shown = json.loads(self._game.generateNewGameJSON(int(task_id), split, False))
        self._score = 0.0
        task = self._game.getTaskDescription().strip()
        return f"{task}\n{self._told(shown)}", {}

    def _play(self, action: str) -> Outcome:
        chosen = action.strip()
        if chosen not in self._valid:
            # Not sent to the game, so that what is no action can neither score nor fail.
            return Outcome(f"not an action here{self._hint()}", valid=False, facts={"score": self._score})
        shown = json.loads(self._game.stepJSON(chosen))
        reward, self._score = shown["score"] - self._score, shown["score"]
        success = bool(shown["tasksuccess"]) or self._score >= 1.0
        return Outcome(
            self._told(shown),
            reward,
            over=success or bool(shown["taskfailure"]),
            success=success,
            facts={"score": self._score},
        )

    def _told(self, shown: dict[str, Any]) -> str:
        # The suite lists them in the order of a hash table.
        self._valid = sorted(shown["validActions"])
        return f"{shown['observation'].strip()}{self._hint()}"

    def _hint(self) -> str:
        return f"\nActions: {', '.join(self._valid)}" if self.show_actions else ""
