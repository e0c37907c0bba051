"""What this project's own environments share: text spaces, counted turns, and the answers of ``reset`` and ``step``.

A convenience, not part of the contract: an environment of your own need not inherit from it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium

from gspo_rllib.envs.spaces import UnicodeText


class TextTaskEnv(gymnasium.Env[str, str]):
    """A task told in text that has to be solved within a number of turns.

    A subclass writes ``reset`` and ``step`` as Gymnasium describes them. ``reset`` returns ``_begin_task(...)``;
    ``step`` returns ``_go_on(...)`` while the task is open, and ``_finish(...)`` once it is solved or failed.

    Args:
        max_turns: Turns after which an episode is truncated.
        render_mode: None or ``"ansi"``.

    Attributes:
        obs_role: The message role in which observations are shown, ``"user"`` or ``"tool"``.

    Example:
        >>> class Echo(TextTaskEnv):
        ...     def reset(self, *, seed=None, options=None):
        ...         super().reset(seed=seed)
        ...         return self._begin_task("say ho", {"task_id": "ho"})
        ...     def step(self, action):
        ...         return self._finish("yes", 1.0, success=True) if action == "ho" else self._go_on("no")
        >>> env = Echo(max_turns=2)
        >>> env.reset()
        ('say ho', {'task_id': 'ho'})
        >>> env.step("hum")
        ('no', 0.0, False, False, {'valid_action': True, 'obs_role': 'user'})
        >>> env.step("ho")
        ('yes', 1.0, True, False, {'valid_action': True, 'obs_role': 'user', 'success': True})
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1, "blocking": False}
    obs_role: ClassVar[str] = "user"

    def __init__(self, max_turns: int, render_mode: str | None = None) -> None:
        self.max_turns = max_turns
        self.render_mode = render_mode
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._turns = 0
        self._observation = ""

    @property
    def optimal_return(self) -> float:
        """The return of a solved task."""
        return 1.0

    def render(self) -> str | None:
        """The last observation."""
        return self._observation if self.render_mode == "ansi" else None

    def _begin_task(self, observation: str, info: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Starts counting turns, and returns what ``reset`` does.

        Args:
            observation: What the policy is told first.
            info: Holds the ``"task_id"`` that ``reset(options=...)`` takes to play this task again, and more.
        """
        self._turns = 0
        self._observation = observation
        return observation, info

    def _go_on(
        self, observation: str, reward: float = 0.0, valid: bool = True, facts: dict[str, Any] | None = None
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Counts a turn that leaves the task open, and returns what ``step`` does; the last turn truncates, as failed.

        Args:
            observation: What the policy is told.
            reward: What this turn earned.
            valid: Whether the action was understood and possible.
            facts: What else ``info`` holds.
        """
        self._turns += 1
        self._observation = observation
        info: dict[str, Any] = {"valid_action": valid, "obs_role": self.obs_role}
        if facts is not None:
            info |= facts
        if self._turns < self.max_turns:
            return observation, reward, False, False, info
        info["success"] = False
        info["truncated_by"] = "turns"
        return observation, reward, False, True, info

    def _finish(
        self, observation: str, reward: float, success: bool, valid: bool = True, facts: dict[str, Any] | None = None
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Counts the turn that ends the task, and returns what ``step`` does.

        Args:
            observation: What the policy is told.
            reward: What this turn earned.
            success: Whether the task is solved.
            valid: Whether the action was understood and possible.
            facts: What else ``info`` holds.
        """
        self._turns += 1
        self._observation = observation
        info: dict[str, Any] = {"valid_action": valid, "obs_role": self.obs_role}
        if facts is not None:
            info |= facts
        info["success"] = success
        return observation, reward, True, False, info
