"""`gspo-rllib evaluate`: checkpoints and plain models alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import parquet

from gspo_rllib import checkpoints
from gspo_rllib.algorithms.policy_gradient.saved_config import NAME
from gspo_rllib.checkpoints.codec import read_tree, write_tree
from gspo_rllib.cli.main import main
from gspo_rllib.cli.rows import write_rows

CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


def test_evaluate_plays_a_checkpoint_and_a_plain_model_alike(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained.checkpoint), str(tmp_path / "model")]) == 0
    capsys.readouterr()
    options = ["--episodes", "8", "--max-tokens-per-turn", "4"]
    assert main(["evaluate", str(trained.checkpoint), *options]) == 0
    from_checkpoint = capsys.readouterr().out
    plain = ["--env", CALCULATOR, "--env-config", "operations=1", "--engine", "transformers"]
    assert main(["evaluate", str(tmp_path / "model"), *plain, *options]) == 0
    from_model = capsys.readouterr().out

    def without_speed(text: str) -> str:
        return text.partition(" sampled")[0]

    assert "episodes     8" in from_checkpoint
    assert without_speed(from_checkpoint) == without_speed(from_model)


def test_an_environment_of_a_stranger_is_played_only_when_it_is_trusted(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that came with the checkpoint, and runs when it is imported."""
    folder = shutil.copytree(trained.checkpoint, tmp_path / "stolen")
    (tmp_path / "evil_envs.py").write_text(
        "import pathlib, gymnasium\npathlib.Path('ran').touch()\n"
        "gymnasium.register('evil/Env-v0', entry_point='gspo_rllib.envs.calculator:CalculatorEnv')\n"
    )
    saved = read_tree(folder, name=NAME)
    saved["settings"]["env"] = "evil_envs:evil/Env-v0"
    write_tree(folder, saved, name=NAME)
    checkpoints.write_manifest(folder)
    monkeypatch.chdir(tmp_path)
    options = ["--episodes", "2", "--max-tokens-per-turn", "4"]
    for command in (["evaluate", "stolen", *options], ["rollout", "stolen", "--episodes", "1"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("gspo-rllib: checkpoint ") and len(error.splitlines()) == 1
        assert "its env is 'evil_envs:evil/Env-v0', code that nobody here has vouched for" in error
        assert "--trust evil_envs on the command line" in error
    # Another environment in its place: the stranger's is not looked at.
    assert main(["evaluate", "stolen", "--env", CALCULATOR, "--env-config", "operations=1", *options]) == 0
    assert not (tmp_path / "ran").exists()
    assert main(["evaluate", "stolen", "--trust", "evil_envs", *options]) == 0
    assert (tmp_path / "ran").exists()


def test_a_trajectory_that_fills_the_context_has_failed(tiny_dense: str, capsys: pytest.CaptureFixture[str]) -> None:
    env = ["--env", "gspo_rllib.envs:gspo_rllib/Quest-v0", "--env-config", "rooms=40", "locks=8"]
    options = ["--engine", "transformers", "--max-tokens-per-turn", "4", "--episodes", "2"]
    assert main(["evaluate", tiny_dense, *env, *options]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (shown["truncated"], shown["success"]) == ("2", "0.000 ± 0.000")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"question": f"{n} + 0?", "answer": str(n)} for n in range(11)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def _evaluate(model: str, dataset: Path, *options: str) -> int:
    env = ["--env", "gspo_rllib.envs:gspo_rllib/Dataset-v0", "--env-config", f"path={dataset}", "verifier=numeric"]
    return main(["evaluate", model, *env, "--engine", "transformers", "--max-tokens-per-turn", "4", *options])


def test_every_row_is_played_as_often_as_asked_and_written_out(
    tiny_dense: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    assert _evaluate(tiny_dense, dataset, "--all", "--samples", "3", "--json", str(file)) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["task_id"], row["question"]) for row in rows] == [(str(n), f"{n} + 0?") for n in range(11)]
    assert [len(row["samples"]) for row in rows] == [3] * 11
    right = [sum(sample["success"] for sample in row["samples"]) for row in rows]
    assert (shown["tasks"], shown["episodes"]) == ("11", "33")
    assert shown["accuracy"].startswith(f"{sum(right) / 33:.3f} [")
    assert shown["pass@3"].startswith(f"{sum(count > 0 for count in right) / 11:.3f} [")
    assert "pass@2" in shown


def test_no_row_counts_twice(tiny_dense: str, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _evaluate(tiny_dense, dataset) == 0
    assert "episodes     11\n" in capsys.readouterr().out
    assert _evaluate(tiny_dense, dataset, "--episodes", "12") == 2
    assert "--episodes 12: there are 11 tasks. Use --all, with --samples K" in capsys.readouterr().err


def test_a_row_that_cannot_be_played_is_told_and_no_other_is_played_in_its_place(
    tiny_dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"{n} + 0?" + " long" * 2000 * (n == 3), "answer": str(n)} for n in range(5)]
    dataset = tmp_path / "long.jsonl"
    dataset.write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "rows.jsonl"
    assert _evaluate(tiny_dense, dataset, "--all", "--json", str(file)) == 0
    assert [json.loads(line)["task_id"] for line in file.read_text().splitlines()] == ["0", "1", "2", "4"]
    assert "not played   1 of 5 tasks, and the scores are of the others: [" in capsys.readouterr().out


def test_a_greedy_score_is_the_same_to_the_bit_and_parquet_says_the_same(
    tiny_dense: str, dataset: Path, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("one.jsonl", "two.jsonl", "three.parquet")]
    for file in files:
        assert _evaluate(tiny_dense, dataset, "--all", "--temperature", "0", "--json", str(file)) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert parquet.read_table(files[2]).to_pylist() == rows


def test_rows_on_standard_output_have_it_to_themselves(
    tiny_dense: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _evaluate(tiny_dense, dataset, "--all", "--json") == 0
    output = capsys.readouterr()
    assert [json.loads(line)["task_id"] for line in output.out.splitlines()] == [str(n) for n in range(11)]
    assert "episodes     11" in output.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--all", "--episodes", "3"], "--all plays every task, --episodes so many of them: give one of the two."),
        (["--episodes", "0"], "--episodes: expected a whole number >= 1, got 0."),
        (["--samples", "-1"], "--samples: expected a whole number >= 1, got -1."),
        (["--json", "rows.csv"], "--json: 'rows.csv' must end in .jsonl or .parquet, which says how rows are written."),
        (["--json", "/no/such/rows.jsonl"], "--json: there is no folder '/no/such' to write 'rows.jsonl' into."),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_anything_is_loaded(
    options: list[str], message: str, tiny_dense: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _evaluate(tiny_dense, dataset, *options) == 2
    assert message in capsys.readouterr().err


def test_every_task_of_an_environment_that_counts_none_is_refused(
    tiny_dense: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", tiny_dense, "--env", CALCULATOR, "--engine", "transformers", "--all"]) == 2
    assert "does not count its tasks (it has no num_tasks())" in capsys.readouterr().err


def test_rows_hold_what_utf_8_has_not_as_its_escape(tmp_path: Path) -> None:
    for name in ("rows.parquet", "rows.jsonl"):
        write_rows([{"question": "\ud800 hi", "samples": [{"reply": "a\udc00"}]}], tmp_path / name)
    (row,) = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert row == {"question": "\\ud800 hi", "samples": [{"reply": "a\\udc00"}]}
