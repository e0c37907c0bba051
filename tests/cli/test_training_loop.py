"""The loop of a run: limits, evaluations on a fixed set, the best checkpoint, and what is done about a collapse."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from gspo_rllib import checkpoints, load_groups
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.cli import training_loop
from gspo_rllib.cli.main import main
from gspo_rllib.cli.recorder import RunRecorder
from gspo_rllib.cli.training_loop import TrainingLoop, stop_reason
from gspo_rllib.configs import Run, RunSettings
from gspo_rllib.errors import CheckpointError, EnvError, LearnersLostError, NoProgressError
from tests.toy_envs.coin_env import CoinEnv

SUCCESS = {"env_runners": {"success_mean": 0.9}}


@pytest.mark.parametrize(
    ("result", "minutes", "reason"),
    [
        ({"training_iteration": 4}, 1.0, None),
        ({"training_iteration": 5}, 1.0, "5 iterations done"),
        ({"training_iteration": 1}, 2.0, "2 minutes are over"),
        ({"training_iteration": 1, **SUCCESS}, 0.0, "success 90.0% reached 90.0%"),
        ({"training_iteration": 1, "env_runners": {"success_mean": 0.89}}, 0.0, None),
    ],
)
def test_the_first_limit_reached_stops_a_run(result: dict, minutes: float, reason: str | None) -> None:
    limits = RunSettings(iterations=5, minutes=2, success=0.9)
    assert stop_reason(result, limits, minutes=minutes) == reason


def test_a_run_with_nothing_to_learn_from_may_be_given_up() -> None:
    result = {"training_iteration": 4, "group_selection": {"num_iterations_idle": 4}}
    assert stop_reason(result, RunSettings(), minutes=0) is None
    said = "4 iterations had nothing to learn from (run.give_up_after)"
    assert stop_reason(result, RunSettings(give_up_after=4), minutes=0) == said


def test_where_a_run_evaluates_only_an_evaluation_is_success_enough() -> None:
    limits = RunSettings(success=0.9, evaluate_every=5)
    assert stop_reason({"training_iteration": 1, **SUCCESS}, limits, minutes=0) is None
    evaluated = {"training_iteration": 5, "evaluation": SUCCESS}
    assert stop_reason(evaluated, limits, minutes=0) == "evaluated success 90.0% reached 90.0%"


def test_a_run_that_evaluates_shows_it_and_keeps_the_best_checkpoint(
    config_file: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--iterations", "3", "--evaluate-every", "2", "--evaluate-tasks", "8", "--storage", str(tmp_path)]
    assert main(["train", config_file, *options]) == 0
    shown = capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    results = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    assert ["evaluation" in result for result in results] == [False, True, False]
    evaluated = results[1]["evaluation"]["env_runners"]
    assert evaluated["num_episodes"] == 8
    lines = shown.splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.lstrip().startswith("iter")]
    column = lines[head].split().index("eval")
    score = lines[head + 2].split()[column]
    assert score.startswith(f"{100 * evaluated['success_mean']:.0f}±")
    assert [lines[head + n].split()[column] for n in (1, 3)] == ["-", "-"]
    assert max(map(len, lines[head : head + 4])) <= 80
    checkpoints.verify(folder / "checkpoints" / "best")
    assert f"best: {score} evaluated at iteration 2" in shown


class FadingEnv(CoinEnv):
    """Succeeds in its first episodes and in none after them, whatever the policy does."""

    left = 0

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        FadingEnv.left -= terminated
        return observation, reward, terminated, truncated, info | {"success": FadingEnv.left >= 0}


def _loop(path: str, folder: Path, **limits: Any) -> TrainingLoop:
    settings = RunSettings(evaluate_every=1, evaluate_tasks=16, **limits)
    config = (
        GSPOConfig()
        .environment(FadingEnv)
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", max_tokens_per_turn=4)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .training(group_size=2, groups_per_iteration=4, lr=1e-4)
        .evaluation(evaluation_interval=1, evaluation_duration=16)
        .debugging(seed=0)
    )
    FadingEnv.left = 8 + 16
    run = Run("fading", config, settings, {})
    return TrainingLoop(run, config.build_algo(), RunRecorder(folder, {}), interrupted=lambda: False)


def test_a_policy_that_is_lost_is_said_to_be(
    tiny_dense: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = _loop(tiny_dense, tmp_path, iterations=2)
    try:
        assert loop.run()[1] == "2 iterations done"
    finally:
        loop.close()
    said = "evaluated 0±0% at iteration 2, far below 100±0% at iteration 1: the policy may be lost."
    assert said in capsys.readouterr().out


def test_a_policy_that_is_lost_may_end_the_run(tiny_dense: str, ray_local: None, tmp_path: Path) -> None:
    loop = _loop(tiny_dense, tmp_path, iterations=9, on_collapse="stop")
    try:
        checkpoint, reason = loop.run()
    finally:
        loop.close()
    assert checkpoint.name == "iteration_000002"
    assert reason == (
        "evaluated 0±0% at iteration 2, far below 100±0% at iteration 1 (run.on_collapse=stop); the best checkpoint is "
        f"{tmp_path / 'checkpoints' / 'best'}"
    )


@pytest.mark.slow
def test_a_policy_that_is_lost_may_be_fetched_back_with_a_smaller_step(
    tiny_dense: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(training_loop, "MAX_RESTORES", 2)
    loop = _loop(tiny_dense, tmp_path, iterations=9, on_collapse="restore", record_groups=True)
    try:
        reason = loop.run()[1]
        rate = loop.algorithm.learner_group._learner.get_optimizer().param_groups[0]["lr"]
    finally:
        loop.close()
    assert reason.endswith("after 2 returns to the best checkpoint")
    shown = capsys.readouterr().out
    assert [f"back to iteration 1, with lr={lr}" in shown for lr in (5e-05, 2.5e-05)] == [True, True]
    assert rate == pytest.approx(2.5e-5)
    results = [json.loads(line) for line in (tmp_path / "result.json").read_text().splitlines()]
    assert [result["training_iteration"] for result in results] == [1, 2, 2, 2]
    # Each return draws the same names anew: they are other groups, and in a file of their own.
    files = sorted(tmp_path.glob("groups*.jsonl"))
    assert [file.name for file in files] == ["groups.jsonl", "groups_1.jsonl", "groups_2.jsonl"]
    assert [[len(group.episodes) for group in load_groups(file)] for file in files] == [[2] * 8, [2] * 4, [2] * 4]


class _Ends:
    """Stands in for an algorithm that trains twice, and then cannot go on."""

    failed_updates = trajectory_folder = None

    def __init__(self, error: Exception, save_fails: Exception | None = None, trains: int = 2) -> None:
        self.iteration, self._error, self._save_fails, self._trains = 0, error, save_fails, trains

    def train(self) -> dict[str, Any]:
        if self.iteration == self._trains:
            raise self._error
        self.iteration += 1
        return {"training_iteration": self.iteration, "time_this_iter_s": -3600.0}

    def save_to_path(self, path: Path) -> str:
        if self._save_fails is not None:
            raise self._save_fails
        path.mkdir(parents=True)
        return str(path)


def _run_until_it_ends(algorithm: Any, folder: Path) -> Path:
    run: Any = SimpleNamespace(settings=RunSettings(iterations=9), config=SimpleNamespace(evaluation_interval=None))
    recorder = RunRecorder(folder, {})
    with pytest.raises(type(algorithm._error)) as ended:
        TrainingLoop(run, algorithm, recorder, interrupted=lambda: False, shows=False).run()
    assert ended.value is algorithm._error
    recorder.close()
    seconds = [row["time_total_s"] for row in recorder.rows()]
    assert seconds == sorted(seconds) and all(0 <= s < 60 for s in seconds), "the date was set back; time goes on"
    return folder / "checkpoints" / "iteration_000002"


class _Judged(_Ends):
    """Fares worse and worse on what it samples, and is evaluated at every other iteration."""

    EVALUATED: ClassVar[dict[int, float]] = {2: 0.9, 4: 0.1}

    def train(self) -> dict[str, Any]:
        result = super().train()
        result["env_runners"] = {"success_mean": 1.0 - self.iteration / 10}
        if self.iteration in self.EVALUATED:
            result["evaluation"] = {"env_runners": {"success_mean": self.EVALUATED[self.iteration]}}
        return result

    def save_to_path(self, path: Path) -> str:
        path.mkdir(parents=True, exist_ok=True)
        return str(path)

    def stop(self) -> None:
        pass


@pytest.mark.parametrize(("evaluate_every", "kept"), [(2, [3, 5]), (None, [1, 5])])
def test_checkpoints_are_kept_by_evaluations_where_there_are_any_those_before_a_resume_included(
    tmp_path: Path, evaluate_every: int | None, kept: list[int]
) -> None:
    limits = {"keep_checkpoints": 2, "keep_by": "score", "checkpoint_every": 1, "evaluate_every": evaluate_every}
    algorithm: Any = _Judged(ValueError("never"), trains=9)
    for iterations in (3, 5):
        run: Any = SimpleNamespace(
            settings=RunSettings(iterations=iterations, **limits),
            config=SimpleNamespace(evaluation_interval=evaluate_every),
        )
        recorder = RunRecorder(tmp_path, {}, resume_at=algorithm.iteration)
        TrainingLoop(run, algorithm, recorder, interrupted=lambda: False, shows=False).run()
        recorder.close()
    assert sorted(int(path.name[-6:]) for path in (tmp_path / "checkpoints").glob("iteration_*")) == kept


@pytest.mark.parametrize("kind", training_loop.ENDING)
def test_what_was_trained_is_saved_before_an_error_ends_the_run(
    kind: type[Exception], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = _run_until_it_ends(_Ends(kind("the tools are gone")), tmp_path)
    assert saved.is_dir()
    assert capsys.readouterr().err == f"saved {saved} before the run ends\n"


@pytest.mark.parametrize("failure", [CheckpointError("no room."), LearnersLostError("half an update")])
def test_an_error_that_ends_the_run_is_not_hidden_by_a_save_that_fails(
    failure: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not _run_until_it_ends(_Ends(NoProgressError("none"), failure), tmp_path).exists()
    assert ("not saved before the run ends: no room." in capsys.readouterr().err) == (
        isinstance(failure, CheckpointError)
    )


def test_a_run_that_never_trained_has_nothing_to_save(tmp_path: Path) -> None:
    _run_until_it_ends(_Ends(EnvError("cannot be made"), trains=0), tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*"))
