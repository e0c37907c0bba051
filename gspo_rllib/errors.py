"""Every error this project raises on purpose, in one tree.

    GSPOError
    ├── SettingError(ValueError)        a setting, YAML key or builder argument is unknown or illegal
    │   ├── ArgumentError(TypeError)    a builder is called with arguments it does not take
    │   ├── UnknownSettingError(KeyError)   a dict of settings names one that does not exist
    │   └── ReadOnlyError(AttributeError)   an attribute is set that cannot be, e.g. of a built algorithm's config
    ├── EnvError(RuntimeError)          an environment breaks the language-env contract, or keeps failing
    ├── ModelError(ValueError)          a model folder cannot be used (no tokenizer, no chat template, …)
    ├── EngineError(RuntimeError)       a generation engine is missing, or refused a request
    ├── WeightSyncError(RuntimeError)   an engine does not hold the weights it was sent
    ├── CheckpointError(ValueError)     a checkpoint is incomplete, corrupt, or not one of ours
    ├── RecordError(ValueError)         a recorded group cannot be read, written or trained on
    └── NoProgressError(RuntimeError)   an iteration could not produce a single complete group
        └── RunnersLostError            … because no env runner is left, and none came back in time

Each also inherits the standard-library error a caller would expect, and survives pickling across Ray actors.
The message says what was got, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable

from gspo_rllib.secret_texts import masked


class GSPOError(Exception):
    """Base of every error raised on purpose by this project."""


class SettingError(GSPOError, ValueError):
    """A setting is unknown or has an illegal value."""


class ArgumentError(SettingError, TypeError):
    """A builder is called with arguments it does not take."""


class UnknownSettingError(SettingError, KeyError):
    """A dict of settings names one that does not exist."""

    def __str__(self) -> str:
        """The message; a KeyError's own is in quotes."""
        return ", ".join(map(str, self.args))


class ReadOnlyError(SettingError, AttributeError):
    """An attribute of a config is set that cannot be: an algorithm was built with it, or others say what it is."""


class EnvError(GSPOError, RuntimeError):
    """An environment breaks the language-env contract, or keeps failing."""


class ModelError(GSPOError, ValueError):
    """A model folder or hub name cannot be used for chat-style generation."""


class EngineError(GSPOError, RuntimeError):
    """A generation engine is not installed, cannot start, or refused a request."""


class EngineLostError(EngineError):
    """The process that an engine keeps beside its own was killed; another engine may do."""


class WeightSyncError(GSPOError, RuntimeError):
    """An engine does not hold the weights that were sent to it."""


class CheckpointError(GSPOError, ValueError):
    """A checkpoint is incomplete, corrupt, or was not written by this project."""


class RecordError(GSPOError, ValueError):
    """A recorded group cannot be read, written or trained on."""


class NoProgressError(GSPOError, RuntimeError):
    """An iteration could not produce a single complete trajectory group."""


class RunnersLostError(NoProgressError):
    """No env runner is left, and none came back in time; what was drawn is kept for a resumed run."""


class LearnersLostError(GSPOError, RuntimeError):
    """The learners failed, and rebuilding them did not help, or was not possible."""


def own_error(error: BaseException) -> GSPOError | None:
    """The error of our own tree behind an exception, looking through Ray's wrappers; None if there is none."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return None
        remote = getattr(seen, "cause", None)
        if isinstance(remote, GSPOError):
            return remote
        if isinstance(seen, GSPOError):
            return seen
        seen = remote if isinstance(remote, BaseException) else seen.__cause__
    return None


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """A sentence that helps after a misspelt name: the nearest allowed name, or all of them.

    Example:
        >>> did_you_mean("group_sise", ["group_size", "lr"])
        "Did you mean 'group_size'?"
        >>> did_you_mean("x", ["b", "a"])
        'Allowed: a, b.'
        >>> did_you_mean("x", [])
        'There is none.'
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(got, names, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Allowed: {', '.join(names)}." if names else "There is none."


def described(error: BaseException, most: int = 500) -> str:
    """What foreign code raised, in a line that is never long and never fails: its ``__str__`` may raise, too.

    Args:
        error: What was raised.
        most: Length to which its message is cut, in characters.

    Example:
        >>> class Mute(Exception):
        ...     def __str__(self):
        ...         raise RuntimeError("no words")
        >>> described(KeyError("gold")), described(Mute()), described(ValueError("x" * 9), 3)
        ("KeyError: 'gold'", 'Mute: (its message cannot be shown: RuntimeError)', 'ValueError: xxx…')
    """
    message = _text_of(error, str, "its message", most)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def shown(value: object, most: int = 100) -> str:
    r"""What foreign code returned, likewise; its type is named where the text is cut.

    Example:
        >>> shown([1]), shown("x" * 9, 3), shown(type("Rows", (), {"__repr__": lambda self: "a\nb"})())
        ('[1]', "'xx… (str)", 'a b')
    """
    text = _text_of(value, lambda it: " ".join(repr(it).splitlines()), "it", most)
    return f"{text} ({type(value).__name__})" if text.endswith("…") else text


def repeated(names: Iterable[str]) -> dict[str, int]:
    """How often those names are there that are there more than once; readers of JSON and CSV take the last in silence.

    Example:
        >>> repeated(["a", "b", "c", "b", "a"])
        {'a': 2, 'b': 2}
    """
    return {name: count for name, count in Counter(names).items() if count > 1}


def _text_of(value: object, words: Callable[[object], str], what: str, most: int) -> str:
    try:
        # Before it is cut, so that no half of a secret is left.
        text = masked(words(value))
        text = text if len(text) <= most else f"{text[:most]}…"
        return text.encode("utf-8", "backslashreplace").decode()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001, foreign code that fails to say what went wrong
        return f"({what} cannot be shown: {type(error).__name__})"
