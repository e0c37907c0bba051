"""Documents cannot rot: links exist, commands parse, snippets and doctests run."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shlex
from pathlib import Path

import pytest

from gspo_rllib.cli.main import parse_arguments

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for top in (ROOT, *(ROOT / name for name in ("docs", "algorithms", "envs", "configs", "benchmarks", "examples")))
    for path in (top.glob("*.md") if top == ROOT else top.rglob("*.md"))
)


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.M | re.S)


def _commands(path: Path) -> list[str]:
    lines = "\n".join(_blocks(path, "bash")).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.partition(" #")[0].strip()]


def _modules_with_doctests() -> list[str]:
    names = []
    for folder, subfolders, files in os.walk(ROOT / "gspo_rllib", followlinks=True):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        for file in files:
            path = Path(folder, file)
            if path.suffix == ".py" and ">>> " in path.read_text():
                parts = path.relative_to(ROOT).with_suffix("").parts
                names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (path.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_could_be_run(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for command in _commands(path):
        program, *arguments = shlex.split(command)
        if program == "gspo-rllib":
            parse_arguments(arguments)
        elif program == "make":
            assert {a for a in arguments if "=" not in a} <= targets, command
        elif program.endswith("python") and not arguments[0].startswith("-"):
            assert (ROOT / arguments[0]).is_file(), command
        else:
            assert program in {"pip", "git", "cd", ".venv/bin/python"}, command


def test_the_readme_shows_all_of_the_command_line() -> None:
    shown = {shlex.split(c)[1] for c in _commands(ROOT / "README.md") if c.startswith("gspo-rllib")}
    assert shown == {"train", "rollout", "evaluate", "sweep", "export", "warmstart", "list"}


def test_the_readme_snippets_run(
    tiny_dense: str, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, train = _blocks(ROOT / "README.md", "python")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "seed").symlink_to(tiny_dense)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(build, "README.md", "exec"), names)
    # What the snippet asks for takes minutes on two cores: the same calls with a small batch and the embedded engine.
    names["config"].environment(env_config={"operations": 1}).env_runners(num_env_runners=0)
    names["config"].generation(engine="transformers", max_tokens_per_turn=2)
    names["config"].training(group_size=2, groups_per_iteration=4)
    exec(compile(train, "README.md", "exec"), names)
    assert names["result"]["training_iteration"] == 1


@pytest.mark.parametrize("name", _modules_with_doctests())
def test_the_doctests_of_a_module_pass(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted
    assert not outcome.failed


def test_the_doctests_of_the_pin_list_pass() -> None:
    spec = importlib.util.spec_from_file_location("regenerate", ROOT / "requirements" / "regenerate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    outcome = doctest.testmod(module)
    assert outcome.attempted and not outcome.failed


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 150
    assert f"python examples/{path.name}" in text


def test_the_bare_loop_runs(tiny_dense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    small = ["--operations", "1", "--groups", "2", "--group-size", "2", "--minibatches", "2", "--max-tokens", "4"]
    run = importlib.import_module("bare_loop").main
    assert 0.0 <= run([tiny_dense, "--engine", "transformers", "--iterations", "1", *small]) <= 1.0


def test_the_custom_environment_is_learnt(tiny_dense: str, ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    run = importlib.import_module("custom_env").main
    options = [tiny_dense, "--engine", "transformers", "--iterations"]
    assert run([*options, "1"]) < run([*options, "12"])
