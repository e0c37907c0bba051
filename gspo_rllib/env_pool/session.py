"""One environment and the calls on it: whatever it does or returns becomes an answer, and nothing raises here."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from gspo_rllib.env_pool.calls import EnvAnswer, EnvCall, EnvFailure
from gspo_rllib.env_pool.info import ContractError, is_finite, plain_info, shown_with_type
from gspo_rllib.errors import described
from gspo_rllib.types import ChatSpec

_MAX_MESSAGE = 500
_MAX_REWARD = 1e30  # advantages are float32, and so are their sums


class EnvSession:
    """One environment and the calls on it; touched by one thread only.

    Args:
        slot: The environment's slot, named in every answer.
        make: Makes the environment at the first ``reset``, and again after a failure.
        stages: What a ``reset`` with a stage has made instead.

    Attributes:
        env: The environment; None before it is made and after a failure.
    """

    start_s = 0.0

    def __init__(self, slot: int, make: Callable[[], gym.Env], stages: Sequence[Callable[[], gym.Env]] = ()) -> None:
        self._slot = slot
        self._make = make
        self._stages = stages
        self._stage: int | None = None
        self.env: gym.Env | None = None

    def answer(self, call: EnvCall) -> EnvAnswer:
        """Makes the call; whatever goes wrong is in the answer."""
        started = time.perf_counter()
        try:
            fields = self._reset(call) if call.action is None else self._step(call.action)
        except ContractError as error:
            fields = {"failure": EnvFailure("invalid", str(error))}
        except KeyboardInterrupt:
            raise
        # The one wide except: whatever an environment raises is the status of this trajectory, never a crash. Much of
        # it is no Exception: CancelledError, the time-outs of some libraries, what a panic in Rust becomes.
        except BaseException as error:  # noqa: BLE001
            fields = {"failure": EnvFailure("raised", describe_raised(error))}
        if "failure" in fields:
            self.close()
        return EnvAnswer(call.ticket, self._slot, seconds=time.perf_counter() - started, **fields)

    def close(self) -> None:
        """Closes the environment, if there is one."""
        env, self.env = self.env, None
        if env is not None:
            try:
                env.close()
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: BLE001, a broken environment may well fail to close; it is out of use anyway
                pass

    def _reset(self, call: EnvCall) -> dict[str, Any]:
        if self._stage != call.stage:
            self.close()
            self._stage = call.stage
        if self.env is None:
            self.env = self._make() if call.stage is None else self._stages[call.stage]()
        # Many environments do without options; a task is asked for only where the environment counts its tasks.
        options = {} if call.task_id is None else {"options": {"task_id": call.task_id}}
        returned = self.env.reset(seed=call.seed, **options)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise ContractError(
                f"reset() returned {shown_with_type(returned)}; it must return (observation str, info dict)."
            )
        observation, info = returned
        chat = self.env.get_wrapper_attr("chat") if self.env.has_wrapper_attr("chat") else None
        if not isinstance(chat, ChatSpec | None):
            raise ContractError(f"the attribute `chat` is {shown_with_type(chat)}; it must be a ChatSpec or None.")
        return {
            "is_reset": True,
            "observation": _text(observation, "reset"),
            "info": plain_info(info, "reset"),
            "chat": chat,
        }

    def _step(self, action: str) -> dict[str, Any]:
        assert self.env is not None, "step before reset"
        returned = self.env.step(action)
        if not (isinstance(returned, tuple) and len(returned) == 5):
            raise ContractError(
                f"step() returned {shown_with_type(returned)}; it must return (observation str, reward float, "
                "terminated bool, truncated bool, info dict)."
            )
        observation, reward, terminated, truncated, info = returned
        return {
            "observation": _text(observation, "step"),
            "reward": _finite(reward),
            "terminated": _flag(terminated, "terminated"),
            "truncated": _flag(truncated, "truncated"),
            "info": plain_info(info, "step"),
        }


def _text(value: object, call: str) -> str:
    if not isinstance(value, str):
        raise ContractError(f"{call}() returned the observation {shown_with_type(value)}; it must be a str.")
    return str.__str__(value)  # of a subclass, only the text: the class may be unknown where it is sent


def _finite(value: Any) -> float:
    if not is_finite(value):
        raise ContractError(f"step() returned the reward {shown_with_type(value)}; it must be a finite number.")
    if abs(reward := float(value)) > _MAX_REWARD:
        raise ContractError(f"step() returned the reward {reward}; it must be between -1e30 and 1e30.")
    return reward


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ContractError(f"step() returned {name}={shown_with_type(value)}; it must be True or False.")
    return bool(value)


def describe_raised(error: BaseException) -> str:
    """What was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" [{frames[-1].name}, {frames[-1].filename}:{frames[-1].lineno}]" if frames else ""
    return described(error, _MAX_MESSAGE) + where
