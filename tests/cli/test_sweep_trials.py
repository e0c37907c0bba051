"""What trials are judged by and how they are reported."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.policy_gradient.task_record import FILE, task_sets, write_tasks
from gspo_rllib.cli.sweep_points import Point
from gspo_rllib.cli.sweep_resume import check_tasks, going_on_in
from gspo_rllib.cli.sweep_trials import Judge, Points, row, scheduler, state
from gspo_rllib.configs import RunSettings
from gspo_rllib.errors import SettingError


def _judged(judge: Judge, result: dict) -> float | None:
    judge(result=result, algorithm=None, metrics_logger=None)
    return result.get("sweep", {}).get("score")


def test_a_trial_is_judged_by_its_latest_evaluation() -> None:
    """Between two evaluations the last one holds; what an iteration samples is another measure, and never counts."""
    judge = Judge("success", evaluates=True)
    sampled = {"env_runners": {"success_mean": 0.9}}
    assert _judged(judge, {"training_iteration": 1, **sampled}) is None
    evaluated = {"evaluation": {"env_runners": {"success_mean": 0.25}}}
    assert _judged(judge, {"training_iteration": 2, **sampled, **evaluated}) == 0.25
    assert _judged(judge, {"training_iteration": 3, **sampled}) == 0.25


@pytest.mark.parametrize(
    ("metric", "value"),
    [("success", 0.5), ("return", -3.0), ("learners/default_policy/entropy", 1.25), ("learners/no_such", None)],
)
def test_any_measure_may_be_the_one(metric: str, value: float | None) -> None:
    result = {
        "training_iteration": 1,
        "env_runners": {"success_mean": 0.5, "episode_return_mean": -3.0},
        "learners": {"default_policy": {"entropy": 1.25}},
    }
    assert _judged(Judge(metric, evaluates=False), result) == value


def test_without_success_the_return_counts() -> None:
    result = {"training_iteration": 1, "env_runners": {"episode_return_mean": 7.0}}
    assert _judged(Judge("success", evaluates=False), result) == 7.0


def test_schedulers_compare_where_there_is_an_evaluation() -> None:
    limits = RunSettings(iterations=90, evaluate_every=20)
    points = [
        Point("a", {"lr": 1e-5, "seed": 1}),
        Point("b", {"lr": 3e-5, "seed": 2}),
        Point("c", {"lr": 1e-5, "seed": 3}),
    ]
    asha = scheduler("asha", limits, points)
    assert [milestone for milestone, _ in asha._brackets[0]._rungs] == [60, 20]
    pbt = scheduler("pbt", limits, points)
    assert pbt._perturbation_interval == 20
    assert pbt._hyperparam_mutations == {"lr": [1e-5, 3e-5]}, "a seed is nothing to be moved"
    assert scheduler(None, limits, points) is None


def test_a_line_says_how_a_trial_ended() -> None:
    limits = RunSettings(iterations=8, evaluate_every=4)
    evaluation = {"env_runners": {"success_mean": 0.5, "episode_return_mean": 0.75}}
    result = {"training_iteration": 4, "time_total_s": 3700.0, "evaluation": evaluation}
    assert state(result, limits) == "stopped"
    assert state(result | {"training_iteration": 8}, limits) == "done"
    label = "lr=1e-05," + "x" * 200
    assert row(result, limits, "stopped", label) == f"      4/8     50%   0.750 1:01:40  stopped  {label}"
    assert row({}, limits, "failed", "a").split() == ["0/8", "-", "-", "0:00", "failed", "a"]


def test_a_sweep_that_goes_on_makes_only_the_trials_that_were_never_made(tmp_path: Path) -> None:
    points = [Point(f"lr={number}", {"lr": number}) for number in range(4)]
    before, after = (Points(points, at_once=2)._inner.searcher.searcher for _ in range(2))
    assert [before.suggest(str(number))["lr"] for number in range(3)] == [0, 1, 2]
    before.save(str(tmp_path / "state"))
    after.restore(str(tmp_path / "state"))
    assert after.suggest("3") == {"lr": 3}
    assert after.suggest("4") == Searcher.FINISHED


def test_trials_of_before_are_what_the_others_are_compared_with(tmp_path: Path) -> None:
    """Two trials had passed the first rung; a third one that is worse than both stops there."""
    for name, score in (("a", 0.9), ("b", 0.8)):
        (tmp_path / name).mkdir()
        rows = [{"training_iteration": n, "sweep": {"score": score}} for n in range(1, 13)]
        (tmp_path / name / "result.json").write_text("\n".join(map(json.dumps, rows)))
    limits = RunSettings(iterations=90)

    def verdict(*earlier: str) -> str:
        asha = scheduler("asha", limits, [Point("a", {"lr": 1e-5})])
        for name in earlier:
            path = str(tmp_path / name)
            asha.on_trial_add(None, SimpleNamespace(trial_id=name, path=path, has_reported_at_least_once=True))
        new = SimpleNamespace(trial_id="new", has_reported_at_least_once=False)  # a new one has no path yet
        asha.on_trial_add(None, new)
        return asha.on_trial_result(None, new, {"training_iteration": 10, "sweep/score": 0.1})

    assert (verdict(), verdict("a", "b")) == ("CONTINUE", "STOP")


@pytest.mark.parametrize(("iteration", "compared"), [(11, False), (19, False), (20, True)])
def test_population_based_training_goes_on_at_its_own_pace(iteration: int, compared: bool) -> None:
    """Compared every ten iterations, cut short at 11: the next time is 20, and not the first result there is."""
    pbt = scheduler("pbt", RunSettings(iterations=90), [Point("a", {"lr": 1e-5}), Point("b", {"lr": 3e-5})])
    asked: list[str] = []
    tune = SimpleNamespace(search_alg=None, get_trials=lambda: asked.append("who waits") or [])
    trial = Trial("stub", stub=True, config={"lr": 1e-5})
    trial.run_metadata.last_result = {"training_iteration": 11}
    pbt.on_trial_add(tune, trial)
    verdict = pbt.on_trial_result(tune, trial, {"training_iteration": iteration, "sweep/score": 0.1})
    assert verdict == "CONTINUE" and bool(asked) == compared


def test_a_sweep_that_never_began_is_not_continued(tmp_path: Path) -> None:
    run = SimpleNamespace(config=SimpleNamespace(algo_class=dict))
    with pytest.raises(SettingError, match=r"was cut short before any trial began\. Start the sweep anew"):
        going_on_in(tmp_path, run, {})


def test_a_sweep_is_not_continued_with_other_tasks(tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 1?", "answer": n + 1} for n in range(4)]
    settings = {"env_config": {"rows": rows}}
    config = GSPOConfig().environment("gspo_rllib.envs:gspo_rllib/Dataset-v0", **settings)
    run, points = SimpleNamespace(config=config), [Point("lr=1", {"lr": 1})]
    for number in (0, 1):
        (tmp_path / "lr=1" / f"checkpoint_{number:06}").mkdir(parents=True)
        write_tasks(tmp_path / "lr=1" / f"checkpoint_{number:06}", task_sets(config))
    check_tasks(tmp_path, run, points)
    (tmp_path / "lr=1" / "checkpoint_000002").mkdir()
    (tmp_path / "lr=1" / "checkpoint_000002" / FILE).write_text('{"train')  # Tune had no room for more
    check_tasks(tmp_path, run, points)
    rows.append({"question": "1?", "answer": 1})
    with pytest.raises(SettingError, match=r"lr=1 has other tasks now .* \(training: 4 tasks then, 5 now\)"):
        check_tasks(tmp_path, run, points)
    check_tasks(tmp_path, run, [Point("rows", settings)])  # each trial has tasks of its own
