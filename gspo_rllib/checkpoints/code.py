"""Which classes and functions a checkpoint may name: those of this package, and what the caller has given.

A checkpoint from someone else may name anything that can be imported, and importing runs it: a file that came with the
checkpoint, for one. So a name is looked up only where the caller has said that it may be:

- classes that this package itself defines, of the kind that is asked for;
- what this process has used in a config, or was given to ``register``;
- what the caller lists in ``trust``: the object, its ``module:name``, or a module with all below it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

from gspo_rllib.errors import CheckpointError, described, shown

OWN = "gspo_rllib"
_registered: dict[str, Any] = {}
_registered_modules: set[str] = set()


def register(*things: Any) -> None:
    """Lets checkpoints that this process loads name these, as long as it runs.

    Args:
        things: Classes and functions, or the names of modules, all below which may be named then.
    """
    for thing in things:
        name = None if isinstance(thing, str) else name_of(thing)
        if isinstance(thing, str):
            _registered_modules.add(thing)
        elif name is not None:
            _registered[name] = thing


def name_of(thing: Any) -> str | None:
    """``module:name`` of a class or function; None where that would not find it again, as with a lambda.

    Example:
        >>> name_of(register), name_of(lambda: 0)
        ('gspo_rllib.checkpoints.code:register', None)
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is thing else None


class Trust:
    """What one caller lets a checkpoint name.

    Args:
        things: Classes, functions, names of modules and ``module:name``, and names of settings that reach outside.
    """

    def __init__(self, things: Iterable[Any] = ()) -> None:
        if isinstance(things, str):
            things = [things]
        self._things = list(things)
        self._words = {thing for thing in self._things if isinstance(thing, str)}
        self._objects = {f"{o.__module__}:{o.__qualname__}": o for o in self._things if hasattr(o, "__qualname__")}

    def allows(self, word: str) -> bool:
        """Whether a setting that reaches outside was listed."""
        return word in self._words

    def allows_module(self, module: str) -> bool:
        """Whether a module, or one above it, may be imported for a checkpoint."""
        parts = module.split(".")
        names = {".".join(parts[: i + 1]) for i in range(len(parts))}
        return module == f"{OWN}.envs" or bool(names & (self._words | _registered_modules))

    def find(self, name: Any, *, kind: type | None, what: str, where: str) -> Any:
        """The class or function of a name.

        Args:
            name: ``module:name``.
            kind: What it must be a subclass of; None for any function.
            what: The setting that names it.
            where: The checkpoint.

        Raises:
            CheckpointError: It may not be named, is not found, or is of another kind.
        """
        found = self._known(name, kind=kind, what=what, where=where)
        if kind is not None and not (isinstance(found, type) and issubclass(found, kind)):
            raise CheckpointError(f"checkpoint {where}: its {what} is {shown(name)}, which is no {kind.__name__}.")
        return found

    def _known(self, name: Any, *, kind: type | None, what: str, where: str) -> Any:
        if not isinstance(name, str) or ":" not in name:
            raise CheckpointError(f"checkpoint {where}: its {what} is {shown(name)}; expected 'module:name'.")
        given = self._objects.get(name, _registered.get(name))
        if given is not None:
            return given
        module, _, attributes = name.partition(":")
        own = kind is not None and (module == OWN or module.startswith(f"{OWN}."))
        if not (own or name in self._words or self.allows_module(module)):
            raise CheckpointError(refusal(where, what, name, module))
        try:
            found: Any = importlib.import_module(module)
            for part in attributes.split("."):
                found = getattr(found, part)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a module of the user's may raise anything while it is imported
            raise CheckpointError(
                f"checkpoint {where}: its {what} is {shown(name)}, which cannot be imported ({described(error, 200)}). "
                "Make its module importable, or give the config again: from_checkpoint(path, config=...)."
            ) from error
        # The one a module defines, and not what it imports: `json` is to be had through most modules, `os` too.
        if (getattr(found, "__module__", None), getattr(found, "__qualname__", None)) != (module, attributes):
            raise CheckpointError(
                f"checkpoint {where}: its {what} is {shown(name)}, which {module} does not define itself. Give the "
                "object: from_checkpoint(path, trust=[...])."
            )
        return found


def refusal(where: str, what: str, name: str, module: str) -> str:
    """Why code that a checkpoint names is not run, and how the caller has it run."""
    return (
        f"checkpoint {where}: its {what} is {shown(name)}, code that nobody here has vouched for. If it is yours, say "
        f"so: from_checkpoint(path, trust=[{module!r}]), or --trust {module} on the command line; or give the config "
        "again, from_checkpoint(path, config=...)."
    )
