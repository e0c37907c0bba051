"""The progress line: what one watches, in 80 columns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gspo_rllib.cli import progress


def test_the_progress_line_says_what_one_watches(trained: SimpleNamespace) -> None:
    lines = trained.text.splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.lstrip().startswith("iter")]
    row = dict(zip(lines[head].split(), lines[head + 2].split(), strict=True))
    assert row["iter"] == "2/2"
    assert row["success"].endswith("%")
    assert float(row["tok/s"]) > 0
    assert all(row[phase].endswith("s") for phase in ("sample", "update"))
    assert row["left"] == "0:00"
    assert str(trained.checkpoint.parent.parent.name) in trained.text


@pytest.mark.parametrize("evaluates", [True, False])
def test_a_line_of_long_numbers_fits_a_terminal(evaluates: bool) -> None:
    score = {"success_mean": 0.5, "success_group_square_mean": 0.4, "num_groups": 16, "episode_return_mean": -0.123}
    places = ("env_runners/", "evaluation/env_runners/")
    flat = {f"{place}{name}": value for place in places for name, value in score.items()}
    flat |= {"training_iteration": 149, progress.LAST_ITERATION: 150}
    flat |= {"time_total_s": 7_200.0, progress.SECONDS_LEFT: 59.0}
    flat |= {f"{progress.LEARNER}clip_fraction": 1.0, f"{progress.LEARNER}kl_to_behavior": 1.2e-10}
    flat |= {"env_runners/num_tokens_sampled": 1e6, **dict.fromkeys(progress.PHASES.values(), 99.9)}
    columns = progress.columns(evaluates=evaluates)
    shown = progress.line(flat, columns)
    assert len(shown) <= 80
    assert len(progress.header(columns)) <= 80
    assert shown.split()[0] == "149/150"
    assert "-" not in shown.split()
