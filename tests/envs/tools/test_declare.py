"""A typed function is a tool; what has no schema is refused where it is decorated."""

from __future__ import annotations

from typing import Literal

import pytest
from jsonschema import Draft202012Validator

from gspo_rllib.envs.tools import tool
from gspo_rllib.errors import SettingError
from tests.toy_envs.tool_envs import add, look


def test_a_function_s_signature_and_docstring_become_a_json_schema() -> None:
    assert (add.name, add.description) == ("add", "Adds two integers.\n\nOverflow is no concern.")
    assert add.parameters == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "The first."},
            "b": {"type": "integer", "description": "The second, which may be left out.", "default": 1},
        },
        "required": ["a"],
        "additionalProperties": False,
    }
    assert add(2, b=3) == 5


@pytest.mark.parametrize(
    ("arguments", "legal"),
    [
        ({}, True),
        ({"at": None, "how": "far", "places": [1, 2], "weights": {"x": 0.5, "y": 1}}, True),
        ({"at": 3}, False),
        ({"how": "wide"}, False),
        ({"places": ["1"]}, False),
        ({"weights": {"x": "heavy"}}, False),
        ({"whence": "here"}, False),
    ],
)
def test_the_schema_allows_what_the_annotations_allow(arguments, legal) -> None:
    assert look.name == "look"
    assert Draft202012Validator(look.parameters).is_valid(arguments) == legal


def _undocumented(a: int) -> int:
    return a


def _unannotated(a, b: int) -> int:  # type: ignore[no-untyped-def]
    """Adds."""
    return b


def _bytes(a: bytes) -> int:
    """Counts."""
    return len(a)


def _mixed(a: Literal["x", 1]) -> None:
    """Mixes."""


def _nested(a: list[dict[int, str]]) -> None:
    """Nests."""


def _star(*a: int) -> None:
    """Takes any number."""


def _misspelt(text: str) -> None:
    """Reads.

    Args:
        test: What to read.
    """


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (_undocumented, "'_undocumented' has no docstring"),
        (_unannotated, "parameter 'a' has no annotation"),
        (_bytes, "parameter 'a' is annotated bytes.*Allowed: str, int"),
        (_mixed, "'a' is annotated.*Literal"),
        (_nested, "'a' is annotated dict"),
        (_star, r"\*a.* cannot be passed by name"),
        (_misspelt, "describes 'test', which is no parameter. Did you mean 'text'"),
    ],
)
def test_what_has_no_schema_is_refused_where_it_is_decorated(function, complaint) -> None:
    with pytest.raises(SettingError, match=complaint):
        tool(function)


def test_a_tool_with_an_illegal_name_is_refused_where_it_is_decorated() -> None:
    with pytest.raises(SettingError, match="its name is 'no spaces'"):
        tool(name="no spaces")(add.function)
