"""What native environments share: checked settings, and tasks that can be asked for by name.

``reset(options={"task_id": …})`` plays the task of that name; otherwise ``seed`` picks one. Tasks that are too long to
write down have a number, from which they are built.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gspo_rllib.errors import EnvError, SettingError

NUM_TASKS = 2**31
"""How many numbered tasks an environment has."""


def checked_integer(name: str, value: Any, least: int, most: int) -> int:
    """A setting that is an integer in a range.

    Args:
        name: How the setting is called in the message.
        value: What the user gave.
        least: Smallest legal value.
        most: Largest legal value.

    Raises:
        SettingError: It is no integer, or out of range.

    Example:
        >>> checked_integer("rooms", 8, 2, 40)
        8
        >>> checked_integer("rooms", 99, 2, 40)
        Traceback (most recent call last):
        gspo_rllib.errors.SettingError: rooms=99: must be an integer from 2 to 40.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SettingError(f"{name}={value!r}: must be an integer from {least} to {most}.")
    return value


def requested_task(options: dict[str, Any] | None) -> str | None:
    """The task that ``reset(options=…)`` asks for, None where it leaves the choice to the seed.

    Raises:
        EnvError: It is not a string.

    Example:
        >>> requested_task({"task_id": "17"}), requested_task({}), requested_task(None)
        ('17', None, None)
    """
    task_id = (options or {}).get("task_id")
    if task_id is not None and not isinstance(task_id, str):
        raise unknown_task(task_id, "a str")
    return task_id


def unknown_task(task_id: Any, allowed: str) -> EnvError:
    """The error for a task that does not exist.

    Args:
        task_id: What was asked for.
        allowed: Which tasks there are, in words.

    Example:
        >>> raise unknown_task("x", "a number from 1 to 16")
        Traceback (most recent call last):
        gspo_rllib.errors.EnvError: task_id='x': no such task. Allowed: a number from 1 to 16.
    """
    shown = repr(task_id)
    shown = f"{shown[:60]}…" if len(shown) > 60 else shown
    return EnvError(f"task_id={shown}: no such task. Allowed: {allowed}.")


def numbered_task(options: dict[str, Any] | None, random: np.random.Generator, count: int = NUM_TASKS) -> int:
    """The number of the task to play: the one asked for, else a random one.

    Args:
        options: What ``reset()`` was given.
        random: Draws a number if none is asked for.
        count: How many tasks there are; they have the numbers from 0 on.

    Raises:
        EnvError: What is asked for is no number of a task.

    Example:
        >>> numbered_task({"task_id": "17"}, np.random.default_rng(0))
        17
        >>> numbered_task({"task_id": "017"}, np.random.default_rng(0))
        Traceback (most recent call last):
        gspo_rllib.errors.EnvError: task_id='017': no such task. Allowed: a number from '0' to '2147483647'.
    """
    task_id = requested_task(options)
    if task_id is None:
        return int(random.integers(count))
    digits = task_id.isascii() and task_id.isdigit() and len(task_id) <= len(str(count))
    if digits and str(int(task_id)) == task_id and int(task_id) < count:
        return int(task_id)
    raise unknown_task(task_id, f"a number from '0' to '{count - 1}'")
