"""What the adapters share: suites that are loaded late, tasks by name, counted turns, states that are replayed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

from gspo_rllib.envs.tasks import NUM_TASKS, checked_integer, requested_task
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.errors import EnvError
from gspo_rllib.imports import draws_undone

MOST_TURNS = 10_000


def load_suite(module: str, extra: str) -> ModuleType:
    """Imports a suite's module; what that draws from the global random states of Python and numpy is undone.

    Args:
        module: The module's dotted name.
        extra: The extra of this project that installs it.

    Raises:
        EnvError: It cannot be imported.

    Example:
        >>> load_suite("json", "json").__name__
        'json'
        >>> load_suite("no_such_suite", "suite")
        Traceback (most recent call last):
        gspo_rllib.errors.EnvError: no_such_suite cannot be imported (No module named 'no_such_suite'). \
Install it: pip install 'gspo-rllib[suite]'
    """
    try:
        with draws_undone():
            return importlib.import_module(module)
    except ImportError as error:
        raise EnvError(
            f"{module} cannot be imported ({error}). Install it: pip install 'gspo-rllib[{extra}]'"
        ) from error


def encodable(text: str) -> str:
    """The text with what UTF-8 cannot carry replaced, as suites behind a socket need it.

    Example:
        >>> encodable("go \\ud800 on \u00e9")
        'go ? on \u00e9'
    """
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one turn in a suite led to.

    Attributes:
        observation: What is new since the last turn.
        reward: What this turn earned.
        valid: Whether the text was an action of the suite.
        over: Whether the task has ended, by success or failure.
        success: Whether it ended well.
        facts: Added to ``info``.
    """

    observation: str
    reward: float = 0.0
    valid: bool = True
    over: bool = False
    success: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class SuiteEnv(TextTaskEnv):
    """An environment that another package plays; a subclass starts tasks and takes turns.

    Its state is the task and the actions since, from which ``set_state`` and unpickling play it again.

    Args:
        max_turns: Turns until the episode is truncated, 1 to 10,000.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: ``max_turns`` is out of range.
    """

    metadata = TextTaskEnv.metadata | {"blocking": True}
    not_pickled: ClassVar[tuple[str, ...]] = ()
    """Attributes that are None in a pickle, and that ``_begin`` sets again."""

    def __init__(self, max_turns: int, render_mode: str | None = None) -> None:
        super().__init__(checked_integer("max_turns", max_turns, 1, MOST_TURNS), render_mode)
        self._task_id: str | None = None
        self._actions: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts a task; the same seed or ``options["task_id"]`` starts the same one.

        Raises:
            EnvError: ``options["task_id"]`` names no task.
        """
        super().reset(seed=seed)
        requested = requested_task(options)
        task_id = self._draw_task() if requested is None else requested
        self._task_id = None
        observation, facts = self._begin(task_id)
        self._task_id, self._actions = task_id, []
        return self._begin_task(observation, {"task_id": task_id} | facts)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes an action; any other text costs the turn."""
        self._actions.append(action)
        told = self._play(action)
        if told.over:
            return self._finish(told.observation, told.reward, told.success, told.valid, told.facts)
        return self._go_on(told.observation, told.reward, told.valid, told.facts)

    def get_state(self) -> dict[str, Any]:
        """The task and the actions since its start, as JSON."""
        return {"task_id": self._task_id, "actions": list(self._actions)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Plays the actions of ``get_state`` again; draws nothing from the random generator."""
        self._task_id, self._actions = None, []
        if state["task_id"] is not None:
            self.reset(options={"task_id": state["task_id"]})
            for action in state["actions"]:
                self.step(action)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict.fromkeys(self.not_pickled)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.not_pickled:
            self.set_state(self.get_state())

    def _draw_task(self) -> str:
        """A random task, from ``self.np_random``."""
        return str(self.np_random.integers(NUM_TASKS))

    def _begin(self, task_id: str) -> tuple[str, dict[str, Any]]:
        """Starts a task; returns the first observation and facts for ``info``."""
        raise NotImplementedError

    def _play(self, action: str) -> Outcome:
        """Takes one turn."""
        raise NotImplementedError
