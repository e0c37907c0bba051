"""`gspo-rllib replay`: what a run sampled is sampled again from its checkpoint, id by id, or the difference is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from gspo_rllib.cli.main import main
from gspo_rllib.trajectory_table import FOLDER, file_of, read_table, write_table


@pytest.fixture
def run(trained: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of a run of two iterations with a checkpoint after each, to be changed."""
    shutil.copytree(trained.folder, tmp_path / "run")
    return tmp_path / "run"


def _row(run: Path, iteration: int) -> dict:
    return read_table(file_of(run / FOLDER, iteration))[-1]


def _name(row: dict) -> str:
    return f"{row['group_id']}/{row['index']}"


@pytest.mark.parametrize(
    ("iteration", "weights"), [(1, "0 of the model that the run began with"), (2, "1 of checkpoint iteration_000001")]
)
def test_every_id_of_both_iterations_agrees(
    iteration: int, weights: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = _row(run, iteration)
    assert main(["replay", str(run), _name(row)]) == 0
    ids = sum(len(turn["sampled_ids"]) for turn in row["turns"])
    assert capsys.readouterr().out.splitlines() == [
        f"{_name(row)} of iteration {iteration}, weights version {weights}",
        f"every id agrees: {len(row['turns'])} turns, {ids} sampled ids; log-probabilities the same",
    ]


def test_what_was_recorded_and_not_kept_is_played_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = _row(run, 1)
    kept = [other for other in read_table(file_of(run / FOLDER, 1)) if other["group_id"] != row["group_id"]]
    write_table(file_of(run / FOLDER, 1), kept)
    assert kept and main(["replay", str(run), _name(row)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{_name(row)}, weights version 0 of the model that the run began with\nevery id agrees: ")


def test_an_id_that_was_changed_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_table(file_of(run / FOLDER, 2))
    turn = rows[-1]["turns"][-1]
    before, turn["sampled_ids"][-1] = turn["sampled_ids"][-1], 5 if turn["sampled_ids"][-1] != 5 else 6
    write_table(file_of(run / FOLDER, 2), rows)
    assert main(["replay", str(run), _name(rows[-1])]) == 1
    said = capsys.readouterr().out
    place = f"turn {len(rows[-1]['turns'])}, sampled id {len(turn['sampled_ids']) - 1}"
    assert f"differs: {place}: recorded id {turn['sampled_ids'][-1]}, replayed id {before}." in said


def test_other_weights_are_told_from_the_log_probabilities(
    run: Path, tiny_dense: str, tiny_tied: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # As if the model that the run began with had been replaced in its folder since.
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(tiny_dense, tiny_tied))
    row = _row(run, 1)
    assert main(["replay", str(run), _name(row)]) == 1
    said = capsys.readouterr().out
    assert "weights version 0 of the model that the run began with\ndiffers: turn " in said
    assert "policy is another" in said


def _two_versions(run: Path) -> None:
    rows = read_table(file_of(run / FOLDER, 2))
    rows[-1]["turns"][0]["version"] = 0
    rows[-1]["turns"].append({**rows[-1]["turns"][0], "version": 1})
    write_table(file_of(run / FOLDER, 2), rows)


def _no_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "iteration_000001")


def _twice(run: Path) -> None:
    rows = read_table(file_of(run / FOLDER, 2))
    write_table(file_of(run / FOLDER, 3), [{**row, "iteration": 3} for row in rows])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_two_versions, "was sampled by weights versions 0, 1, which changed while it was played"),
        (_no_checkpoint, "has no checkpoint of weights version 1, but of 2. A run with run.checkpoint_every=1"),
        (_twice, "2 times, in iterations 2, 3; say which: --iteration"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    change, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = _name(_row(run, 2))
    change(run)
    assert main(["replay", str(run), name]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("17", "GROUP/INDEX is '17'; it must be a group and a number, e.g. 17/3."),
        ("17/x", "GROUP/INDEX is '17/x'"),
        ("999/0", "has no trajectory 999/0; its groups are "),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(run), name]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path), "1/0"]) == 2
    assert "is no run's folder: it has no result.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_with_an_adapter_and_a_reference_is_played_again(
    config_file: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoints begin with the adapter, and training from there would have to say which reference it means."""
    settings = ["rl_module.model_config.lora={rank: 2}", "training.kl_coeff=0.01", "run.checkpoint_every=1"]
    assert main(["train", config_file, *settings, "--iterations", "2", "--storage", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    for iteration in (1, 2):
        row = _row(folder, iteration)
        assert main(["replay", str(folder), _name(row)]) == 0
        assert "every id agrees" in capsys.readouterr().out
    checkpoint = str(folder / "checkpoints" / "iteration_000002")
    assert main(["rollout", checkpoint, "--episodes", "1"]) == 0
    assert main(["view", checkpoint, "--episodes", "1", "--samples", "2", "--export", str(tmp_path / "page.html")]) == 0
