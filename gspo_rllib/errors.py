"""Every error this project raises on purpose, in one tree.

    GSPOError
    ├── SettingError(ValueError)        a setting, YAML key or builder argument is unknown or illegal
    ├── EnvError(RuntimeError)          an environment breaks the language-env contract, or keeps failing
    ├── ModelError(ValueError)          a model folder cannot be used (no tokenizer, no chat template, …)
    ├── EngineError(RuntimeError)       a generation engine is missing, or refused a request
    ├── WeightSyncError(RuntimeError)   an engine does not hold the weights it was sent
    ├── CheckpointError(ValueError)     a checkpoint is incomplete, corrupt, or not one of ours
    └── NoProgressError(RuntimeError)   an iteration could not produce a single complete group

Each also inherits the standard-library error a caller would expect, and survives pickling across Ray actors.
The message says what was got, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GSPOError(Exception):
    """Base of every error raised on purpose by this project."""


class SettingError(GSPOError, ValueError):
    """A setting is unknown or has an illegal value."""


class EnvError(GSPOError, RuntimeError):
    """An environment breaks the language-env contract, or keeps failing."""


class ModelError(GSPOError, ValueError):
    """A model folder or hub name cannot be used for chat-style generation."""


class EngineError(GSPOError, RuntimeError):
    """A generation engine is not installed, cannot start, or refused a request."""


class WeightSyncError(GSPOError, RuntimeError):
    """An engine does not hold the weights that were sent to it."""


class CheckpointError(GSPOError, ValueError):
    """A checkpoint is incomplete, corrupt, or was not written by this project."""


class NoProgressError(GSPOError, RuntimeError):
    """An iteration could not produce a single complete trajectory group."""


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """A sentence that helps after a misspelt name: the nearest allowed name, or all of them.

    Example:
        >>> did_you_mean("group_sise", ["group_size", "lr"])
        "Did you mean 'group_size'?"
        >>> did_you_mean("x", ["b", "a"])
        'Allowed: a, b.'
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(got, names, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Allowed: {', '.join(names)}."
