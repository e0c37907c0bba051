"""Writes the page: one file of HTML that holds its style, its program and all it shows, and asks nobody for anything.

What is shown is untrusted. It is packed (gzip, base64) into blocks that no browser takes for a program, and unpacked
into text, never into HTML; the page's policy lets no other program run than its own, and opens no connection.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from gspo_rllib.envs.tools.calls import ToolCallError, parse_tool_calls
from gspo_rllib.trajectory_table import Row
from gspo_rllib.view.dashboard import panels
from gspo_rllib.view.sources import Source
from gspo_rllib.view.token_texts import token_texts

CHUNK = 200_000
"""Bytes of a block of trajectories before it is packed; it is unpacked when one of its trajectories is opened."""

SNIPPET = 120
"""Characters of a trajectory's first observation that its line in the list may show and the search looks at."""


def page(sources: Sequence[Source], *, title: str) -> str:
    """The whole page.

    Args:
        sources: What is shown; of several, trajectories of one task stand side by side.
        title: The page's title.

    Raises:
        ModelError: A tokenizer cannot be read.
    """
    lines: list[list[Any]] = []
    chunks: list[str] = []
    chunk: list[str] = []
    size = 0
    for number, source in enumerate(sources):
        for row in source.rows:
            text = json.dumps(_detail(row), ensure_ascii=False, separators=(",", ":"))
            if chunk and size + len(text) > CHUNK:
                chunks.append(_packed(f"[{','.join(chunk)}]"))
                chunk, size = [], 0
            lines.append([number, *_line(row), len(chunks), len(chunk)])
            chunk.append(text)
            size += len(text)
    if chunk:
        chunks.append(_packed(f"[{','.join(chunk)}]"))
    index = {
        "sources": [source.name for source in sources],
        "lines": lines,
        "texts": [list(pair) for pair in sorted(_texts(sources).items())],
        "runs": [panels(source.results, source.rows) for source in sources],
    }
    return _filled(title, _packed(json.dumps(index, ensure_ascii=False, separators=(",", ":"))), chunks)


def _texts(sources: Sequence[Source]) -> dict[int, str]:
    """The text of every id that is there; of one that two sources have different texts for, both."""
    known: dict[int, str] = {}
    for source in sources:
        if source.tokenizer is None:
            continue
        ids = {int(i) for row in source.rows for t in row["turns"] for i in (*t["prompt_ids"], *t["sampled_ids"])}
        for token, text in token_texts(source.tokenizer, sorted(ids)).items():
            if known.setdefault(token, text) != text:
                known[token] = f"{known[token]}¦{text}"
    return known


def _line(row: Row) -> Iterator[Any]:
    """What the list knows of a trajectory, in the order in which the program reads it."""
    turns = row["turns"]
    advantage = [value for turn in turns for value in turn["advantage"] or ()]
    yield row["iteration"]
    yield row["group_id"]
    yield row["index"]
    yield str(row["task_seed"])  # more digits than a number has there
    yield _finite(row["return"])
    yield row["success"]
    yield row["truncated_by"]
    yield row["trained"]
    yield len(turns)
    yield sum(len(turn["sampled_ids"]) for turn in turns)
    yield _finite(float(np.mean(advantage))) if advantage else None
    yield turns[0]["observation"][:SNIPPET] if turns else ""


def _detail(row: Row) -> dict[str, Any]:
    return {"last": row["last_observation"], "turns": [_turn(turn) for turn in row["turns"]]}


def _turn(turn: Row) -> dict[str, Any]:
    shown = {
        "observation": turn["observation"],
        "reply": turn["reply"],
        "reward": _finite(turn["reward"]),
        "finish": turn["finish_reason"],
        "version": turn["version"],
        "prompt": _bytes(turn["prompt_ids"], np.int32),
        "sampled": _bytes(turn["sampled_ids"], np.int32),
        "logp": _bytes(turn["logp"], np.float32),
        "updated": _bytes(turn["updated_logp"], np.float32),
        "advantage": _bytes(turn["advantage"], np.float32),
        "versions": turn["token_versions"],
        "starts": turn["starts_segment"] or None,
        "summary": turn["is_summary"] or None,
        "tools": _tools(turn["reply"]),
    }
    return {name: value for name, value in shown.items() if value is not None}


def _tools(reply: str) -> list[list[str]] | None:
    """Name and arguments of every call in a reply; what is wrong with them where it has a call that cannot be read."""
    if "{" not in reply and "<function=" not in reply:
        return None
    calls = parse_tool_calls(reply)
    if isinstance(calls, ToolCallError):
        return [["", calls.message]]
    return [[call.name, json.dumps(call.arguments, ensure_ascii=False)] for call in calls] or None


def _bytes(values: Any, kind: type[np.generic]) -> str | None:
    """Numbers as the bytes of an array, which keeps them exact and the page small."""
    return None if values is None else base64.b64encode(np.asarray(values, dtype=kind).tobytes()).decode()


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), 5, mtime=0)).decode()


def _filled(title: str, index: str, chunks: Sequence[str]) -> str:
    style, program = _read("viewer.css"), "\n".join(map(_read, ("charts.js", "tokens.js", "viewer.js")))
    policy = (
        f"default-src 'none'; script-src 'sha256-{_digest(program)}'; style-src 'sha256-{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    blocks = [_block("index", index), *(_block(f"chunk{number}", chunk) for number, chunk in enumerate(chunks))]
    parts = {
        "@POLICY@": html.escape(policy, quote=False),
        "@TITLE@": html.escape(title),
        "@STYLE@": style,
        "@DATA@": "\n".join(blocks),
        "@PROGRAM@": program,
    }
    # In one pass: what is filled in is not looked through for further marks.
    return re.sub("|".join(parts), lambda mark: parts[mark[0]], _read("viewer.html"))


def _block(name: str, content: str) -> str:
    return f'<script type="application/octet-stream" id="{name}">{content}</script>'


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    return files("gspo_rllib.view").joinpath("page", name).read_text(encoding="utf-8").strip()
