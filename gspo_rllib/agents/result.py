"""What an agent returns at the end of its trajectory."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from gspo_rllib.errors import EnvError, shown
from gspo_rllib.types import TruncatedBy


@dataclass(frozen=True, slots=True)
class AgentResult:
    """The outcome of one trajectory; an agent that has nothing more to say returns the reward alone.

    Attributes:
        reward: Reward of the trajectory, finite; it counts for the last turn.
        call_rewards: Rewards of single calls beside that, in the order in which the calls were made; one for each, or
            none at all. The return is their sum and ``reward``.
        success: Whether the task was solved; None where there is no such thing.
        reward_parts: What the reward is made of, for ``advantage_estimator="reward_parts"``.
        truncated_by: What cut the trajectory short; None where it ended by itself.

    Example:
        >>> AgentResult(1.0, success=True).reward
        1.0
    """

    reward: float
    call_rewards: Sequence[float] = ()
    success: bool | None = None
    reward_parts: Mapping[str, float] | None = None
    truncated_by: TruncatedBy | None = None


def checked_result(returned: Any, *, num_calls: int) -> AgentResult:
    """What an agent returned, as a result.

    Args:
        returned: A number or an ``AgentResult``, untrusted.
        num_calls: Calls of the trajectory.

    Raises:
        EnvError: It is something else, a reward is not a finite number, or the agent never called the policy.

    Example:
        >>> checked_result(1, num_calls=2)
        AgentResult(reward=1.0, call_rewards=(), success=None, reward_parts=None, truncated_by=None)
        >>> checked_result("1", num_calls=2)
        Traceback (most recent call last):
        gspo_rllib.errors.EnvError: the agent returned '1'; it must return a finite number or an AgentResult.
    """
    if num_calls == 0:
        raise EnvError("the agent returned without having received a single reply of the policy: nothing to train on.")
    if isinstance(returned, AgentResult):
        return checked_fields(returned, num_calls=num_calls)
    if not _is_finite(returned):
        raise EnvError(f"the agent returned {shown(returned)}; it must return a finite number or an AgentResult.")
    return AgentResult(float(returned))


def checked_fields(result: AgentResult, *, num_calls: int | None, owner: str = "AgentResult.") -> AgentResult:
    """A result with plain values.

    Args:
        result: The result, its fields untrusted.
        num_calls: Calls of the trajectory; None where they are counted later.
        owner: Leads the names of fields in messages.

    Raises:
        EnvError: A field is not what it must be.
    """
    if not _is_finite(result.reward):
        raise EnvError(f"{owner}reward is {shown(result.reward)}; it must be a finite number.")
    rewards = result.call_rewards
    if not isinstance(rewards, Sequence) or isinstance(rewards, str) or not all(map(_is_finite, rewards)):
        raise EnvError(f"{owner}call_rewards is {shown(rewards)}; it must be a list of finite numbers.")
    if num_calls is not None and len(rewards) not in (0, num_calls):
        raise EnvError(f"{owner}call_rewards has {len(rewards)} rewards for {num_calls} calls; give one for each.")
    if not math.isfinite(float(result.reward) + sum(map(float, rewards))):
        raise EnvError(f"{owner}reward and call_rewards add up to more than a number can hold.")
    if not isinstance(result.success, bool | np.bool_ | None):
        raise EnvError(f"{owner}success is {shown(result.success)}; it must be True, False or None.")
    parts = result.reward_parts
    if parts is not None and not (
        isinstance(parts, Mapping) and all(isinstance(k, str) and _is_finite(v) for k, v in parts.items())
    ):
        raise EnvError(f"{owner}reward_parts is {shown(parts)}; it must be a mapping of names to finite numbers.")
    if result.truncated_by is not None and result.truncated_by not in get_args(TruncatedBy):
        allowed = ", ".join(map(repr, get_args(TruncatedBy)))
        raise EnvError(f"{owner}truncated_by is {shown(result.truncated_by)}; allowed: {allowed}, or None.")
    return AgentResult(
        float(result.reward),
        tuple(map(float, rewards)),
        None if result.success is None else bool(result.success),
        None if parts is None else {name: float(value) for name, value in parts.items()},
        result.truncated_by,
    )


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
