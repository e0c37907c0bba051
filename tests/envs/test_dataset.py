"""Datasets as environments: which files can be read, who scores, and what goes wrong how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gspo_rllib.envs import check_language_env
from gspo_rllib.envs.dataset import DatasetEnv, load_rows
from gspo_rllib.envs.verifiers import VERIFIERS, score
from gspo_rllib.errors import EnvError, SettingError
from tests.toy_envs.verifiers import halves

GSM8K = str(Path(__file__).parents[1] / "data" / "gsm8k_format.jsonl")
ROWS = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(10)]


def test_the_gold_answers_of_gsm8k_s_format_are_the_numbers_behind_the_mark() -> None:
    env = DatasetEnv(GSM8K, verifier="numeric")
    gold = [env.reset(options={"task_id": str(n)})[1]["answer"] for n in range(env.num_tasks())]
    assert gold == ["17", "150", "15", "6,000", "7", "23", "-5", "0.75"]


def test_a_python_function_scores_with_the_whole_row() -> None:
    for verifier in (halves, "tests.toy_envs.verifiers:halves"):
        env = DatasetEnv(rows=ROWS, verifier=verifier)
        env.reset(options={"task_id": "4"})
        assert env.step("a 4?")[1] == 0.5
        env.reset(options={"task_id": "4"})
        assert env.step("5")[1] == 1.0


def test_attempts_go_on_until_the_answer_is_right() -> None:
    env = DatasetEnv(rows=ROWS, verifier="numeric", attempts=3)
    env.reset(options={"task_id": "1"})
    assert env.step("7")[:4] == ("wrong; try again", 0.0, False, False)
    assert env.step("2")[:4] == ("right", 1.0, True, False)
    env.reset(options={"task_id": "1"})
    assert [env.step("7")[2] for _ in range(3)] == [False, False, True]


def test_it_keeps_the_contract_of_language_environments() -> None:
    report = check_language_env("gspo_rllib.envs:gspo_rllib/Dataset-v0", path=GSM8K, verifier="numeric", attempts=2)
    assert not report.notes


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ""])
def test_every_format_gives_the_same_rows(tmp_path, suffix) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif suffix == ".csv":
        path.write_text("question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in ROWS))
    elif suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        pytest.importorskip("datasets").Dataset.from_list(ROWS).save_to_disk(str(path))
    assert load_rows(str(path)) == ROWS


def test_a_dataset_of_several_splits_wants_one_of_them(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": train, "test": train}).save_to_disk(str(tmp_path / "both"))
    assert load_rows(str(tmp_path / "both"), "test") == ROWS
    with pytest.raises(EnvError, match="split=None; allowed: 'train', 'test'"):
        load_rows(str(tmp_path / "both"))


def test_a_file_is_read_once_until_it_changes(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]))
    assert load_rows(str(path)) is load_rows(str(path))
    path.write_text(json.dumps(ROWS[1]))
    import os

    os.utime(path, ns=(1, 1))
    assert load_rows(str(path)) == [ROWS[1]]


@pytest.mark.parametrize(
    ("settings", "error", "parts"),
    [
        ({"path": "nowhere.jsonl"}, EnvError, ["no such file", "hub:nowhere.jsonl"]),
        ({"path": __file__}, EnvError, ["cannot tell its format", ".parquet"]),
        ({"path": GSM8K, "rows": ROWS}, SettingError, ["exactly one"]),
        ({}, SettingError, ["exactly one"]),
        ({"rows": []}, SettingError, ["holds no row"]),
        ({"rows": ROWS, "question": "questoin"}, SettingError, ["'questoin'", "Did you mean 'question'"]),
        ({"rows": ROWS, "verifier": "numerc"}, SettingError, ["'numerc'", "Did you mean 'numeric'", "module:function"]),
        ({"rows": ROWS, "verifier": "no_such_module:f"}, SettingError, ["no_such_module"]),
        ({"rows": ROWS, "verifier": "json:nothing"}, SettingError, ["nothing"]),
        ({"rows": ROWS, "prompt": "Solve it."}, SettingError, ["{question}"]),
        ({"rows": ROWS, "attempts": 0}, SettingError, ["attempts=0", "1 to 100"]),
    ],
)
def test_bad_settings_are_one_clear_error(settings, error, parts) -> None:
    with pytest.raises(error) as caught:
        DatasetEnv(**settings)
    for part in parts:
        assert part in str(caught.value)


def test_a_damaged_file_names_its_line(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n{"question": \n')
    with pytest.raises(EnvError, match=r"rows.jsonl.* could not be read: line 2"):
        DatasetEnv(path)


def test_a_broken_verifier_is_reported_and_never_scored() -> None:
    def raises(reply: str, answer: str, row: dict) -> float:
        raise KeyError("gold")

    with pytest.raises(EnvError, match=r"raised KeyError: 'gold' for the reply 'x'"):
        score(raises, "x", "1", {})
    with pytest.raises(EnvError, match=r"returned 7; it must return a number from 0 to 1"):
        score(lambda *_: 7, "x", "1", {})
    with pytest.raises(EnvError, match="returned None"):
        score(lambda *_: None, "x", "1", {})


def test_a_missing_package_names_the_extra(monkeypatch) -> None:
    import importlib

    real = importlib.import_module

    def without(name: str, *rest: str):
        if name in ("math_verify", "datasets"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(EnvError, match=r"gspo-rllib\[datasets\]"):
        DatasetEnv(rows=ROWS, verifier="math_verify")
    with pytest.raises(EnvError, match=r"gspo-rllib\[datasets\]"):
        DatasetEnv("hub:somebody/something")
    assert set(VERIFIERS) == {"exact", "numeric", "math_verify"}
