"""What the parts of a setting's value must be, for values that have parts: schedules, weights, mappings.

Each function says what is allowed where a value is something else, and returns None where it is right. A knob names
one as its ``form``, so that the config, the command line and the documents know one rule.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from gspo_rllib.knobs import LARGEST_COUNT, plain

Form = Callable[[Any], str | None]

LONGEST_WAIT_S = 31_536_000.0
"""Longest time-out, a year; waiting for much longer is an error of the operating system's."""


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number, and no flag.

    Example:
        >>> is_finite(2), is_finite(True), is_finite(float("nan")), is_finite("2"), is_finite(10**400)
        (True, False, False, False, False)
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def schedule(*, highest: float) -> Form:
    """A schedule ``[[0, value], [timestep, value], ...]``, as RLlib's are written.

    Args:
        highest: Largest value.

    Example:
        >>> schedule(highest=1.0)([[0, 1e-6], [1000, 1e-5]])
        >>> schedule(highest=1.0)([[5, 1e-6], [1000, 1e-5]])
        'a number, or a schedule [[0, first], [timestep, next], ...] of timesteps that grow and numbers from 0 to 1'
    """
    expected = (
        "a number, or a schedule [[0, first], [timestep, next], ...] of timesteps that grow and numbers from 0 to "
        f"{highest:g}"
    )

    def form(value: Any) -> str | None:
        points = list(value) if isinstance(value, (list, tuple)) else []
        pairs = [point for point in points if isinstance(point, (list, tuple)) and len(point) == 2]
        if len(pairs) < 2 or len(pairs) < len(points) or not all(is_finite(part) for pair in pairs for part in pair):
            return expected
        steps = [step for step, _ in pairs]
        grows = steps[0] == 0 and all(earlier < later for earlier, later in itertools.pairwise(steps))
        whole = all(step == int(step) and step <= 2**63 for step in steps)
        return None if grows and whole and all(0.0 <= number <= highest for _, number in pairs) else expected

    return form


def word(value: Any) -> str | None:
    """A name of something.

    Example:
        >>> word("inductor"), word(3)
        (None, 'a name, as text')
    """
    return None if isinstance(value, str) and value else "a name, as text"


def two_decays(value: Any) -> str | None:
    """A pair of numbers, each at least 0 and below 1.

    Example:
        >>> two_decays((0.9, 0.999)), two_decays([0.9, 1.0])
        (None, 'two numbers, each >= 0 and < 1')
    """
    right = len(value) == 2 and all(is_finite(part) and 0.0 <= part < 1.0 for part in value)
    return None if right else "two numbers, each >= 0 and < 1"


def weights(value: Any) -> str | None:
    """Names and their weights.

    Example:
        >>> weights({"correct": 1.0}), weights({"correct": "1"}) is None, weights({})
        (None, False, None)
    """
    if all(isinstance(name, str) and name and is_finite(part) and abs(part) <= 1e6 for name, part in value.items()):
        return None
    return "names of reward parts and their weights, finite numbers up to 1e6, e.g. {'correct': 1.0, 'format': 0.2}"


def named(value: Any) -> str | None:
    """A mapping whose keys are text.

    Example:
        >>> named({"enable_thinking": False}), named({1: 2})
        (None, 'a mapping whose keys are names (text)')
    """
    right = isinstance(value, Mapping) and all(isinstance(name, str) and name for name in value)
    return None if right else "a mapping whose keys are names (text)"


def amounts(value: Any) -> str | None:
    """Names of resources and how much of each.

    Example:
        >>> amounts({"tpu": 1}), amounts({"tpu": -1}) is None, amounts([1]) is None
        (None, False, False)
    """
    if named(value) is None and all(is_finite(part) and 0 <= part <= LARGEST_COUNT for part in value.values()):
        return None
    return "a mapping of resources' names to numbers >= 0, e.g. {'accelerator': 1}"


def text(value: Any) -> str | None:
    """Text with something in it.

    Example:
        >>> text("cuda:0"), text(" ")
        (None, 'text that is not empty')
    """
    return None if isinstance(value, str) and value.strip() and "\0" not in value else "text that is not empty"


def torch_device(value: Any) -> str | None:
    """The name of a torch device, whether or not this machine has it.

    Example:
        >>> torch_device("cuda:1"), torch_device("gpu")
        (None, "the name of a torch device, e.g. 'cpu' or 'cuda:0'")
    """
    import torch

    try:
        torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        return "the name of a torch device, e.g. 'cpu' or 'cuda:0'"
    return None


def functions(value: Any) -> str | None:
    """A function or class, or a list of them.

    Example:
        >>> functions(print), functions([print, print]), functions("print")
        (None, None, 'a function or class, or a list of them')
    """
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    return None if all(map(callable, parts)) else "a function or class, or a list of them"


def function(value: Any) -> str | None:
    """A function or class.

    Example:
        >>> function(print), function([print])
        (None, 'a function or class')
    """
    return None if callable(value) else "a function or class"


def overriding(value: Any) -> str | None:
    """Settings that replace others, or a whole config.

    Example:
        >>> overriding({"explore": False}), overriding([])
        (None, 'a mapping of settings and their values, or a config')
    """
    if hasattr(value, "to_dict") and not isinstance(value, type):
        return None
    return "a mapping of settings and their values, or a config" if named(value) else None


def folder_name(value: Any) -> str | None:
    """Text that a folder's name may begin with: some file systems end names at 255 bytes, and more is added to it.

    Example:
        >>> folder_name("a run"), folder_name("x" * 300), folder_name("../run")
        (None, 'text of at most 200 characters', "the name of a folder, without '/'")
    """
    if text(value) is not None or len(value.encode(errors="replace")) > 200:
        return "text of at most 200 characters"
    return "the name of a folder, without '/'" if "/" in value else None
