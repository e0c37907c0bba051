"""The benchmark of environments: every setting is measured, and one that cannot be made stops nothing."""

from __future__ import annotations

import json

import gymnasium

from benchmarks.envs import main as measure_envs
from gspo_rllib.errors import EnvError


class NeedsAnExtra(gymnasium.Env[str, str]):
    def __init__(self) -> None:
        raise EnvError("babel is not installed: pip install 'gspo-rllib[babel]'")


def test_the_benchmark_measures_every_setting_and_goes_on_after_one_that_cannot_be_made(
    tmp_path, capsys, monkeypatch
) -> None:
    broken = "gspo_rllib/Babel-v0"
    monkeypatch.setitem(gymnasium.registry, broken, gymnasium.envs.registration.EnvSpec(broken, NeedsAnExtra))
    rows = measure_envs(["--ids", "Babel", "Bisection", "--seeds", "5", "--json", str(tmp_path / "rows.json")])
    printed = capsys.readouterr().out
    assert [row.setting for row in rows] == ["default", "medium", "hard"]
    assert all(row.expert == 1.0 > row.random_valid and row.turns_max <= row.max_turns for row in rows)
    assert printed.count("| Bisection-v0") == 3
    assert "skipped gspo_rllib/Babel-v0 default: EnvError: babel is not installed: pip install" in printed
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 3
    assert measure_envs(["--ids", "no such id"]) == []
    assert "there are: " in capsys.readouterr().out
