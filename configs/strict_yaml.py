"""YAML as people read it: what PyYAML accepts in silence and means otherwise is refused, with the line.

Scalars follow YAML 1.2 (core schema): ``1e-6`` is a number, ``on`` and ``yes`` are text, ``010`` is ten, ``12:30`` is
text. Refused: duplicate keys, keys that are not text, tags, aliases, nesting deeper than 20, files over 1 MiB.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from gspo_rllib.errors import SettingError

MAX_DEPTH = 20
MAX_BYTES = 1 << 20


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader with the YAML 1.2 core schema that refuses what would be read differently than it looks."""

    depth = 0
    # Its own table: SafeLoader's holds the YAML 1.1 forms (octal 010, sexagesimal 12:30, on/off, dates, << merges).
    yaml_implicit_resolvers: dict[Any, Any] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Composes one node, unless it is an alias or lies too deep."""
        if self.check_event(yaml.AliasEvent):
            raise _refusal("aliases (*name) are not supported; write the value out", self._place())
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refusal(f"nested deeper than {MAX_DEPTH} levels", self._place())
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def _place(self) -> yaml.Mark:
        mark: yaml.Mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # PyYAML's stubs have no types
        return mark

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Builds a mapping whose keys are distinct strings."""
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refusal(f"key {key!r} is not text; put a name in quotes", key_node.start_mark)
            if key in seen:
                raise _refusal(f"duplicate key {key!r}, first on line {seen[key]}; keep one", key_node.start_mark)
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


def _refusal(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?[0-9]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _construct_int(loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 16) if text.startswith("0x") else int(text, 10)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str | bytes, *, source: str) -> Any:
    """Parses one YAML document.

    Args:
        text: The document; bytes must be UTF-8.
        source: What messages call it, e.g. the file's name.

    Returns:
        Plain dicts, lists, strings, numbers, booleans and None; None for an empty document.

    Raises:
        SettingError: The text is not YAML, or holds something from the module's list of refusals.

    Example:
        >>> parse_yaml("training: {lr: 1e-6}", source="run.yaml")
        {'training': {'lr': 1e-06}}
    """
    if len(text) > MAX_BYTES:
        raise SettingError(f"{source}: {len(text)} bytes; a config holds at most {MAX_BYTES}. Is it the right file?")
    try:
        document = text.decode("utf-8") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise SettingError(f"{source}: not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    try:
        return yaml.load(document, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        problem = str(error.problem or error.context).replace("tag:yaml.org,2002:", "!!")
        raise SettingError(f"{source}{where}: {problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SettingError(f"{source}: not readable as YAML: {' '.join(str(error).split())[:200]}") from error


def parse_value(text: str, *, source: str) -> Any:
    """Parses the right-hand side of an override, as it would read in a file.

    Raises:
        SettingError: The text is not a YAML value.

    Example:
        >>> parse_value("2e-5", source="training.lr"), parse_value("[1, true, on]", source="x")
        (2e-05, [1, True, 'on'])
    """
    return parse_yaml(text, source=source)
