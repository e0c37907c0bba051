"""The project's documents, and what is written in them as code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for top in (ROOT, *(ROOT / name for name in ("docs", "algorithms", "envs", "configs", "benchmarks", "examples")))
    for path in (top.glob("*.md") if top == ROOT else top.rglob("*.md"))
)


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.M | re.S)


def commands(path: Path) -> list[str]:
    """The shell commands, one each, without their comments."""
    # What speaks HTTP by hand is run in tests/agents/test_external.py.
    shown = [block for block in blocks(path, "bash") if "curl" not in block]
    lines = "\n".join(shown).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.partition(" #")[0].strip()]
