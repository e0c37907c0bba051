"""`gspo-rllib train --resume`: which checkpoint a run goes on from, and that it stays one run."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from gspo_rllib import checkpoints, load_groups
from gspo_rllib.algorithms.policy_gradient.task_record import write_tasks
from gspo_rllib.cli.main import main
from gspo_rllib.cli.resume import find_resume, is_run
from gspo_rllib.configs import RunSettings
from gspo_rllib.env_pool.task_set import task_set
from gspo_rllib.errors import CheckpointError, SettingError

DATASET = "gspo_rllib.envs:gspo_rllib/Dataset-v0"


def _copy(trained: SimpleNamespace, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    return folder


def test_a_run_goes_on_in_its_folder_as_one_run(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One history, one clock, one curve; the second iteration's checkpoint is lost, so that it is trained again."""
    folder = _copy(trained, tmp_path)
    shutil.rmtree(folder / "checkpoints" / "iteration_000002")
    curve = (folder / "learning_curve.png").read_bytes()
    before = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    with (folder / "groups.jsonl").open("a") as file:
        file.write('{"group_id": "8", "traj')  # being written when the process ended
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "run", "training.lr=1e-5", "--iterations", "3"]) == 0
    said = capsys.readouterr().out
    assert "continuing this run from iteration 1, run/checkpoints/iteration_000001; 1 later iterations were" in said
    assert "results: run\n" in said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

    results = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    assert [result["training_iteration"] for result in results] == [1, 2, 3]
    assert results[0] == before[0] and results[1] != before[1]
    spent = 0.0
    for result in results:
        spent += result["time_this_iter_s"]
        assert result["time_total_s"] == pytest.approx(spent)
    with (folder / "progress.csv").open() as file:
        assert [row["training_iteration"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert (folder / "learning_curve.png").read_bytes() != curve
    for checkpoint in (folder / "checkpoints").iterdir():
        checkpoints.verify(checkpoint)
    recorded = [group.group_id for group in load_groups(folder / "groups.jsonl")]
    assert recorded == [str(number) for number in range(12)], "each group once: what was trained again replaces it"

    record = json.loads((folder / "run.json").read_text())
    assert record["resumed_from"]["iteration"] == 1
    assert record["name"] == record["earlier"][0]["name"] == "tiny"
    assert (record["config"]["training"]["lr"], record["earlier"][0]["config"]["training"]["lr"]) == (1e-5, 1e-4)
    assert "training.lr" in record["given"]


def test_a_run_that_is_at_its_limit_says_so_before_anything_starts(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _copy(trained, tmp_path)
    assert main(["train", "--resume", str(folder)]) == 2
    output = capsys.readouterr()
    assert "run.iterations is 2, and" in output.err and "--iterations 4." in output.err
    assert output.out == ""
    resume = find_resume(folder)
    with pytest.raises(SettingError, match="give more to continue"):
        resume.check_limits(RunSettings(minutes=resume.minutes / 2))
    resume.check_limits(RunSettings(minutes=resume.minutes * 2, iterations=3))
    assert main(["train", "--resume", str(folder), "--iterations", "3", "--name", "other"]) == 2
    assert "--name and --storage have no effect" in capsys.readouterr().err


def test_the_newest_whole_checkpoint_is_taken(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _copy(trained, tmp_path)
    resume = find_resume(folder)
    assert (resume.checkpoint.name, resume.iteration, resume.num_lost) == ("iteration_000002", 2, 0)
    (weights,) = checkpoints.policy_folder(resume.checkpoint).glob("*.safetensors")
    weights.write_bytes(b"cut")
    resume = find_resume(folder)
    assert (resume.checkpoint.name, resume.iteration, resume.num_lost) == ("iteration_000001", 1, 1)
    assert "passed over: checkpoint" in capsys.readouterr().err
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(CheckpointError, match="no whole checkpoint, so there is nothing to continue"):
        find_resume(folder)


def test_the_best_checkpoint_counts_by_the_iteration_it_was_evaluated_at(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    folder = _copy(trained, tmp_path)
    results = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    results[1]["evaluation"] = {"env_runners": {"success_mean": 0.5}}
    (folder / "result.json").write_text("".join(f"{json.dumps(result)}\n" for result in results))
    (folder / "checkpoints" / "iteration_000002").rename(folder / "checkpoints" / "best")
    resume = find_resume(folder)
    assert (resume.checkpoint.name, resume.iteration) == ("best", 2)
    assert resume.best is not None and resume.best.value == 0.5


def test_a_checkpoint_is_no_run(trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_run(trained.folder) and not is_run(trained.checkpoint)
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(trained.checkpoint), "--iterations", "3"])
    assert "the following arguments are required: CONFIG" in capsys.readouterr().err


def _asks(folder: Path, rows: list[dict[str, object]]) -> None:
    """Makes the run one over a file of questions, which its checkpoints know."""
    questions = folder / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, rows)))
    file = folder / "config.yaml"
    sections = yaml.safe_load(file.read_text())
    sections["environment"] = {"env": DATASET, "env_config": {"path": str(questions)}}
    file.write_text(yaml.safe_dump(sections))
    tasks = task_set(DATASET, sections["environment"]["env_config"])
    assert tasks is not None
    for checkpoint in (folder / "checkpoints").iterdir():
        write_tasks(checkpoint, {"training": tasks})
        checkpoints.write_manifest(checkpoint)


def test_a_run_is_not_continued_with_other_questions_than_it_was_trained_on(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _copy(trained, tmp_path)
    rows: list[dict[str, object]] = [{"question": f"{n} + 1?", "answer": n + 1} for n in range(4)]
    _asks(folder, rows)
    monkeypatch.chdir(tmp_path)
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, [*rows, *rows])))
    assert main(["train", "--resume", "run", "--iterations", "3"]) == 2
    output = capsys.readouterr()
    assert "has other tasks now than it was trained on (training: 4 tasks then, 8 now)" in output.err
    command = "gspo-rllib train run/config.yaml --resume run/checkpoints/iteration_000002"
    assert output.err.rstrip().endswith(command), "and how to go on with the new ones"
    assert output.out == "", "before anything starts"


@pytest.mark.slow
def test_a_new_run_from_a_checkpoint_says_that_its_questions_are_others(
    config_file: str,
    ray_local: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = [{"question": f"{n} + 1?", "answer": n + 1} for n in range(4)]
    questions.write_text("\n".join(map(json.dumps, rows)))
    settings = [f"environment.env={DATASET}", f"environment.env_config={{path: {questions}}}"]
    command = ["train", config_file, *settings, "--storage", str(tmp_path / "results")]
    assert main([*command, "--iterations", "1"]) == 0
    (run,) = (tmp_path / "results").iterdir()
    checkpoint = run / "checkpoints" / "iteration_000001"
    assert json.loads((checkpoint / "tasks.json").read_text())["training"]["count"] == 4

    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0, "nothing was changed"
    assert "other tasks" not in caplog.text
    questions.write_text("\n".join(map(json.dumps, rows[::-1])))
    assert main(["train", "--resume", str(run), "--iterations", "3"]) == 2
    assert "4 tasks then and now, but not the same ones" in capsys.readouterr().err
    assert main([*command, "--resume", str(checkpoint), "--iterations", "2"]) == 0
    assert "its run had other tasks than this one has (training: 4 tasks then and now" in caplog.text
