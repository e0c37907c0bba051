"""What the gradients section of a study asks for, cell by cell."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gspo_rllib.errors import SettingError
from gspo_rllib.study.design import Study, read_study
from gspo_rllib.study.gradient_plan import Noise, gradient_plans
from gspo_rllib.study.gradients import _digest, gradients_section, missing_gradients, run_gradients
from gspo_rllib.study.raw import FOLDER, write_rows

STUDY = """
study: {config: calculator}
objectives:
  GSPO: {run.algorithm: GSPO}
  GRPO: {run.algorithm: GRPO}
  measured: {run.algorithm: GSPO, training.clip_scaling: deviations}
cells:
  short: {}
  long: {objectives: [measured, GRPO]}
"""


def a_study(tmp_path, gradients: str) -> Study:
    file = tmp_path / "s.yaml"
    file.write_text(f"{STUDY}{gradients}")
    return read_study(file)


def test_a_cell_may_have_entries_of_its_own(tmp_path) -> None:
    section = "gradients: {cells: {short: , long: {steps: [8, 1], noise: []}}, groups: 16, noise: [0.3], seeds: [0, 1]}"
    short, long = gradient_plans(a_study(tmp_path, section))
    assert (short.cell.name, short.steps, short.groups, short.noise) == ("short", (1, 2, 4, 8), 16, (Noise(0.3),))
    assert (long.cell.name, long.steps, long.groups, long.noise) == ("long", (1, 8), 16, ())
    assert list(short.objectives) == ["GSPO", "GRPO"], "not those whose range follows from training"
    assert list(long.objectives) == ["GRPO"]


def test_a_cell_may_be_another_but_for_some_settings(tmp_path) -> None:
    """What is measured under it is its own: other settings are another digest, and the trials are none of its."""
    section = (
        "gradients: {cells: {short: , longer: {like: short, settings: {training.lr: 1.0e-3}, groups: 16}}, seeds: [0]}"
    )
    study = a_study(tmp_path, section)
    short, longer = gradient_plans(study)
    assert (longer.cell.name, longer.like, longer.groups) == ("longer", "short", 16)
    assert longer.cell.settings == {**short.cell.settings, "training.lr": 1e-3} != short.cell.settings
    assert longer.objectives == short.objectives
    same = dataclasses.replace(longer, groups=short.groups)
    assert _digest(same, 0) != _digest(short, 0)
    assert {trial.cell for trial in study.trials({})} == {"short", "long"}
    row = {"steps": 1, "noise": "0", "objective": "GSPO", "tokens": 12.4}
    write_rows(tmp_path / FOLDER / "gradients" / "longer" / "0.json", [row], _digest(longer, 0))
    shown = gradients_section([short, longer], tmp_path)
    assert "### short" not in shown
    assert "### longer\n\nAs *short*, but `training.lr: 0.001`. 12 sampled tokens" in shown


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("longer: {steps: [1]}", r"cells\.longer\.like: expected one of the study's cells, short, long, got None"),
        ("longer: {like: shorter}", r"cells\.longer\.like: .*, got 'shorter'"),
        ("longer: {like: short}", r"cells\.longer\.settings: expected settings as section\.key.*'short', got None"),
        ("longer: {like: short, settings: {lr: 1}}", r"cells\.longer\.settings: .*got \{'lr': 1\}"),
        ("short: {like: long}", r"cells\.short: no entry 'like'"),
        ("LONG: {like: long, settings: {training.lr: 1}}", "two names are the same as a folder's name: long"),
    ],
)
def test_a_cell_that_nobody_could_tell_from_another_is_refused(tmp_path, cell: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        gradient_plans(a_study(tmp_path, f"gradients: {{cells: {{{cell}}}}}"))


def test_settings_are_known_to_be_right_before_the_first_cell_is_measured(tmp_path) -> None:
    section = "gradients: {cells: {short: , longer: {like: short, settings: {training.lrr: 1}}}}"
    plans = gradient_plans(a_study(tmp_path, section))
    with pytest.raises(SettingError, match=r"cell 'longer'.*lrr"):
        run_gradients(tmp_path, missing_gradients(plans, tmp_path), say=pytest.fail)


def test_a_cell_with_nothing_to_measure_is_refused(tmp_path) -> None:
    study = a_study(tmp_path, "  ranges: {objectives: [measured]}\ngradients: {cells: [ranges]}")
    with pytest.raises(SettingError, match=r"objectives: expected a list out of GSPO, GRPO \(not .*, got \[\]"):
        gradient_plans(study)


def test_without_the_section_there_is_nothing_to_measure(tmp_path) -> None:
    assert gradient_plans(a_study(tmp_path, "")) == ()


@pytest.mark.parametrize(("noise", "share"), [(Noise(0.3), 1.0), (Noise(3.0, 0.01), 0.01)])
def test_noise_is_as_large_as_it_says_on_as_many_tokens_as_it_says(noise: Noise, share: float) -> None:
    logp = np.full(200_000, -50.0, np.float32)
    off = noise.on(logp, np.random.default_rng(0)).astype(float) - logp
    assert np.mean(off != 0) == pytest.approx(share, rel=0.05)
    assert off.std() == pytest.approx(0.3, rel=0.05), "both are 0.3 nats over all tokens"
    assert np.abs(off).max() > 4 * 0.3


def test_no_log_prob_is_above_zero_for_noise() -> None:
    noisy = Noise(2.0).on(np.full(1000, -0.1, np.float32), np.random.default_rng(0))
    assert noisy.dtype == np.float32
    assert noisy.max() == 0.0


def test_figures_are_of_the_objective_whose_steps_move_the_policy(tmp_path) -> None:
    """Measured in another order, they are others."""
    (plan,) = gradient_plans(a_study(tmp_path, "gradients: {cells: [short]}"))
    other = dataclasses.replace(plan, objectives=dict(reversed(plan.objectives.items())))
    write_rows(tmp_path / FOLDER / "gradients" / "short" / "0.json", [{"steps": 1}], _digest(plan, 0))
    assert missing_gradients([plan], tmp_path) == []
    with pytest.raises(SettingError, match="was measured with other settings"):
        missing_gradients([other], tmp_path)
