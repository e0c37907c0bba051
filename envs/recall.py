"""Recall: remember facts that are told, and changed, over up to 200 turns, and give them back when asked.

Half of the turns tell a fact ("k3=v17", the reply is "ok"), half ask for one that was told before ("k3?", the reply is
"v17", its latest value). Every question counts the same.

Observation  str, e.g. "k3=v17" or "k3?"; "done" at the end; after an invalid reply the same again, after a hint
Action       str, "ok" for a fact, a value such as "v17" for a question; spaces around it do not matter
Reward       1 / number of questions for a right value, else 0.0; 1.0 in total when all are right
Ends         terminated after the last question; truncated after `turns` turns when invalid replies have used some up
Info         {"task_id": str, "answers": [str]} from reset, the right values in order; from step {"valid_action": bool,
             "obs_role": "user"}, and at the end {"success": bool}, whether all were right, with {"truncated_by":
             "turns"} when truncated
Settings     turns: 2 to 200; keys: 1 to 100; values: 2 to 1000; the names are k1, k2, … and v1, v2, …
Expert       notes every fact down
Ladder       turns/keys/values    expert: return, turns   random valid   random text
             8/2/4                1.00, 8                 0.25           0.00
             50/8/10 (default)    1.00, 50                0.10           0.00
             200/20/100           1.00, 200               0.01           0.00
Versions     v0
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gspo_rllib.envs.tasks import checked_integer, numbered_task
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.types import ChatSpec

_VALUE = re.compile(r"v([1-9][0-9]{0,3})")
_PARTS = 2**32
"""The whole reward, in the parts that a question's share is rounded to."""
_PROMPT = re.compile(r"(k[0-9]+)(?:=(v[0-9]+)|\?)")


def right_replies(prompts: Sequence[str]) -> list[str]:
    """What to reply to facts and questions, in order.

    Example:
        >>> right_replies(["k1=v5", "k2=v7", "k1?", "k1=v2", "k2?", "k1?"])
        ['ok', 'ok', 'v5', 'ok', 'v7', 'v2']
    """
    memory: dict[str, str] = {}
    replies = []
    for prompt in prompts:
        key, told, value = prompt.partition("=")
        if told:
            memory[key] = value
        replies.append("ok" if told else memory[key.removesuffix("?")])
    return replies


def draw_prompts(task: int, turns: int, keys: int, values: int) -> list[str]:
    """Facts and questions of a task; the first is a fact, the last a question, and nothing is asked before it is told.

    A fact that is told again has another value.

    Example:
        >>> draw_prompts(2, turns=6, keys=2, values=9)
        ['k1=v2', 'k1?', 'k2=v5', 'k1=v5', 'k2=v2', 'k2?']
    """
    # Python's own generator draws single numbers ten times as fast as NumPy's.
    draw = random.Random(task)
    memory: dict[int, int] = {}
    known: list[int] = []
    prompts = []
    for turn in range(turns):
        if known and (turn == turns - 1 or draw.random() < 0.5):
            prompts.append(f"k{draw.choice(known)}?")
            continue
        key = draw.randint(1, keys)
        if key not in memory:
            known.append(key)
            memory[key] = draw.randint(1, values)
        else:
            memory[key] = (memory[key] - 1 + draw.randint(1, values - 1)) % values + 1
        prompts.append(f"k{key}=v{memory[key]}")
    return prompts


class RecallEnv(TextTaskEnv):
    """See the card at the top of this file.

    Args:
        turns: Facts and questions together, 2 to 200.
        keys: Different facts, 1 to 100.
        values: Different values, 2 to 1000.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is out of range.
    """

    chat = ChatSpec(
        system_prompt="Reply ok to a fact such as k1=v2. Reply to a question such as k1? with its latest value only, "
        "such as v2."
    )

    def __init__(self, turns: int = 50, keys: int = 8, values: int = 10, render_mode: str | None = None) -> None:
        super().__init__(max_turns=checked_integer("turns", turns, 2, 200), render_mode=render_mode)
        self.keys = checked_integer("keys", keys, 1, 100)
        self.values = checked_integer("values", values, 2, 1000)
        self._prompts: list[str] = []
        self._right: list[str] = []
        self._questions = 0
        self._correct = 0
        self._position = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws facts and questions; the same seed or ``options["task_id"]`` (a number) gives the same ones.

        Raises:
            EnvError: ``options["task_id"]`` is no number of a task.
        """
        super().reset(seed=seed)
        task = numbered_task(options, self.np_random)
        self._prompts = draw_prompts(task, self.max_turns, self.keys, self.values)
        self._right = right_replies(self._prompts)
        answers = [reply for reply in self._right if reply != "ok"]
        self._questions = len(answers)
        self._correct = self._position = 0
        return self._begin_task(self._prompts[0], {"task_id": str(task), "answers": answers})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes a reply; an invalid one costs the turn, and the same is said again."""
        reply = action.strip()
        right = self._right[self._position]
        is_fact = right == "ok"
        valid = reply == "ok" if is_fact else self._is_value(reply)
        reward = self._score(reply == right) if valid and not is_fact else 0.0
        self._position += valid
        if self._position == len(self._prompts):
            return self._finish("done", reward, success=self._correct == self._questions)
        told = self._prompts[self._position]
        if not valid:
            told = f"{'reply ok to a fact' if is_fact else 'not a value such as v1'}; {told}"
        return self._go_on(told, reward, valid)

    def expert(self) -> Callable[[str], str]:
        """A policy that notes every fact down and sees only observations; ask for a new one per episode."""
        return _Notes()

    def random_action(self, rng: np.random.Generator) -> str:
        """ "ok" to a fact, any value to a question."""
        if self._right[self._position] == "ok":
            return "ok"
        return f"v{rng.integers(1, self.values + 1)}"

    def _is_value(self, reply: str) -> bool:
        value = _VALUE.fullmatch(reply)
        return value is not None and int(value[1]) <= self.values

    def _score(self, correct: bool) -> float:
        if not correct:
            return 0.0
        self._correct += 1
        # Shares such as 1/49 are rounded. In whole parts, all of them sum to 1.0 exactly however they are summed: since
        # Python 3.12, sum() does it otherwise than a loop.
        earned, before = (count * _PARTS // self._questions for count in (self._correct, self._correct - 1))
        return (earned - before) / _PARTS


class _Notes:
    def __init__(self) -> None:
        self._facts: dict[str, str] = {}

    def __call__(self, observation: str) -> str:
        prompt = _PROMPT.fullmatch(observation.rpartition(" ")[2])
        if prompt is None:
            return "ok"
        key, value = prompt.groups()
        if value is None:
            return self._facts[key]
        self._facts[key] = value
        return "ok"
