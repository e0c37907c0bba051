"""Datasets as environments: which files can be read, who scores, and what goes wrong how."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gspo_rllib.envs import check_language_env, dataset_cells
from gspo_rllib.envs.dataset import DatasetEnv, load_rows
from gspo_rllib.envs.numbers import read_number
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


def test_a_split_that_is_saved_alone_is_no_other(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS, split="train").save_to_disk(str(tmp_path / "one"))
    assert load_rows(str(tmp_path / "one"), "train") == load_rows(str(tmp_path / "one")) == ROWS
    with pytest.raises(EnvError, match="split='test', but there are no splits"):
        load_rows(str(tmp_path / "one"), "test")


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_a_limit_leaves_the_first_rows(tmp_path, limit) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps({'question': f'{n}?', 'answer': str(n)})}\n" for n in range(5)))
    env = DatasetEnv(str(path), limit=limit)
    asked = {env.reset(seed=seed)[0] for seed in range(100)}
    assert env.num_tasks() == len(asked) == min(limit, 5)
    assert asked == {f"{n}?" for n in range(min(limit, 5))}


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]))
    assert load_rows(str(path)) is load_rows(str(path))
    path.write_text(json.dumps(ROWS[1]))
    os.utime(path, ns=(1, 1))
    assert load_rows(str(path)) == [ROWS[1]]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_rows("~/rows.jsonl") == [ROWS[1]]
    path.write_text(json.dumps(ROWS[2]))
    assert load_rows("~/rows.jsonl") == [ROWS[2]]


@pytest.mark.parametrize(
    ("settings", "error", "parts"),
    [
        ({"path": "nowhere"}, EnvError, ["no such file", "hub:nowhere"]),
        ({"path": "nowhere.jsonl"}, EnvError, ["no such file", "looked for in /"]),
        ({"path": "/nowhere/rows"}, EnvError, ["no such file", "Correct the path."]),
        ({"path": GSM8K.replace(".jsonl", "s.jsonl")}, EnvError, [f"Did you mean {GSM8K!r}?"]),
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
        ({"rows": ROWS, "limit": 0}, SettingError, ["limit=0", "from 1"]),
        ({"rows": ROWS, "split": "test"}, SettingError, ["split='test'", "have no splits"]),
        ({"path": GSM8K, "split": "test"}, EnvError, ["split='test'", "no splits to choose from", "Leave split out"]),
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


def written(tmp_path: Path, name: str, text: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def question(**settings) -> str:
    return DatasetEnv(**settings).reset(options={"task_id": "0"})[0]


LINE_BREAKS = "a\u2028b\u2029c\x85d\x0be\x0cf"


def test_only_a_line_feed_ends_a_line_of_json(tmp_path) -> None:
    rows = [{"question": LINE_BREAKS, "answer": "1"}, {"question": "2", "answer": "2"}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert load_rows(written(tmp_path, "rows.jsonl", text)) == rows
    assert load_rows(written(tmp_path, "rows.json", json.dumps(rows, ensure_ascii=False))) == rows
    assert load_rows(written(tmp_path, "rows.csv", f"question,answer\n{LINE_BREAKS},1\n2,2\n")) == rows


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path, suffix) -> None:
    row = {"question": "1?", "answer": "1"}
    text = "question,answer\n1?,1\n" if suffix == "csv" else json.dumps([row] if suffix == "json" else row)
    assert load_rows(written(tmp_path, f"rows.{suffix}", "\ufeff" + text)) == [row]


def test_json_lines_may_be_called_json(tmp_path) -> None:
    assert load_rows(written(tmp_path, "rows.json", "\n".join(map(json.dumps, ROWS)))) == ROWS


def test_a_file_in_another_encoding_is_an_error_that_names_the_line(tmp_path) -> None:
    path = written(tmp_path, "rows.jsonl", b'{"question": "1?", "answer": "1"}\n{"question": "\xe9", "answer": "2"}\n')
    with pytest.raises(EnvError, match=r"could not be read: line 2 is not in UTF-8 .*; save the file as UTF-8$"):
        load_rows(path)


def test_a_field_of_csv_may_be_long_and_the_limit_of_the_process_stays(tmp_path) -> None:
    import csv

    before = csv.field_size_limit()
    path = written(tmp_path, "rows.csv", f'question,answer\n"{"x" * 200_000}",1\n')
    assert question(path=path) == "x" * 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("question,answer\n1?,1\n2?\n", r"rows.csv', line 3, column 'answer': holds nothing"),
        ("question,answer\n1?,1\n2?,\n", r"rows.csv', line 3, column 'answer': holds an empty text"),
        ("question,answer\n1?,1\n2,3?,4\n", r"could not be read: line 3 has 3 fields for the 2 columns of the header"),
        ('question,answer\n1?,1\n"2?,2\n3?,3\n', r"could not be read: line 3: unexpected end of data"),
        ('question,answer\n"1\n?",1\n2?\n', r"rows.csv', line 4, column 'answer': holds nothing"),
    ],
)
def test_what_is_wrong_in_csv_is_said_with_its_line(tmp_path, text, complaint) -> None:
    with pytest.raises(EnvError, match=complaint):
        DatasetEnv(written(tmp_path, "rows.csv", text))


BAD_ROWS = [
    ({"question": "?"}, r"has no column 'answer'\. Allowed: question\."),
    ({"questoin": "?", "answer": "1"}, r"has no column 'question'\. Did you mean 'questoin'\?"),
    ({"question": "?", "answer": None}, r"column 'answer': holds nothing\. Correct the row, or leave it out\."),
    ({"question": None, "answer": "1"}, r"column 'question': holds nothing"),
    ({"question": " ", "answer": "1"}, r"column 'question': holds an empty text"),
    ({"question": "?", "answer": ""}, r"column 'answer': holds an empty text"),
    ({"question": "?", "answer": float("nan")}, r"column 'answer': holds nothing"),
    ({"question": True, "answer": "1"}, r"column 'question': holds True, which is no question"),
    (
        {"question": {"text": "?"}, "answer": "1"},
        r"column 'question': holds \{'text': '\?'\}, a dict; write it as a text",
    ),
    (
        {"question": "?", "answer": {"value": "1"}},
        r"column 'answer': holds \{'value': '1'\}, a dict; name a column of text",
    ),
    ({"question": "?", "answer": ["1"]}, r"column 'answer': holds \['1'\], a list; name a column of text"),
    (
        {"question": "?", "answer": "<think>1"},
        r"column 'answer': .*states no answer: the reply ends within its reasoning",
    ),
    ({"question": ["?"], "answer": "1"}, r"column 'question': message 1 is '\?'; each must have a 'role'"),
    ({"question": [], "answer": "1"}, r"column 'question': has no message of the user"),
    (
        {"question": [{"role": "user", "content": None}], "answer": "1"},
        r"column 'question': message 1 holds None; only text can be asked",
    ),
    (
        {"question": [{"role": "user", "content": [{"type": "image", "text": "x"}]}], "answer": "1"},
        r"column 'question': message 1 holds \[\{'type': 'image', 'text': 'x'\}\]; only text can be asked",
    ),
    (
        {"question": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "1"}], "answer": "1"},
        r"column 'question': ends with a message of the assistant, which would tell the answer",
    ),
    (
        {"question": "[{'role': 'user', 'content': '?'}]", "answer": "1"},
        r"column 'question': holds .* which are messages, but not in JSON \(.*\); write them with json.dumps",
    ),
]


@pytest.mark.parametrize(("row", "complaint"), BAD_ROWS)
@pytest.mark.parametrize("source", ["rows", "file"])
def test_a_row_that_cannot_be_used_is_found_at_load_wherever_it_is(tmp_path, source, row, complaint) -> None:
    rows = [*ROWS, row, *ROWS]
    if source == "rows":
        settings, place = {"rows": rows}, "^rows, row 11"
    else:
        path = written(tmp_path, "rows.jsonl", "\n\n".join(map(json.dumps, rows)))
        settings, place = {"path": path}, "^path='.*rows.jsonl', line 21"
    with pytest.raises(EnvError, match=place + ".{2}" + complaint):
        DatasetEnv(**settings)


@pytest.mark.parametrize("answer", ["forty-two", "#### n/a", r"\boxed{17}"])
def test_a_gold_answer_that_is_no_number_is_found_at_load_where_numbers_are_compared(answer) -> None:
    rows = [*ROWS, {"question": "?", "answer": answer}]
    DatasetEnv(rows=rows)  # other verifiers read it
    if "17" in answer:
        DatasetEnv(rows=rows, verifier="numeric")
        return
    with pytest.raises(
        EnvError, match=r"^rows, row 11, column 'answer': holds .* which is no number; verifier='exact'"
    ):
        DatasetEnv(rows=rows, verifier="numeric")


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        (
            "rows.jsonl",
            '{"question": "1?", "answer": "1", "answer": "2"}',
            r"line 1: 'answer' is there twice in one object",
        ),
        ("rows.json", '[{"question": "1?", "answer": "1", "answer": "2"}]', "'answer' is there twice in one object"),
        ("rows.csv", "question,answer,answer\n1?,1,2\n", "'answer' is there twice in the header"),
    ],
)
def test_a_column_that_is_there_twice_is_refused_and_not_the_last_one_taken(tmp_path, name, text, complaint) -> None:
    with pytest.raises(EnvError, match=complaint):
        DatasetEnv(written(tmp_path, name, text))


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_rows_that_stay_on_disk_are_all_looked_at_too(tmp_path, kind) -> None:
    rows = [{"question": str(n), "answer": None if n == 2345 else "1", "heavy": "x"} for n in range(3000)]
    path = str(tmp_path / f"rows{'.parquet' if kind == 'parquet' else ''}")
    if kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(path)
    assert not isinstance(load_rows(path), list), "they are not held in memory"
    assert load_rows(path)[2999] == load_rows(path)[-1] == rows[2999]
    with pytest.raises(EnvError, match=r"row 2346, column 'answer': holds nothing"):
        DatasetEnv(path)
    assert DatasetEnv(path, answer="heavy").reset(options={"task_id": "2345"})[0] == "2345"
    with pytest.raises(SettingError, match=r"no column 'anwser'\. Did you mean 'answer'"):
        DatasetEnv(path, answer="anwser")


def test_messages_are_asked_as_messages() -> None:
    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": [{"type": "text", "text": "6 * 7?"}]}
    env = DatasetEnv(
        rows=[{"question": [system, user], "answer": 42}, {"question": "1?", "answer": 1}], system_prompt="Be kind."
    )
    assert env.reset(options={"task_id": "0"})[0] == "6 * 7?"
    assert env.chat.system_prompt == "Be brief."
    assert env.step("42")[1] == 1.0
    assert env.reset(options={"task_id": "1"})[0] == "1?"
    assert env.chat.system_prompt == "Be kind."


def test_messages_in_a_text_are_messages(tmp_path) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}]
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([["question", "answer"], [json.dumps(asked), "42"]])
    env = DatasetEnv(tmp_path / "rows.csv")
    assert (env.reset(seed=0)[0], env.chat.system_prompt) == ("6 * 7?", "Be brief.")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (float(np.float32(0.1)), "the float 0.10000000149011612, whose text no reply may match"),
        (1 / 3, "the float 0.3333333333333333, whose"),
        (datetime.datetime(2024, 1, 2), "the time 2024-01-02 00:00:00, where a reply may give the day alone"),
    ],
)
def test_a_gold_answer_whose_text_nobody_writes_is_refused_where_texts_are_compared(answer, said) -> None:
    with pytest.raises(EnvError, match=said):
        DatasetEnv(rows=[{"question": "?", "answer": answer}])
    DatasetEnv(rows=[{"question": "?", "answer": 100.25}, {"question": "!", "answer": datetime.date(2024, 1, 2)}])


def test_a_conversation_is_shown_with_its_roles() -> None:
    turns = [("user", "6?"), ("assistant", "6."), ("user", "times 7?")]
    rows = [{"question": [{"role": role, "content": text} for role, text in turns], "answer": "42"}]
    assert question(rows=rows) == "user: 6?\n\nassistant: 6.\n\nuser: times 7?"
    assert question(rows=rows, prompt="{question}\nThink.").endswith("times 7?\nThink.")


def test_messages_survive_every_format(tmp_path) -> None:
    rows = [{"question": [{"role": "user", "content": "6 * 7?"}], "answer": 42}]
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for path in (str(tmp_path / "rows.parquet"), written(tmp_path, "rows.jsonl", json.dumps(rows[0]))):
        env = DatasetEnv(path, verifier="numeric")
        assert env.reset(seed=0)[0] == "6 * 7?"
        assert env.step("42")[1] == 1.0


def test_numbers_and_truth_values_are_read_as_they_are_written() -> None:
    env = DatasetEnv(rows=[{"question": 5, "answer": True}, {"question": 0.5, "answer": 10**30}])
    assert env.reset(options={"task_id": "0"}) == ("5", {"task_id": "0", "answer": "True"})
    assert env.step("true")[1] == 1.0
    assert env.reset(options={"task_id": "1"}) == ("0.5", {"task_id": "1", "answer": str(10**30)})


def test_nothing_is_never_paid_as_a_word() -> None:
    with pytest.raises(EnvError, match="column 'answer': holds nothing"):
        DatasetEnv(rows=[{"question": "?", "answer": None}])


def test_a_function_is_given_a_structured_answer_as_json() -> None:
    rows = [{"question": "?", "answer": {"any of": ["a", "é"]}}]
    env = DatasetEnv(rows=rows, verifier=lambda reply, answer, row: reply in json.loads(answer)["any of"])
    assert env.reset(seed=0)[1]["answer"] == '{"any of": ["a", "é"]}'
    assert env.step("é")[1] == 1.0


def test_the_reason_of_a_verdict_is_in_the_info() -> None:
    env = DatasetEnv(rows=ROWS, verifier="numeric", attempts=2)
    env.reset(options={"task_id": "1"})
    assert env.step("<think>2")[4]["reason"] == "the reply ends within its reasoning"
    assert env.step("no idea")[4] == {
        "valid_action": True,
        "obs_role": "user",
        "success": False,
        "reason": "the answer is no number",
    }


def test_without_the_hub_a_data_set_of_it_is_refused_at_once_unless_the_cache_has_it(tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if split == "tset":
            raise ValueError("Unknown split 'tset'")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(EnvError, match=r"'hub:me/sums': the hub cannot be reached .*hf download me/sums --repo-type"):
        load_rows("hub:me/sums", "train")
    assert not asked
    (tmp_path / "me___sums").mkdir()
    assert load_rows("hub:me/sums", "train") == ROWS
    with pytest.raises(EnvError, match=r"'hub:me/sums' could not be read: ValueError: Unknown split 'tset'"):
        load_rows("hub:me/sums", "tset")
    assert asked == [("me/sums", "train"), ("me/sums", "tset")]


def test_the_digest_of_the_tasks_is_of_what_is_asked_and_not_of_the_file(tmp_path) -> None:
    """The same rows in another kind of file are the same tasks; a corrected answer, or another order, is not."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    text = written(tmp_path, "rows.jsonl", "\r\n".join(map(json.dumps, ROWS)))
    digest = DatasetEnv(text).tasks_digest()
    assert digest == DatasetEnv(rows=ROWS).tasks_digest() == DatasetEnv(str(tmp_path / "rows.parquet")).tasks_digest()
    corrected = [*ROWS[:-1], {**ROWS[-1], "answer": "99"}]
    assert len({digest, DatasetEnv(rows=corrected).tasks_digest(), DatasetEnv(rows=ROWS[::-1]).tasks_digest()}) == 3

    # What lies behind the limit is no task, nor is a column that only a verifier of one's own could read.
    assert DatasetEnv(rows=ROWS + ROWS, limit=len(ROWS)).tasks_digest() == digest
    noted = [{**row, "note": number} for number, row in enumerate(ROWS)]
    assert DatasetEnv(rows=noted).tasks_digest() == digest
    own = [DatasetEnv(rows=rows, verifier=lambda *_: 1.0).tasks_digest() for rows in (noted, ROWS)]
    assert own[0] != own[1]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl", "rows.json.gz", "rows.csv.gz"])
def test_a_packed_file_is_read_as_what_it_holds(tmp_path, name) -> None:
    row = {"question": "1?", "answer": "1"}
    text = "question,answer\n1?,1\n" if "csv" in name else json.dumps([row] if ".json." in name else row)
    packed = gzip.compress(("\ufeff" + text).encode())
    assert load_rows(written(tmp_path, name, packed)) == [row]
    with pytest.raises(EnvError, match="could not be read: EOFError"):
        load_rows(written(tmp_path, f"cut-{name}", packed[:-9]))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"path": 5}, "path=5: must be the path of one file"),
        ({"path": ["a.jsonl"]}, r"path=\['a.jsonl'\]: must be the path of one file"),
        ({"path": "s3://bucket/rows.jsonl"}, "It is read from this machine: download it first"),
        ({"path": "rows.jsonl.zst"}, "there is no such file or folder"),
        ({"path": "."}, "is a folder, but none that the package datasets has saved"),
        ({"rows": {"question": "1"}}, r"rows is a dict; .* as a DataFrame's to_dict\('records'\) is"),
        ({"rows": ROWS, "question": ["question"]}, r"question=\['question'\]: must be the name of a column"),
        ({"rows": ROWS, "answer": 3}, "answer=3: must be the name of a column"),
        ({"rows": ROWS, "answer": "question"}, "one column, so that each is its own answer"),
        ({"rows": ROWS, "prompt": 3}, "prompt=3: must contain {question}"),
        ({"rows": ROWS, "prompt": "{question} {answer}"}, r"\{answer\} would stay as it is"),
        ({"rows": ROWS, "system_prompt": 3}, "system_prompt=3: must be a text"),
        ({"rows": [{"question": "?", "answer": 2.0}]}, "holds the float 2.0, whose text no reply may match; verifier="),
        ({"rows": [{"question": "\ud800?", "answer": 2}]}, r"holds half a character \('\\ud800'\), which no tokenizer"),
    ],
)
def test_what_would_train_something_else_or_nothing_is_refused(settings, complaint, tmp_path, monkeypatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((EnvError, SettingError), match=complaint):
        DatasetEnv(**settings)


@pytest.mark.parametrize("sign", ["semicolons", "tabs", "bars"])
def test_columns_that_no_commas_separate_are_said(tmp_path, sign) -> None:
    text = "question,answer\n1?,1\n".replace(",", {"semicolons": ";", "tabs": "\t", "bars": "|"}[sign])
    with pytest.raises(EnvError, match=f"could not be read: its columns are separated by {sign}"):
        DatasetEnv(written(tmp_path, "rows.csv", text))


def test_rows_that_contradict_each_other_are_said_once(caplog) -> None:
    """Two answers to one question: whatever the policy learns of one row, the other takes away."""
    rows = [*ROWS, {**ROWS[0], "answer": "7 or so #### 77"}]
    for _ in range(2):
        DatasetEnv(rows=rows)
    (said,) = [record.getMessage() for record in caplog.records if "ask the same" in record.getMessage()]
    assert said.startswith(f"rows: row 1 and row {len(rows)} ask the same")

    caplog.clear()
    same = [{"question": "6 * 7?", "answer": answer} for answer in ("42", "so it is #### 42", "42.00")]
    DatasetEnv(rows=same, verifier="numeric")
    own = [{"question": "?", "answer": "1", "hidden": 1}, {"question": "?", "answer": "2", "hidden": 2}]
    DatasetEnv(rows=own, verifier=lambda reply, answer, row: reply == str(row["hidden"]))
    assert "ask the same" not in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("rows.csv", "question,answer\n1?\n2?,2\n", r"line 2, column 'answer': holds nothing"),
        ("rows.jsonl", '{"question": "1?"}\n{"question": "2?", "answer": 2}', r"line 1: has no column 'answer'"),
        ("rows.jsonl", '[\n{"question": "1?", "answer": 1}\n]', "it is one list of rows, name the file .json"),
        ("rows.jsonl", "5\n", "line 1: a row is of type int; it must be an object"),
    ],
)
def test_what_is_wrong_with_the_first_row_is_said_of_that_row(tmp_path, name, text, complaint) -> None:
    with pytest.raises(EnvError, match=complaint):
        DatasetEnv(written(tmp_path, name, text))


@given(text=st.from_regex(dataset_cells._PLAIN_NUMBER, fullmatch=True))
def test_a_gold_answer_that_is_taken_for_a_number_at_a_glance_is_one(text: str) -> None:
    assert read_number(text) is not None and read_number(text, formula=True) is not None
