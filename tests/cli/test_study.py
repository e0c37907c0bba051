"""``gspo-rllib study`` as a user runs it: trials, a page, going on; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gspo_rllib.cli.main import main

REPOSITORY = Path(__file__).parents[2]

STUDY = """
study: {config: calculator, iterations: 2, seeds: [0], evaluate_tasks: 8}
objectives:
  GSPO: {run.algorithm: GSPO}
  GRPO:
    run.algorithm: GRPO
    tune: [{training.clip_low: 0.1}, {training.clip_low: 0.2}]
cells:
  base:
    generation.engine: transformers
    rl_module.model_config.path: MODEL
    training.groups_per_iteration: 4
    training.group_size: 4
    training.num_minibatches: 2
    objectives: [GSPO, GRPO tuned]
tuning: {seeds: [9]}
gradients: {cells: [base], steps: [1], groups: 6, minibatch_groups: 2, noise: [0.5, {deviation: 3, share: 0.01}]}
"""


@pytest.mark.slow  # a process for each of its four trials
def test_a_study_runs_tunes_draws_and_goes_on(tmp_path, monkeypatch, capsys, ray_local, tiny_dense) -> None:
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    file.write_text(STUDY.replace("MODEL", str(tiny_dense)))
    monkeypatch.chdir(tmp_path)

    assert main(["study", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "0 of 2 tuning trials are there" in said
    raw = {path.relative_to(out / "raw").as_posix() for path in (out / "raw").rglob("*.json")}
    assert raw == {
        "tuning/grpo-candidate-1/9.json", "tuning/grpo-candidate-2/9.json",
        "base/gspo/0.json", "base/grpo-tuned/0.json", "gradients/base/0.json",
    }  # fmt: skip
    document = json.loads((out / "raw/base/gspo/0.json").read_text())
    assert [row["iteration"] for row in document["rows"]] == [0, 1, 2]
    assert all(row["cpu_s"] > 0 and row["tokens"] > 0 for row in document["rows"][1:])
    rows = json.loads((out / "raw/gradients/base/0.json").read_text())["rows"]
    assert [(row["objective"], row["noise"]) for row in rows] == [
        ("GSPO", noise) for noise in ("0", "0.5", "3 on 0.01 of them")
    ]
    assert all(2 <= row["tokens"] <= 96 for row in rows), "sampled tokens of a trajectory: six turns, 16 each at most"
    page = (out / "README.md").read_text()
    assert "## base" in page
    assert "| GRPO tuned | 1 |" in page
    assert "How true is the gradient?" in page
    assert (out / "README.png").exists()

    before = {path: path.stat().st_mtime_ns for path in (out / "raw").rglob("*.json")}
    elsewhere = tmp_path / "new" / "page.md"
    assert main(["study", str(file), "--out", str(out), "--only-page", "--page", str(elsewhere)]) == 0
    assert main(["study", str(file), "--out", str(out)]) == 0
    assert "2 of 2 trials are there" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (out / "raw").rglob("*.json")}
    other = (out / "README.md").read_text().replace("README.png", "page.png")
    assert elsewhere.read_text() == other.replace(f"--out {out}`", f"--out {out} --page {elsewhere}`")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--minutes", "0"], "--minutes: expected a number > 0, got 0.0."),
        (["--trials-at-once", "0"], "--trials-at-once: expected a whole number >= 1, got 0."),
        (["--cell", "bse"], "--cell: mine has no cell 'bse'; it has 'base'."),
    ],
)
def test_what_it_cannot_do_is_one_sentence(tmp_path, capsys, options, words) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(STUDY)
    assert main(["study", str(file), "--out", str(tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("groups: 6", "groups: 4", "are less than three minibatches"),
        ("steps: [1]", "steps: [0]", "gradients.steps: expected a list of whole numbers >= 1"),
        ("noise: [0.5, ", "noise: [-1, ", "gradients.noise: expected a list of numbers > 0"),
        ("noise: [0.5, ", "noise: [true, ", "gradients.noise: expected a list of numbers > 0"),
        ("share: 0.01", "share: 2", "gradients.noise: expected a list of numbers > 0 (nats, on every token) or of"),
        ("share: 0.01", "part: 0.01", "gradients.noise: expected a list of numbers > 0"),
        ("cells: [base], steps", "cells: [bse], steps", "gradients.cells: expected a list of the study's cells"),
        ("cells: [base], steps", "cells: {base: 3}, steps", "gradients.cells.base: expected 'key: value' lines, got 3"),
        ("[base], steps: [1]", "{base: {groups: 4}}, steps: [1]", "gradients.cells.base.groups: 4 are less than three"),
        ("[base], steps: [1]", "{base: {step: [1]}}", "gradients.cells.base: no entry 'step'; allowed: groups, lr"),
        ("[base], steps: [1]", "{base: {cells: [1]}}", "gradients.cells.base: no entry 'cells'; allowed: groups, lr"),
        ("steps: [1]", "step: [1]", "no entry 'step'; allowed: cells"),
        ("steps: [1]", "steps: [1], lr: 2", "gradients.lr: expected a number between 0 and 1, got 2"),
        ("steps: [1]", "steps: [1], objectives: [GSPOO]", "gradients.objectives: expected a list out of GSPO, GRPO"),
    ],
)
def test_gradients_that_cannot_be_measured_are_refused_before_anything_runs(tmp_path, capsys, old, new, words) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(STUDY.replace(old, new))
    assert main(["study", str(file), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((REPOSITORY / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_is_one(path) -> None:
    from gspo_rllib.study.design import read_study
    from gspo_rllib.study.gradient_plan import gradient_plans

    study = read_study(path)
    gradient_plans(study)
    for trial in study.trials({name: {} for name in study.objectives}) + study.tuning_trials():
        trial.run(None)
