"""One environment, played with every answer checked against the language-environment contract."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeAlias, get_args

import gymnasium
import numpy as np

from gspo_rllib.errors import EnvError, GSPOError, described
from gspo_rllib.types import TruncatedBy

Env: TypeAlias = "gymnasium.Env[str, str]"
Step = tuple[str, float, bool, bool, dict[str, Any]]

TRUNCATION_REASONS = get_args(TruncatedBy)
EXPERT_REMEDY = (
    "correct the expert, or leave expert() out; a wrapper that changes what is said needs an expert() of its own, or "
    "expert = None"
)


def broken(name: str, what: str, remedy: str) -> NoReturn:
    """Raises the error that every broken promise ends in.

    Raises:
        EnvError: Always.
    """
    raise EnvError(f"{name} breaks the language-environment contract: {what}. Remedy: {remedy}.")


class CheckedPlay:
    """Plays an environment and raises where an answer is not what the contract allows.

    Args:
        name: How messages call the environment.
        env: The environment.
    """

    def __init__(self, name: str, env: Env) -> None:
        self.name, self.env = name, env

    def play(self, actions: Iterable[str], *, seed: int, options: dict[str, Any] | None = None) -> list[Any]:
        """The answers to ``reset`` and to each action, until the episode or the actions end.

        Without ``info["episode"]``, where Gymnasium's ``RecordEpisodeStatistics`` writes the seconds an episode took.
        """
        answers: list[Any] = [self.reset(seed=seed, options=options), *self.steps(actions)]
        return [[*said, {key: info[key] for key in info if key != "episode"}] for *said, info in answers]

    def attribute(self, name: str) -> Any:
        """An attribute of the environment or of what it wraps, found as an env runner finds it; None if missing."""
        return self.env.get_wrapper_attr(name) if self.env.has_wrapper_attr(name) else None

    def expert_policy(self) -> Callable[[str], str] | None:
        """A new policy of the environment's expert for the task at hand, None where there is no expert."""
        make = self.attribute("expert")
        if not callable(make):
            return None
        policy: Callable[[str], str] = self._ask_expert(make)

        def checked(observation: str) -> str:
            action = self._ask_expert(policy, observation)
            if not isinstance(action, str):
                self._fail(f"its expert answers {short(observation)} with {short(action)}", "return a str")
            return action

        return checked

    def steps(self, actions: Iterable[str]) -> Iterator[Step]:
        """The answer to each action, until the episode or the actions end."""
        for action in actions:
            step = self.step(action)
            yield step
            if step[2] or step[3]:
                return

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """``env.reset``, checked."""
        try:
            returned: Any = self.env.reset(seed=seed, options=options)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001, whatever it raises is the finding
            self._fail(f"reset(seed={seed}, options={options}) raises {described(error)}", "correct it")
        if not (isinstance(returned, tuple) and len(returned) == 2):
            self._fail(f"reset returns {short(returned)}", "return (observation str, info dict)")
        observation, info = returned
        self._check_text(observation, "reset")
        self._check_info(info, "reset")
        return observation, info

    def step(self, action: str) -> Step:
        """``env.step``, checked."""
        try:
            returned: Any = self.env.step(action)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001, whatever it raises is the finding
            self._fail(
                f"step({short(action)}) raises {described(error, 200)}",
                "answer any text with an observation; an action that cannot be understood costs a turn",
            )
        if not (isinstance(returned, tuple) and len(returned) == 5):
            self._fail(
                f"step returns {short(returned)}",
                "return (observation str, reward float, terminated bool, truncated bool, info dict)",
            )
        observation, reward, terminated, truncated, info = returned
        self._check_text(observation, "step")
        if isinstance(reward, bool) or not isinstance(reward, (int, float, np.number)) or not math.isfinite(reward):
            self._fail(f"step returns the reward {reward!r}", "return a finite float")
        for flag, value in (("terminated", terminated), ("truncated", truncated)):
            # What is not False itself is taken for a truncation by Gymnasium's own checker.
            if not isinstance(value, bool if flag == "truncated" else (bool, np.bool_)):
                self._fail(f"step returns {flag}={value!r}", f"return True or False, e.g. bool({flag})")
        self._check_info(info, "step")
        self._check_step_info(info, bool(truncated))
        return observation, float(reward), bool(terminated), bool(truncated), info

    def _ask_expert(self, asked: Callable[..., Any], *observation: str) -> Any:
        try:
            return asked(*observation)
        except (GSPOError, KeyboardInterrupt):
            raise  # the first says by itself what is wrong, e.g. that this setting has no expert
        except BaseException as error:  # noqa: BLE001, whatever it raises is the finding
            self._fail(f"its expert raises {described(error, 200)}", EXPERT_REMEDY)

    def _fail(self, what: str, remedy: str) -> NoReturn:
        broken(self.name, what, remedy)

    def _check_text(self, observation: Any, call: str) -> None:
        if not isinstance(observation, str):
            self._fail(f"{call} returns the observation {short(observation)}", "return a str")

    def _check_info(self, info: Any, call: str) -> None:
        if not isinstance(info, dict):
            self._fail(f"{call} returns the info {short(info)}", "return a dict")
        try:
            json.dumps(info, default=plain_number)
        except (TypeError, ValueError) as error:
            self._fail(
                f"the info of {call} is not plain data: {error}", "keep str, numbers, bool, None, lists and dicts"
            )

    def _check_step_info(self, info: dict[str, Any], truncated: bool) -> None:
        allowed: dict[str, Callable[[Any], bool]] = {
            "valid_action": _is_flag,
            "success": _is_flag,
            "obs_role": lambda value: value in ("user", "tool"),
            "truncated_by": lambda value: truncated and value in TRUNCATION_REASONS,
            "reward_parts": _is_numbers,
            "metrics": _is_numbers,
        }
        meaning = {
            "valid_action": "True or False",
            "success": "True or False",
            "obs_role": "'user' or 'tool'",
            "truncated_by": f"one of {', '.join(TRUNCATION_REASONS)}, and only when truncated",
            "reward_parts": "{name: finite float}",
            "metrics": "{name: finite float}",
        }
        for key, is_allowed in allowed.items():
            if key in info and not is_allowed(info[key]):
                self._fail(f'info["{key}"] is {short(info[key])}', f"make it {meaning[key]}")


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and _is_finite(value[key]) for key in value)


def _is_finite(value: Any) -> bool:
    # Not math.isfinite, which has no answer for an integer beyond all floats.
    if not isinstance(value, (int, float, np.number, np.bool_)):
        return False
    size: Any = abs(value)
    return bool(size < math.inf)


def _is_flag(value: Any) -> bool:
    return value is None or (isinstance(value, (bool, int, float, np.bool_, np.number)) and value in (0, 1))


def plain_number(value: Any) -> Any:
    """For ``json.dumps(default=…)``: numbers of numpy's are plain data, as a run takes them.

    Raises:
        TypeError: It is anything else.
    """
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"it holds {short(value)}, a {type(value).__name__}")


def short(value: Any) -> str:
    """The repr of a value, cut off where it gets long."""
    text = repr(value)
    return f"{text[:120]}…" if len(text) > 120 else text
