"""`gspo-rllib sweep --search optuna`: what it refuses, and in an environment that has Optuna, what it chooses."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gspo_rllib.cli.main import main

ROOT = Path(__file__).parents[2]
LRS = "training.lr=1e-5,3e-5"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([LRS], "say with --samples how many trials"),
        (["--samples", "3"], "there is nothing to choose; give a setting several values."),
        ([LRS, "debugging.seed=1,2", "--samples", "3"], "it would choose the luckiest of debugging.seed's values"),
        ([LRS, "--samples", "3", "--scheduler", "pbt"], "--scheduler pbt changes trials' settings itself"),
        ([LRS, "--samples", "3"], "pip install 'gspo-rllib[optuna]'"),
    ],
)
def test_what_a_search_cannot_do_is_refused_before_anything_starts(
    options: list[str],
    message: str,
    config_file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name == "optuna":
            raise ModuleNotFoundError("No module named 'optuna'")
        return there(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    command = ["sweep", config_file, "--search", "optuna", "--iterations", "1", "--storage", str(tmp_path / "none")]
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


CHOOSES = """
from collections import Counter
from itertools import product
from gspo_rllib.cli.sweep_points import Point
from gspo_rllib.cli.sweep_search import ByOptuna, with_seeds

axes = {"training.lr": list("abcde"), "training.kl_coeff": list("vwxyz")}
points = [Point("".join(c), {"both": "".join(c)}, (), dict(zip(axes, c))) for c in product(*axes.values())]
every = with_seeds(points, seed=3, samples=60)
search = ByOptuna(every, metric="score", samples=60, seed=0)
chosen, seeds = [], {}
for n in range(60):
    values = search.suggest(str(n))
    chosen.append(values["both"])
    seeds.setdefault(values["both"], []).append(values["seed"])
    search.on_trial_result(str(n), {"training_iteration": 1})  # before the first evaluation there is no score
    if n % 7 == 3:
        search.on_trial_complete(str(n), None, error=True)
    else:
        score = -abs("abcde".index(values["both"][0]) - 3) - abs("vwxyz".index(values["both"][1]) - 1)
        search.on_trial_complete(str(n), {"score": score, "training_iteration": 2})
assert search.suggest("more") == search.FINISHED
assert all(found == list(range(3, 3 + len(found))) for found in seeds.values()), seeds
late = Counter(chosen[30:])
assert late.most_common(1)[0][0] == "dw" and late["dw"] >= 6, late  # 1.2 of 30 by chance
"""

FRAGILE = """
import gymnasium
from gspo_rllib.envs.calculator import CalculatorEnv


class Fragile(CalculatorEnv):
    resets = 0

    def __init__(self, *, fails=False, **more):
        super().__init__(**more)
        self.fails = fails

    def reset(self, **how):
        Fragile.resets += 1
        if self.fails and Fragile.resets > 12:  # in a trial's second iteration
            raise RuntimeError("the database is gone")
        return super().reset(**how)


gymnasium.register("mine/Fragile-v0", entry_point=Fragile)
"""


@pytest.mark.slow  # other processes, with packages of their own
def test_the_search_learns_from_scores_and_gives_a_repeated_choice_another_seed(trackers_python: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([trackers_python, "-c", CHOOSES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_failed_trial_does_not_end_a_searched_sweep(trackers_python: str, config_file: str, tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE)
    command = [trackers_python, "-m", "gspo_rllib", "sweep", config_file, "--search", "optuna", "--samples", "4"]
    settings = ["environment.env=fragile:mine/Fragile-v0", "environment.env_config.fails=false,true", LRS]
    options = ["--iterations", "2", "--storage", "r", "--scheduler", "asha", "--trials-at-once", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *settings, *options], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    table = done.stdout.rpartition("  trial\n")[2]
    rows = [line for line in table.splitlines() if re.search(" (done|failed|stopped) +fails=", line)]
    assert len(rows) == 4 and done.stdout.startswith("4 trials, "), said
    failed = [row for row in rows if " failed " in row]
    assert failed and all("fails=True" in row for row in failed) and len(failed) < 4, said
    assert done.returncode == 1 and "the database is gone" in table and "best: fails=False" in table
