"""Population-based training by value: after an exchange weights are the donor's, settings the new ones, everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.cli.main import main
from gspo_rllib.cli.sweep_points import Point
from gspo_rllib.cli.sweep_trials import Judge, Points, scheduler
from gspo_rllib.configs import RunSettings, load_config

LRS, RANGES, TEMPERATURES = [1e-3, 3e-3], [0.03, 0.3], [0.8, 1.0]


def _digest(tensors: dict[str, Any]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(np.ascontiguousarray(np.asarray(tensors[name], dtype=np.float32)))
    return found.hexdigest()


class Watch:
    """Writes down what a trial's learner, engine and env runner hold; an RLlib callback."""

    def __init__(self, file: Path, event: str) -> None:
        self._file = file
        self._event = event

    def __call__(self, *, algorithm: Any, **_: Any) -> None:
        """Called by RLlib in the trial's process."""
        learner, runner = algorithm.learner_group._learner, algorithm.env_runner
        engine = runner._acquire_engine()
        module = learner.module[DEFAULT_MODULE_ID].unwrapped()
        optimizer = learner.get_optimizer(DEFAULT_MODULE_ID)
        state = optimizer.state_dict()["state"]
        seen = {
            "event": self._event,
            "trial": algorithm.logdir,
            "iteration": algorithm.iteration,
            "learner": _digest(dict(module.model.state_dict())),
            "engine": _digest(dict(engine._model.state_dict())),
            "moments": _digest({f"{at}/{name}": value for at, slot in state.items() for name, value in slot.items()}),
            "lr": [learner.settings.lr, runner.config.lr, *(group["lr"] for group in optimizer.param_groups)],
            "clip_high": [learner.settings.clip_high, runner.config.clip_high],
            "temperature": [module.temperature, runner.config.temperature],
        }
        with self._file.open("a") as file:  # one line is one write
            file.write(f"{json.dumps(seen)}\n")


def _of(one: dict[str, Any], trained: list[dict[str, Any]], *, own: bool) -> list[dict[str, Any]]:
    """What has the same weights, of the same trial or of others."""
    return [
        other for other in trained if other["learner"] == one["learner"] and (other["trial"] == one["trial"]) == own
    ]


@pytest.mark.slow  # a trial is an actor, and each exchange another one
def test_after_an_exchange_the_donors_weights_sample_with_the_new_settings(
    config_file: str, ray_local: None, tmp_path: Path
) -> None:
    """The trial with the larger learning rate is the better one by definition, so the other one takes over from it."""
    from ray import tune

    events = tmp_path / "events"
    config = load_config(config_file, ["training.num_minibatches=2"])
    judge = Judge("learners/default_policy/default_optimizer_learning_rate", evaluates=False)
    config.callbacks(on_train_result=[judge, Watch(events, "trained")], on_checkpoint_loaded=Watch(events, "restored"))
    settings = [
        {"lr": lr, "clip_high": high, "temperature": t} for lr, high, t in zip(LRS, RANGES, TEMPERATURES, strict=True)
    ]
    points = [Point(str(values), values) for values in settings]
    space = {key: value for key, value in config.to_dict().items() if key not in points[0].values}
    results = tune.Tuner(
        "GSPO",
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=2, search_alg=Points(points, 2), scheduler=scheduler("pbt", RunSettings(iterations=9), points)
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            name="pbt",
            stop={"training_iteration": 4},
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
        ),
    ).fit()
    assert not results.errors
    seen = [json.loads(line) for line in events.read_text().splitlines()]
    trained = [one for one in seen if one["event"] == "trained"]
    restored = [one for one in seen if one["event"] == "restored"]
    moved = [one for one in restored if not _of(one, trained, own=True)]  # the others went on from their own
    assert moved, "the worse trial has taken over from the better one"
    for one in moved:
        donors = _of(one, trained, own=False)
        assert donors and one["engine"] == one["learner"], "weights are the donor's, and the engine has them"
        assert one["moments"] in [donor["moments"] for donor in donors], "the optimiser goes on where the donor's was"
        after = next(
            other for other in seen[seen.index(one) :] if other["event"] == "trained" and other["trial"] == one["trial"]
        )
        for now in (one, after):
            for name, allowed in (("lr", LRS), ("clip_high", RANGES), ("temperature", TEMPERATURES)):
                assert len(set(now[name])) == 1 and now[name][0] in allowed, (name, now[name])
        assert after["learner"] != one["learner"], "and it was trained from there"
    names = ("lr", "clip_high", "temperature")
    last = {one["trial"]: tuple(one[name][0] for name in names) for one in trained}
    assert sorted(last.values()) == sorted(tuple(result.config[name] for name in names) for result in results), (
        "what Tune says that a trial has now is what is at work in it"
    )
    for result in results:  # engine and learner agree on what was sampled
        assert result.metrics["learners"]["default_policy"]["logp_gap_max"] < 1e-4


@pytest.mark.slow
def test_a_population_that_was_interrupted_goes_on_in_its_folder(
    config_file: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted after the first exchange, continued to the end: none comes before its time."""

    def interrupt() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if list(tmp_path.glob("*/pbt_global.txt")):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.05)

    threading.Thread(target=interrupt, daemon=True).start()
    metric = "learners/default_policy/default_optimizer_learning_rate"
    options = ["--iterations", "7", "--evaluate-every", "3", "--storage", str(tmp_path), "run.checkpoint_every=1"]
    sweep = ["sweep", config_file, "training.lr=1e-3,3e-3", *options, "--scheduler", "pbt", "--metric", metric]
    assert main(sweep) == 130
    (folder,) = tmp_path.iterdir()
    told = capsys.readouterr().out
    assert "of 2 trials are not at their end" in told
    assert main(["sweep", "--resume", str(folder)]) == 0
    assert list(tmp_path.iterdir()) == [folder]
    table = capsys.readouterr().out.rpartition("iter success")[2]
    exchanges = [json.loads(line) for line in (folder / "pbt_global.txt").read_text().splitlines()]
    assert {exchange[2] for exchange in exchanges} <= {2, 5}, "Tune writes the result before the one it is at, 3 or 6"
    for trial in ("lr=0.001", "lr=0.003"):
        results = [json.loads(line) for line in (folder / trial / "result.json").read_text().splitlines()]
        assert results[-1]["training_iteration"] == 7
        now = results[-1]["config"]["lr"]
        assert now in LRS and results[-1]["sweep"]["score"] == pytest.approx(now)
        (row,) = [line for line in table.splitlines() if f"  {trial}" in line and "7/7" in line]
        assert row.endswith(trial if trial == f"lr={now}" else f"{trial} (now lr={now})")
