"""YAML without surprises: scalars as in 1.2, and a line for whatever would be misread."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gspo_rllib.configs import parse_yaml
from gspo_rllib.errors import SettingError


def _message(document: str | bytes) -> str:
    with pytest.raises(SettingError) as caught:
        parse_yaml(document, source="run.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1.0e-6", 1e-6),
        ("-.5", -0.5),
        (".inf", math.inf),
        ("010", 10),
        ("0x1F", 31),
        ("-3", -3),
        ("on", "on"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("1_000", "1_000"),
        ("True", True),
        ("~", None),
        ("null", None),
        ('"5"', "5"),
        ("[1, 2.0]", [1, 2.0]),
    ],
)
def test_scalars_read_as_in_yaml_1_2(text: str, value: Any) -> None:
    got = parse_yaml(f"key: {text}", source="run.yaml")["key"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("a:\n  b: 1\n  b: 2", "run.yaml line 3: duplicate key 'b', first on line 2; keep one"),
        ("true: 1", "run.yaml line 1: key True is not text; put a name in quotes"),
        ("a: 1\n7: 2", "run.yaml line 2: key 7 is not text; put a name in quotes"),
        ("a: &x 1\nb: *x", "run.yaml line 2: aliases (*name) are not supported; write the value out"),
        (
            "a: !!python/object/apply:os.getcwd []",
            "run.yaml line 1: could not determine a constructor for the tag '!!python/object/apply:os.getcwd'",
        ),
        ("[" * 30, "run.yaml line 1: nested deeper than 20 levels"),
        ("a:\n\tb: 1", "run.yaml line 2: found character '\\t' that cannot start any token"),
        (b"\xff\xfe", "run.yaml: not UTF-8 text (byte 0); save it as UTF-8."),
        (" " * (2 << 20), "run.yaml: 2097152 bytes; a config holds at most 1048576. Is it the right file?"),
    ],
)
def test_what_would_be_misread_is_refused_with_its_line(document: str | bytes, message: str) -> None:
    assert _message(document) == message


def test_a_tag_never_runs_code(tmp_path: Path) -> None:
    _message(f"a: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    assert not (tmp_path / "made").exists()


# Without surrogate pairs: JSON spells characters beyond U+FFFF as two escapes, YAML as one.
_text = st.text(st.characters(max_codepoint=0xD7FF), max_size=8)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_either_parses_or_is_refused_as_a_setting(document: str | bytes) -> None:
    with contextlib.suppress(SettingError):
        parse_yaml(document, source="run.yaml")


@settings(max_examples=100)
@given(st.dictionaries(_text, _values, max_size=4))
def test_a_json_document_reads_as_itself(document: dict[str, Any]) -> None:
    assert parse_yaml(json.dumps(document), source="run.yaml") == document
