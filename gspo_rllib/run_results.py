"""The results that a run has left in its ``result.json``, and a result as one flat mapping."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SAMPLING = "timers/env_runner_sampling_timer"
"""Key of a flat result: seconds of an iteration in which the learners had groups sampled, or waited for them."""


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results a run has left so far, oldest first; a line that was being written when it was killed is no result.

    Args:
        folder: The run's folder; there are none where it is new.
    """
    return list(iter_results(folder))


def iter_results(folder: Path) -> Iterator[dict[str, Any]]:
    """``read_results``, one at a time: those of a long run are hundreds of megabytes.

    Args:
        folder: The run's folder; there are none where it is new.
    """
    file = folder / "result.json"
    if file.is_file():
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    result = json.loads(line)
                except json.JSONDecodeError:
                    return
                yield result


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins nested keys with ``/`` and turns numpy scalars into Python's.

    Example:
        >>> flatten({"env_runners": {"episode_return_mean": 0.5}, "done": False})
        {'env_runners/episode_return_mean': 0.5, 'done': False}
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}/")
        else:
            flat[name] = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    return flat


def tokens_per_second(flat: Mapping[str, Any]) -> float:
    """Tokens the policy sampled per second of sampling, of a flat result; NaN where either is missing.

    Example:
        >>> tokens_per_second({"env_runners/num_tokens_sampled": 100, "timers/env_runner_sampling_timer": 2.0})
        50.0
    """
    tokens, seconds = flat.get("env_runners/num_tokens_sampled"), flat.get(SAMPLING)
    return tokens / seconds if tokens is not None and seconds else math.nan
