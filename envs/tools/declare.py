"""Tools: functions that a policy may call by writing down their name and arguments.

``@tool`` makes one of a typed Python function; ``env.ToolEnv`` makes an environment of some.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, overload

from gspo_rllib.envs.tools.schemas import arguments_schema, describe
from gspo_rllib.types import ChatSpec


@dataclass(frozen=True)
class Tool:
    """A function the policy may call; made by ``@tool``, or by hand where the schema comes from elsewhere.

    Attributes:
        name: The name by which the policy calls the tool.
        description: What the policy is told about the tool.
        parameters: JSON schema of the arguments.
        function: Takes the arguments by name. A ``str`` result is shown as it is, any other as JSON.
        blocking: Whether a call may take longer than a millisecond, so that its environment needs a thread.
        is_method: Whether the function's first parameter is the ``self`` it is yet to be bound to.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    function: Callable[..., Any]
    blocking: bool = False
    is_method: bool = False

    def declaration(self) -> dict[str, Any]:
        """The tool as ``ChatSpec.tools`` lists it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.function(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Tool:
        if instance is None or not self.is_method:
            return self
        return replace(self, function=types.MethodType(self.function, instance), is_method=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle stores a function by its name, and the name of a decorated function is that of the tool. So the tool is
        # stored by its name instead.
        if inspect.ismethod(self.function):
            return getattr, (self.function.__self__, self.function.__name__)
        home, name = getattr(self.function, "__module__", ""), getattr(self.function, "__qualname__", "")
        if home and home != "__main__" and _find(home, name) is self:
            return _find, (home, name)
        return Tool, (self.name, self.description, self.parameters, self.function, self.blocking, self.is_method)


def _find(module: str, name: str) -> Any:
    """The object of that qualified name; imports the module where a fresh process has not."""
    if module not in sys.modules:
        __import__(module)
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    return found


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(*, name: str | None = None, blocking: bool = False) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None, /, *, name: str | None = None, blocking: bool = False
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Makes a tool of a typed function, or method, with a docstring.

    Args:
        function: The function; its annotations and the ``Args:`` of its docstring become the JSON schema.
        name: The tool's name; None for the function's.
        blocking: Whether a call may take longer than a millisecond.

    Raises:
        SettingError: There is no docstring, or an annotation is missing or unsupported.

    Example:
        >>> @tool
        ... def add(a: int, b: int) -> int:
        ...     '''Adds two integers.'''
        ...     return a + b
        >>> add.name, add.parameters["required"], add(1, 2)
        ('add', ['a', 'b'], 3)
    """
    if function is None:
        return lambda decorated: _make_tool(decorated, name, blocking)
    return _make_tool(function, name, blocking)


def _make_tool(function: Callable[..., Any], name: str | None, blocking: bool) -> Tool:
    first = next(iter(inspect.signature(function).parameters), None)
    is_method = first == "self" and not inspect.ismethod(function)
    made = Tool(
        name or function.__name__, describe(function), arguments_schema(function), function, blocking, is_method
    )
    ChatSpec(tools=(made.declaration(),))  # refuses an illegal name here rather than at the first environment
    return made


def tools_of(owner: Any) -> tuple[Tool, ...]:
    """The ``@tool`` methods of an object, bound to it, in the order they were written.

    Example:
        >>> class Notes:
        ...     def __init__(self):
        ...         self.lines = []
        ...     @tool
        ...     def write(self, line: str) -> int:
        ...         '''Writes a line down and says how many there are.'''
        ...         self.lines.append(line)
        ...         return len(self.lines)
        >>> (write,) = tools_of(Notes())
        >>> write(line="a"), write(line="b")
        (1, 2)
    """
    found: dict[str, bool] = {}
    for ancestor in reversed(type(owner).__mro__):
        for name, value in vars(ancestor).items():
            if (isinstance(value, Tool) and value.is_method) or name in found:
                found[name] = isinstance(value, Tool)
    return tuple(getattr(owner, name) for name, is_tool in found.items() if is_tool)
