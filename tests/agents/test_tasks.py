"""Tasks come from a file, a list, or a seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gspo_rllib.agents.tasks import Tasks
from gspo_rllib.errors import SettingError


def test_every_seed_means_one_row_and_the_agent_may_change_its_copy(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"q": ["a"]}\n\n{"q": ["b"]}\n', encoding="utf-8")
    tasks = Tasks(str(file))
    assert [tasks.task(seed)["q"] for seed in (0, 1, 2, 7)] == [["a"], ["b"], ["a"], ["b"]]
    tasks.task(0)["q"].append("changed")
    assert tasks.task(0) == {"q": ["a"]}
    kept = tasks.recorded(2)
    assert kept == {"q": ["a"]}
    kept["q"].append("changed")
    assert tasks.recorded(2) == {"q": ["a"]} and tasks.recorded(0, "1") == {"q": ["b"]}


def test_a_task_is_kept_where_a_file_can_hold_it_as_it_is() -> None:
    assert Tasks(None).recorded(7) == {"seed": 7}
    rows = [{"q": 1}, {"q": (1, 2)}, {1: 2}, {"q": float("nan")}, {"q": {1, 2}}]
    assert [Tasks(rows).recorded(number) for number in range(5)] == [{"q": 1}, None, None, None, None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; it must hold one task, a JSON object, on each line."),
        ("\n \n", "is empty; it must hold one task, a JSON object, on each line."),
        ('{"q": 1}\n{"q": ', "line 2: not JSON: Expecting value"),
        ('{"q": 1}\n[2]\n', "line 2: [2] is no task; it must be an object with named values."),
        ("[" * 100_000, "line 1: not JSON: "),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        ('{"q": NaN}', "line 1: not JSON: NaN is no number of JSON; write null, or leave the field out."),
        ('{"q": [-Infinity]}', "line 1: not JSON: -Infinity is no number of JSON; write null, or leave the field out."),
        ('{"q": 1}\n{"q": 1, "a": {"b": 2, "b": 3}}', "line 2: not JSON: 'b' is there twice in one object."),
    ],
)
def test_a_broken_file_is_refused_by_its_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingError) as error:
        Tasks(str(file))
    assert words in str(error.value) and str(error.value).startswith("agent.tasks=")


def test_text_of_a_task_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    text = "one\u2028two\u2029three\x85four"
    file.write_text(f'\ufeff{{"q": "{text}"}}\r\n{{"q": "b"}}\r\n', encoding="utf-8", newline="")
    assert [Tasks(str(file)).task(seed) for seed in (0, 1)] == [{"q": text}, {"q": "b"}]


def test_a_missing_file_and_an_empty_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="a folder; it must be a JSONL file with one task on each line"):
        Tasks(str(tmp_path))
    (tmp_path / "secret.jsonl").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:  # whoever runs this may be allowed to read everything
        patch.setattr(Path, "read_text", _not_permitted)
        with pytest.raises(SettingError, match=r"secret\.jsonl' cannot be read: Permission denied\."):
            Tasks(str(tmp_path / "secret.jsonl"))
    with pytest.raises(SettingError, match="no such file; it must be a JSONL file"):
        Tasks("nowhere.jsonl")
    with pytest.raises(SettingError, match="is an empty list"):
        Tasks([])
    with pytest.raises(SettingError, match="entry 1: 'b' is no task"):
        Tasks([{"q": 1}, "b"])


def _not_permitted(file: Path, **_: object) -> str:
    raise PermissionError(13, "Permission denied", str(file))
