"""BabyAI and MiniGrid: instructions such as "go to the red ball" in rooms seen through a 7 by 7 window, told in words.

Observation  str, what is in view: "facing east; wall 3 ahead, 1 left; red ball 2 ahead 1 left; closed blue door 4
             ahead; carrying grey key"; the first one starts with the mission. Objects come nearest first; left and
             right are those of the agent, walls are those straight ahead and beside it
Action       str, "turn left", "turn right", "go forward", "pick up", "drop" or "toggle" (opens, closes, unlocks what is
             ahead); case and spaces do not matter
Reward       1.0 when the mission is done, else 0.0: the suite's discount by the time it took is not used
Ends         terminated when the mission is done or cannot be any more; truncated after `max_turns`, by default the
             suite's own limit for the task: 64 (GoToLocal) to 3,456 (BossLevel)
Info         {"task_id": str, "mission": str} from reset; from step {"valid_action": bool, "obs_role": "user"}, and at
             the end {"success": bool}, with {"truncated_by": "turns"} when truncated
Settings     level: of BabyAI, e.g. "GoToLocal", or a MiniGrid id, e.g. "MiniGrid-DoorKey-5x5-v0"; max_turns: None or
             1 to 10,000
Expert       the suite's BabyAIBot: privileged, it reads the grid, not the observations; BabyAI levels only
Ladder       level            expert: return, turns avg (max)   random actions   (30 tasks; BossLevel 20)
             GoToLocal        1.00, 5.1 (12)                    0.33
             PutNextLocal     1.00, 10.7 (24)                   0.07
             UnlockPickup     1.00, 19.0 (23)                   0.00
             BossLevel        1.00, 120 (240)                   0.05
Versions     v0, for minigrid 3
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from gspo_rllib.envs.adapters.suite import MOST_TURNS, Outcome, SuiteEnv, load_suite
from gspo_rllib.envs.tasks import numbered_task
from gspo_rllib.errors import EnvError, SettingError, did_you_mean
from gspo_rllib.types import ChatSpec

# In the order of the suite's numbers.
ACTIONS = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")

_DIRECTIONS = ("east", "south", "west", "north")
_KINDS = {1: "", 3: "floor", 4: "door", 5: "key", 6: "ball", 7: "box", 8: "goal", 9: "lava"}
_COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
_DOORS = ("open", "closed", "locked")
_WALL = 2


def describe(view: np.ndarray, direction: int) -> str:
    """Tells what a MiniGrid view holds.

    Args:
        view: int [width, height, 3]: kind, colour and state of every cell; the agent stands at the middle of the last
            row and looks towards the first.
        direction: Where the agent faces: 0 east, 1 south, 2 west, 3 north.

    Example:
        >>> view = np.zeros((7, 7, 3), int); view[..., 0] = 1
        >>> view[3, 3] = 2, 5, 0; view[2, 4] = 6, 0, 0; view[5, 6] = 4, 2, 2; view[3, 6] = 5, 4, 0
        >>> describe(view, 0)
        'facing east; wall 3 ahead; locked blue door 2 right; red ball 2 ahead 1 left; carrying yellow key'
    """
    middle, last = view.shape[0] // 2, view.shape[1] - 1
    lines = {
        "ahead": [view[middle, row, 0] for row in range(last - 1, -1, -1)],
        "left": [view[column, last, 0] for column in range(middle - 1, -1, -1)],
        "right": [view[column, last, 0] for column in range(middle + 1, view.shape[0])],
    }
    walls = [f"{line.index(_WALL) + 1} {side}" for side, line in lines.items() if _WALL in line]
    found = []
    for column, row in zip(*np.nonzero(~np.isin(view[..., 0], (0, 1, _WALL))), strict=True):
        ahead, side = last - int(row), int(column) - middle
        if ahead or side:
            place = [f"{ahead} ahead"] * (ahead > 0) + [f"{abs(side)} {'left' if side < 0 else 'right'}"] * (side != 0)
            found.append((ahead + abs(side), side, f"{_name(*view[column, row])} {' '.join(place)}"))
    parts = [f"facing {_DIRECTIONS[direction]}"]
    parts += [f"wall {', '.join(walls)}"] * bool(walls)
    parts += [text for _, _, text in sorted(found)]
    held = view[middle, last]
    parts += [f"carrying {_name(*held)}"] * (held[0] in (5, 6, 7))
    return "; ".join(parts)


def _name(kind: int, colour: int, state: int) -> str:
    name = _KINDS.get(int(kind), "thing")
    words = [_DOORS[state]] * (name == "door") + [_COLOURS[colour]] * (name not in ("lava", "goal")) + [name]
    return " ".join(words)


class BabyAIEnv(SuiteEnv):
    """See the card at the top of this file.

    Args:
        level: Name of a BabyAI level, or a MiniGrid id.
        max_turns: Turns until truncation; None: the suite's own limit.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: There is no such level, or ``max_turns`` is out of range.
        EnvError: minigrid is missing.
    """

    metadata = SuiteEnv.metadata | {"blocking": False}
    chat = ChatSpec(system_prompt=f"Do the mission. Reply with one action only: {', '.join(ACTIONS)}.")

    def __init__(self, level: str = "GoToLocal", max_turns: int | None = None, render_mode: str | None = None) -> None:
        load_suite("minigrid", "babyai")
        super().__init__(MOST_TURNS if max_turns is None else max_turns, render_mode)
        # The suite prints every sampled mission it rejects.
        vars(load_suite("minigrid.envs.babyai.core.roomgrid_level", "babyai"))["print"] = lambda *_: None
        self.level = level
        self._suite_limit = max_turns is None
        self._grid: Any = gymnasium.make(_suite_id(level), disable_env_checker=True).unwrapped

    def expert(self) -> Callable[[str], str]:
        """The suite's bot at the task at hand; ask for a new one per episode.

        Raises:
            EnvError: The level is none of BabyAI's.
        """
        if not self._grid.spec.id.startswith("BabyAI-"):
            raise EnvError(f"level={self.level!r}: the suite's bot plays BabyAI's levels only. Take one of those.")
        bots = load_suite("minigrid.utils.baby_ai_bot", "babyai")
        bot: Any = None

        def policy(_observation: str) -> str:
            nonlocal bot
            bot = bot or bots.BabyAIBot(self._grid)
            action = int(bot.replan())
            return ACTIONS[action] if action < len(ACTIONS) else "turn left"

        return policy

    def random_action(self, rng: np.random.Generator) -> str:
        """One of the six actions."""
        return ACTIONS[rng.integers(len(ACTIONS))]

    def _begin(self, task_id: str) -> tuple[str, dict[str, Any]]:
        number = numbered_task({"task_id": task_id}, self.np_random)
        view, _ = self._grid.reset(seed=number)
        if self._suite_limit:
            self.max_turns = min(int(self._grid.max_steps), MOST_TURNS)
        else:
            self._grid.max_steps = MOST_TURNS + 1
        text = f"mission: {view['mission']}; {describe(view['image'], view['direction'])}"
        return text, {"mission": view["mission"]}

    def _play(self, action: str) -> Outcome:
        chosen = " ".join(action.lower().split()) if len(action) < 50 else ""
        if chosen not in ACTIONS:
            return Outcome(f"not one of: {', '.join(ACTIONS)}", valid=False)
        view, reward, terminated, _, _ = self._grid.step(ACTIONS.index(chosen))
        success = bool(terminated and reward > 0)
        return Outcome(describe(view["image"], view["direction"]), float(success), over=terminated, success=success)


def _suite_id(level: str) -> str:
    levels: dict[str, str] = {
        env_id.split("-")[1]: env_id for env_id in gymnasium.registry if env_id.startswith("BabyAI-")
    }
    grids = {env_id for env_id in gymnasium.registry if env_id.startswith("MiniGrid-")}
    if level not in levels and level not in grids:
        raise SettingError(f"level={level!r}: no such level. {did_you_mean(str(level), [*levels, *grids])}")
    return levels.get(level, level)
