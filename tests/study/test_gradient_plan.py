"""What the gradients section of a study asks for, cell by cell."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gspo_rllib.errors import SettingError
from gspo_rllib.study.design import Study, read_study
from gspo_rllib.study.gradient_plan import Noise, gradient_plans
from gspo_rllib.study.gradients import _digest, missing_gradients
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
