"""The page is one file that asks for nothing, and what is shown in it is never part of its code."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html.parser
import json
import re
from typing import Any

import numpy as np
import pytest

from gspo_rllib.view.page import page
from tests.view.rows import make_row, make_source, make_turn

HOSTILE = "</script><script>hacked()</script><img src=x onerror=hacked()>\u2028\u2029\x1b[2J@DATA@@PROGRAM@<!--"


class _Elements(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def _block(text: str, name: str) -> Any:
    found = re.search(rf'id="{name}">([A-Za-z0-9+/=]*)</script>', text)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def _between(text: str, tag: str) -> str:
    return text.rpartition(f"<{tag}>")[2].partition(f"</{tag}>")[0]


def test_what_is_shown_is_no_part_of_the_document() -> None:
    plain = page([make_source(make_row())], title="run")
    row = make_row(HOSTILE, truncated_by=HOSTILE, last_observation=HOSTILE)
    row["turns"] = [make_turn(observation=HOSTILE, reply=HOSTILE, finish_reason=HOSTILE)]
    hostile = page([make_source(row, name=HOSTILE)], title=HOSTILE)
    assert [tag for tag, _ in _Elements(hostile).tags] == [tag for tag, _ in _Elements(plain).tags]
    assert _between(hostile, "script") == _between(plain, "script")
    assert "hacked()</script>" not in hostile and "<img" not in hostile
    (detail,) = _block(hostile, "chunk0")
    assert detail["last"] == detail["turns"][0]["observation"] == HOSTILE
    assert _block(hostile, "index")["lines"][0][2] == HOSTILE


def test_the_page_names_no_other_place_and_its_policy_lets_only_its_own_program_run() -> None:
    text = page([make_source(make_row())], title="run")
    for tag, attributes in _Elements(text).tags:
        assert not attributes.keys() & {"src", "href", "action", "style", "srcset", "data"}, tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    policy = next(a["content"] for t, a in _Elements(text).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; script-src 'sha256-")
    for kind, tag in (("script", "script"), ("style", "style")):
        digest = base64.b64encode(hashlib.sha256(_between(text, tag).encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_the_program_makes_no_html_of_text() -> None:
    program = _between(page([make_source()], title="run"), "script")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|fetch\(", program)


def test_numbers_are_exact() -> None:
    values = [-0.1, -1e-20, -3.1415927, -100.0]
    turn = make_turn(sampled=4, logp=values, updated_logp=None, sampled_ids=[0, 1, 2, 2**31 - 1])
    (detail,) = _block(page([make_source(make_row(turns=[turn]))], title="run"), "chunk0")
    shown = detail["turns"][0]
    assert np.frombuffer(base64.b64decode(shown["logp"]), np.float32).tolist() == np.float32(values).tolist()
    assert np.frombuffer(base64.b64decode(shown["sampled"]), np.int32).tolist() == turn["sampled_ids"]
    assert "updated" not in shown


def test_what_is_not_finite_and_what_is_not_known_is_shown_as_unknown() -> None:
    row = make_row(**{"return": float("nan")}, success=None)
    row["turns"] = [make_turn(reward=float("inf"), logp=None, advantage=None, version=None)]
    text = page([make_source(row)], title="run")
    (detail,) = _block(text, "chunk0")
    assert detail["turns"][0]["reward"] is None if "reward" in detail["turns"][0] else True
    assert _block(text, "index")["lines"][0][5:7] == [None, None]


def test_trajectories_are_in_blocks_and_each_is_found_in_its_own() -> None:
    rows = [make_row("g", index, turns=[make_turn(observation=f"{index} " + "x" * 30_000)]) for index in range(20)]
    text = page([make_source(*rows)], title="run")
    lines = _block(text, "index")["lines"]
    assert len({line[-2] for line in lines}) == 4  # blocks of 200 kB
    for index, line in enumerate(lines):
        assert _block(text, f"chunk{line[-2]}")[line[-1]]["turns"][0]["observation"].startswith(f"{index} ")


@pytest.mark.parametrize(
    ("reply", "tools"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": "é"}}</tool_call>', [["add", '{"a": "é"}']]),
        ("<tool_call>{</tool_call>", [["", "tool call 1 is not valid JSON"]]),
        ("17 + 25 = 42", None),
        ("a set {1, 2}", None),
    ],
)
def test_tool_calls_are_read(reply: str, tools: list[list[str]] | None) -> None:
    (detail,) = _block(page([make_source(make_row(turns=[make_turn(reply=reply)]))], title="run"), "chunk0")
    shown = detail["turns"][0].get("tools")
    assert shown == tools or (tools and shown[0][0] == "" and shown[0][1].startswith(tools[0][1]))
