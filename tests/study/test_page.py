"""The page: what it says of results, and what it does not say."""

from __future__ import annotations

import json

from gspo_rllib.study.design import Study, read_study
from gspo_rllib.study.page import render, write_curves
from gspo_rllib.study.raw import Result


def a_study(tmp_path) -> Study:
    file = tmp_path / "s.yaml"
    file.write_text(
        json.dumps(
            {
                "study": {
                    "title": "Two",
                    "findings": "- B is slower.\n- See",
                    "config": "calculator",
                    "iterations": 3,
                    "seeds": [0, 1, 2, 3],
                },
                "objectives": {"A": {"run.algorithm": "GSPO"}, "B": {"run.algorithm": "GRPO"}},
                "cells": {"far": {"training.num_minibatches": 16}, "near": {}},
            }
        )
    )
    return read_study(file)


def runs(cell: str, objective: str, *curves: list[float]) -> list[Result]:
    return [
        Result(cell, objective, seed, [{"score": s, "cpu_s": 2.0, "clip_fraction": 0.01} for s in curve])
        for seed, curve in enumerate(curves)
    ]


A_FAR = runs("far", "A", [0.4, 0.9, 0.95, 0.9], [0.4, 0.8, 0.9, 1.0], [0.4, 0.95, 0.9, 0.95], [0.4, 0.9, 0.9, 0.9])
B_FAR = runs("far", "B", [0.4, 0.5, 0.6, 0.2], [0.4, 0.5, 0.6, 0.7], [0.4, 0.5, 0.6, 0.6], [0.4, 0.5, 0.6, 0.65])


def test_a_difference_is_named_where_its_interval_leaves_zero_out(tmp_path) -> None:
    page = render(a_study(tmp_path), A_FAR + B_FAR, {}, command="make it")
    assert "far: B ends 0.40 below A (95 % from" in page
    row = next(line for line in page.splitlines() if line.startswith("| B | 4 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == "0.40"
    assert cells[6].endswith(", 0.125") and cells[7].endswith(", 0.125"), "four pairs, all of one sign: 2/16"
    assert "far: B is 0.35 below A on the way" in page
    assert cells[8] == "never (0 of 4)"
    assert cells[9] == "1 of 4", "0.2 is below half of 0.6"
    row = next(line for line in page.splitlines() if line.startswith("| A | 4 |"))
    assert "| 1 (4 of 4) |" in row
    assert "`make it`" in page
    assert page.index("\n\n- B is slower.\n- See\n\nScores are") < page.index("far: B ends")


def test_what_was_measured_beside_stands_below_the_table(tmp_path) -> None:
    late = [
        Result("far", name, 0, [{"score": 0.4}, *({"score": 0.5, "staleness": s, "router_drift": 0.0} for s in ages)])
        for name, ages in {"A": (0.0, 1.0), "B": (2.0, 4.0)}.items()
    ]
    page = render(a_study(tmp_path), late, {}, command="make it")
    assert "\n\nWeights versions between sampling and update: A 0.500, B 3.000.\n\n" in page
    assert "experts" not in page, "nothing drifted"


def test_what_the_runs_cost_is_said(tmp_path) -> None:
    costly = [Result("far", "A", seed, [{"score": 0.4}, {"score": 0.5, "total_cpu_s": 1800.0}]) for seed in range(3)]
    study = a_study(tmp_path)
    assert "Training took 1.5 hours of a processor core in 3 runs." in render(study, costly, {}, command="c")
    page = render(study, costly, {}, tuning=costly[:2], command="c")
    assert "Training took 1.5 hours of a processor core in 3 runs, and 1.0 in 2 runs of tuning." in page
    shared = [Result("far", "B", seed, [{"score": 0.4}, {"score": 0.5, "wall_s": 720.0}]) for seed in range(2)]
    page = render(study, costly + shared, {}, command="c")
    assert "core in 3 runs; 2 more of several processes each took 0.4 hours on the clock." in page
    page = render(study, shared, {}, command="c")
    assert "Training: 2 runs of several processes each took 0.4 hours on the clock." in page


def test_where_nothing_differs_the_page_says_so(tmp_path) -> None:
    same = [Result("far", "B", run.seed, run.rows) for run in A_FAR[1:]] + runs("far", "B", [0.4, 0.9, 0.95, 0.91])
    page = render(a_study(tmp_path), A_FAR + same, {}, command="x")
    assert "In no cell does an objective differ" in page


def test_what_was_not_run_is_said(tmp_path) -> None:
    page = render(a_study(tmp_path), A_FAR, {}, command="x")
    assert "## near\n" in page
    assert "Not run." in page
    assert "| B | 0 |" in page


def test_a_study_without_a_trial_claims_nothing(tmp_path) -> None:
    page = render(a_study(tmp_path), [], {}, command="x")
    assert "No trial has been run yet." in page
    assert "In no cell" not in page


def test_one_seed_is_never_a_difference(tmp_path) -> None:
    page = render(a_study(tmp_path), A_FAR[:1] + B_FAR[:1], {}, command="x")
    assert "In no cell does" in page


def test_the_picture_is_one(tmp_path) -> None:
    write_curves(a_study(tmp_path), A_FAR + B_FAR, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
