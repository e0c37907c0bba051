"""Where a result came from, and that no secret is written with it."""

from __future__ import annotations

import json
import subprocess
import types
from pathlib import Path

import pytest

from gspo_rllib import __version__
from gspo_rllib.cli import provenance
from gspo_rllib.cli.main import main
from gspo_rllib.cli.provenance import git_state, machine, run_record, versions, without_secrets
from gspo_rllib.configs import load_run


def _git(folder: Path, *arguments: str) -> None:
    person = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *person, *arguments], check=True, capture_output=True)


def test_the_code_of_a_folder_is_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    _git(tmp_path, "init")
    assert git_state(tmp_path) is None, "nothing was committed"
    (tmp_path / "envs.py").write_text("first")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "first")
    clean = git_state(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "run.json").write_text("{}")
    assert git_state(tmp_path) == clean, "results of a run are no change of the code"
    (tmp_path / "results" / "new_env.py").write_text("new")
    assert git_state(tmp_path / "results") == {**clean, "dirty": True}
    (tmp_path / "results" / "new_env.py").unlink()
    (tmp_path / "envs.py").write_text("second")
    assert git_state(tmp_path) == {**clean, "dirty": True}


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
    assert machine()["gpus"] == []


def test_gpus_are_named_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "NVIDIA H100 80GB HBM3, 81559, 570.86.15\nTesla T4, [N/A], 570.86.15\n"
    done = types.SimpleNamespace(returncode=0, stdout=said)
    monkeypatch.setattr(provenance.subprocess, "run", lambda *_, **__: done)
    assert provenance._gpus() == [{"name": "NVIDIA H100 80GB HBM3", "memory_gib": 79.6, "driver": "570.86.15"}]


def test_secrets_are_replaced_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("GREETING", "hello-everybody")
    given = {
        "env_config": {"apiKey": "abc", "auth_token": "abc", "keyboard": "qwerty", "num_keys": 3, "operations": 6},
        "engine_options": {"env_vars": {"HOME": "/home/me"}, "max_tokens": 5, "headers": ["Bearer hf_abcdefghijkl"]},
        "url": "https://me:pw@judge.example.org/v1",
        "note": "the key is correct-horse-battery, hello-everybody",
        "class": Path,
    }
    assert without_secrets(given) == {
        "env_config": {"apiKey": "***", "auth_token": "***", "keyboard": "qwerty", "num_keys": 3, "operations": 6},
        "engine_options": {"env_vars": {"HOME": "***"}, "max_tokens": 5, "headers": ["Bearer ***"]},
        "url": "https://***@judge.example.org/v1",
        "note": "the key is ***, hello-everybody",
        "class": "Path",
    }


def test_a_run_is_recorded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "do-not-write-this")
    file = tmp_path / "mine.yaml"
    file.write_text(
        "environment: {env: mine/Env-v0, env_config: {password: do-not, judge: do-not-write-this, size: 3}}\n"
        "rl_module: {model_config: {path: models/mine}}\n"
        "python_environment: {extra_python_environs_for_worker: {A: do-not}}\n"
        "generation: {engine: transformers}\ndebugging: {seed: 5}\nrun: {iterations: 2}\n"
    )
    record = run_record(load_run(file, ["training.lr=1e-5"]))
    text = json.dumps(record)
    assert "do-not" not in text
    assert record["config"]["environment"]["env_config"] == {"password": "***", "judge": "***", "size": 3}
    assert record["config"]["training"]["lr"] == 1e-5
    assert record["config"]["training"]["clip_low"] == 3e-4, "a default, written out"
    assert record["config"]["rl_module"]["model_config"]["path"] == "models/mine"
    assert {"training.lr", "run.iterations"} <= set(record["given"])
    assert "training.clip_low" not in record["given"]
    assert (record["name"], record["algorithm"], record["engine"], record["seed"]) == (
        "mine",
        "GSPO",
        "transformers",
        5,
    )
    assert record["versions"]["gspo-rllib"] == __version__
    assert record["machine"]["cpus"] >= 1 and record["machine"]["memory_gib"] > 0


def test_the_report_has_the_versions_and_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["gspo-rllib"] == __version__
    assert {"python", "ray", "torch", "transformers"} <= versions().keys() & facts.keys()
    assert {"system", "processor", "cpus", "memory_gib", "gpus", "code", "engines"} <= facts.keys()
