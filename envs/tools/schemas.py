"""The JSON schema of a Python function's arguments, read from its annotations and its docstring.

Supported annotations: ``str``, ``int``, ``float``, ``bool``, ``list``, ``list[T]``, ``dict``, ``dict[str, T]``,
``Literal[...]``, ``None`` and unions of these. Anything else is refused where the function is defined.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

from gspo_rllib.errors import SettingError, did_you_mean

_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
_SECTION = re.compile(r"(Args|Returns|Raises|Yields|Example|Examples|Note|Attributes):")
_ARGUMENT = re.compile(r"(\w+)(?:\s*\([^)]*\))?:\s*(.*)")


def describe(function: Callable[..., Any]) -> str:
    """What a function's docstring says before its first section.

    Raises:
        SettingError: It has no docstring.

    Example:
        >>> def add(a: int) -> int:
        ...     '''Adds one.
        ...
        ...     Args:
        ...         a: To what.
        ...     '''
        >>> describe(add)
        'Adds one.'
    """
    text = inspect.getdoc(function) or ""
    lines = []
    for line in text.splitlines():
        if _SECTION.fullmatch(line.rstrip()):
            break
        lines.append(line.rstrip())
    description = "\n".join(lines).strip()
    if not description:
        raise SettingError(
            f"tool {_name(function)!r} has no docstring; its first sentence is what the policy is told of it."
        )
    return description


def arguments_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of the arguments; those with a default need not be given.

    Args:
        function: Annotated; a first parameter called ``self`` is left out.

    Returns:
        A schema of type object that allows no other arguments.

    Raises:
        SettingError: A parameter has no annotation, an unsupported one, or cannot be passed by name; or the docstring
            describes an argument that does not exist.

    Example:
        >>> def add(a: int, b: int = 1) -> int:
        ...     '''Adds.
        ...
        ...     Args:
        ...         a: The first.
        ...     '''
        >>> arguments_schema(add)["properties"]
        {'a': {'type': 'integer', 'description': 'The first.'}, 'b': {'type': 'integer', 'default': 1}}
        >>> arguments_schema(add)["required"]
        ['a']
    """
    name = _name(function)
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise SettingError(f"tool {name!r}: its annotations cannot be read ({str(error)[:200]}).") from error
    texts = _argument_texts(function)
    properties: dict[str, Any] = {}
    required = []
    for number, parameter in enumerate(inspect.signature(function).parameters.values()):
        if number == 0 and parameter.name == "self":
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise SettingError(f"tool {name!r}: {parameter} cannot be passed by name; use ordinary parameters.")
        if parameter.name not in hints:
            raise SettingError(f"tool {name!r}: its parameter {parameter.name!r} has no annotation; add one.")
        schema = _schema(hints[parameter.name], f"tool {name!r}: its parameter {parameter.name!r}")
        if parameter.name in texts:
            schema["description"] = texts[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        elif _is_json(parameter.default):
            schema["default"] = parameter.default
        properties[parameter.name] = schema
    for unknown in texts.keys() - properties.keys():
        raise SettingError(
            f"tool {name!r}: its docstring describes {unknown!r}, which is no parameter. "
            f"{did_you_mean(unknown, properties)}"
        )
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(annotation: Any, where: str) -> dict[str, Any]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _SIMPLE:
        return {"type": _SIMPLE[annotation]}
    if annotation is type(None):
        return {"type": "null"}
    if origin is Literal:
        kinds = {_SIMPLE.get(type(value)) for value in arguments}
        if len(kinds) == 1 and None not in kinds:
            return {"type": kinds.pop(), "enum": list(arguments)}
    elif origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(part, where) for part in arguments]}
    elif origin is list:
        return {"type": "array", "items": _schema(arguments[0], where)}
    elif origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": _schema(arguments[1], where)}
    shown = getattr(annotation, "__name__", None) if origin is None else None
    raise SettingError(
        f"{where} is annotated {shown or annotation}, which has no JSON schema here. Allowed: str, int, float, bool, "
        "list[...], dict[str, ...], Literal[...] of one type, None, and unions of these."
    )


def _argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """What the section ``Args:`` says of each argument."""
    texts: dict[str, str] = {}
    inside, indent, current = False, 0, ""
    for line in (inspect.getdoc(function) or "").splitlines():
        if _SECTION.fullmatch(line.rstrip()):
            inside, indent = line.startswith("Args"), 0
        elif inside and line.strip():
            depth = len(line) - len(line.lstrip())
            indent = indent or depth
            described = _ARGUMENT.fullmatch(line.strip()) if depth == indent else None
            if described:
                current = described[1]
                texts[current] = described[2].strip()
            elif current and depth > indent:
                texts[current] = f"{texts[current]} {line.strip()}".strip()
    return texts


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
