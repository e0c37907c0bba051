"""The shape of the tree: imports flow down, one name per module, no file that does two things."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("gspo_rllib", "algorithms", "envs", "configs", "examples", "benchmarks", "requirements")


def _python_files() -> Iterator[Path]:
    for top in SOURCES:
        for folder, subfolders, files in os.walk(ROOT / top):
            subfolders[:] = [name for name in subfolders if name != "__pycache__"]
            yield from (Path(folder, file) for file in files if file.endswith(".py"))


def test_imports_flow_down() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["algorithms", "configs", "envs"])
def test_a_folder_cannot_be_imported_under_its_bare_name(name: str) -> None:
    code = f"import {name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError" in done.stderr.splitlines()[-1]
    assert f"gspo_rllib.{name}" in done.stderr


def test_only_the_vllm_engine_imports_vllm() -> None:
    importers = {
        path.relative_to(ROOT / "gspo_rllib").as_posix()
        for path in _python_files()
        if path.is_relative_to(ROOT / "gspo_rllib")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm")
        or (isinstance(node, ast.Import) and any(a.name.partition(".")[0] == "vllm" for a in node.names))
    }
    assert importers
    assert all(name.startswith("engines/vllm") for name in importers)


def test_no_place_is_named_for_nothing() -> None:
    names = {"utils", "common", "misc", "helpers"}
    assert not [path for path in _python_files() if names & {*path.parts, path.stem}]


def test_files_and_functions_do_one_thing() -> None:
    too_long = []
    for path in _python_files():
        text = path.read_text()
        if text.count("\n") > 400:
            too_long.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                if lines > 60:
                    too_long.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    assert not too_long, "\n".join(too_long)


def test_every_module_says_what_it_is_for() -> None:
    assert not [path for path in _python_files() if not ast.get_docstring(ast.parse(path.read_text()))]
