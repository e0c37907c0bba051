"""An env runner's engine: proven once, and its failures are its own, whenever they happen."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.engines import registry, trial
from gspo_rllib.engines.proof import Conversation
from gspo_rllib.env_runners import engine_user
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.errors import EngineError, EngineLostError, GSPOError
from tests import toy_engines
from tests.env_runners.small_runner import Weights, runner_config

ASKED = Conversation([[9, 8]], list(range(40, 60)), [7], 1.0)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Engines that were tried; none of them works."""
    tried: list[str] = []
    monkeypatch.setattr(trial, "_try", lambda spec, engine: tried.append(engine) or "it would not start.")
    return tried


@pytest.fixture
def runner_with(tiny_dense: str) -> Iterator[Callable[..., LanguageEnvRunner]]:
    made: list[LanguageEnvRunner] = []

    def make(engine: str, **changes: Any) -> LanguageEnvRunner:
        config = runner_config(tiny_dense, toy_engines.Coin, engine=engine, **changes)
        made.append(LanguageEnvRunner(config=config, worker_index=0, num_workers=0))
        return made[-1]

    yield make
    for runner in made:
        runner.stop()
    assert not registry._held


def test_a_new_engine_shows_what_it_samples_until_it_is_proven(
    runner_with: Callable[..., LanguageEnvRunner], weights: Weights
) -> None:
    runner, evaluation = runner_with("transformers"), runner_with("transformers", in_evaluation=True)
    runner.set_weights(weights, 1)
    evaluation.set_weights(weights, 1)
    first = runner.converse(ASKED)
    assert first is not None and first.version == 1 and [len(a.token_ids) for a in first.answers] == [6, 6, 6]
    assert runner.converse(ASKED) is not None, "nobody has looked at it yet"

    runner.mark_proven()
    runner.set_weights(weights, 2)
    assert runner.converse(ASKED) is None
    assert evaluation.converse(ASKED) is None, "it has the same engine"

    evaluation.stop()
    runner.stop()
    runner.set_weights(weights, 2)
    assert runner.converse(ASKED) is not None, "another engine"


def _take_all(runner: LanguageEnvRunner) -> None:
    while runner.take_finished(5.0).num_in_flight:
        pass


@pytest.mark.parametrize("when", ["sample", "background"])
@pytest.mark.parametrize(
    ("engine", "message"), [("FailsToStep", "the kernel is gone"), ("RefusesRequests", "stop is not supported")]
)
def test_a_proven_engine_that_fails_ends_sampling_and_is_named(
    runner_with: Callable[..., LanguageEnvRunner],
    weights: Weights,
    engine: str,
    message: str,
    when: str,
    tiny_dense: str,
) -> None:
    runner = runner_with(engine)
    runner.set_weights(weights, 1)
    assert runner.converse(ASKED) is not None
    runner.mark_proven()
    groups = [str(n) for n in range(20)]
    if when == "background":
        runner.sample_in_background(groups)
    with pytest.raises(EngineError) as caught:
        runner.sample_groups(groups, weights_version=1) if when == "sample" else _take_all(runner)
    said = str(caught.value)
    assert message in said and f"engine {engine!r}" in said and tiny_dense in said
    assert "serve" not in said, "an engine that worked is no reason to try others"


@pytest.mark.parametrize(("engine", "message"), [("CannotBeBuilt", "no kernel"), ("FailsToLoad", "router.bias")])
def test_an_engine_that_never_worked_names_what_was_tried_instead(
    runner_with: Callable[..., LanguageEnvRunner], weights: Weights, trials: list[str], engine: str, message: str
) -> None:
    with pytest.raises(GSPOError) as caught:
        runner_with(engine).set_weights(weights, 1)
    said = str(caught.value)
    assert message in said and f"engine {engine!r}" in said
    assert "transformers" in trials and said.count("was tried just now and cannot serve it either") == len(trials)


def test_a_failure_in_a_call_by_rllib_is_kept_and_ends_no_process(
    runner_with: Callable[..., LanguageEnvRunner], weights: Weights
) -> None:
    runner = runner_with("RefusesRequests")
    runner.raise_engine_failure()
    runner.set_weights(weights, 1)
    with pytest.raises(EngineError, match="stop is not supported"):
        runner.apply(lambda self: self.sample(num_episodes=2))
    with pytest.raises(EngineError, match="stop is not supported"):
        runner.raise_engine_failure()
    assert runner.apply(lambda self, *, more: more, more=3) == 3


@pytest.mark.parametrize(
    ("worker", "is_actor", "was_built", "was_restarted", "ends"),
    [
        (1, True, True, False, True),
        (1, True, False, True, True),
        (1, True, False, False, False),  # the machine has no room for it, and would not have any for the next
        (0, True, True, False, False),  # a driver that is an actor: its env runner is the driver
        (1, False, True, False, False),
    ],
)
def test_a_runner_that_can_be_replaced_ends_with_its_engines_process(
    runner_with: Callable[..., LanguageEnvRunner],
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    worker: int,
    is_actor: bool,
    was_built: bool,
    was_restarted: bool,
    ends: bool,
) -> None:
    class Context:
        was_current_actor_reconstructed = was_restarted

        def get_actor_id(self) -> str | None:
            return "actor" if is_actor else None

    def end(error: EngineLostError) -> None:
        raise SystemExit(str(error))

    def lose(runner: object) -> None:
        raise EngineLostError("the engine's process was ended by SIGKILL")

    runner = runner_with("transformers")
    if was_built:
        runner.set_weights(weights, 1)
    runner.worker_index = worker
    monkeypatch.setattr(engine_user.ray, "get_runtime_context", Context)
    monkeypatch.setattr(engine_user, "end_process", end)
    with pytest.raises(SystemExit if ends else EngineLostError, match="ended by SIGKILL"):
        runner.apply(lose)


def test_an_engine_that_was_killed_while_it_was_built_is_lost_and_no_other_is_tried(
    runner_with: Callable[..., LanguageEnvRunner], weights: Weights, trials: list[str]
) -> None:
    with pytest.raises(EngineLostError, match=r"engine .KilledWhileBuilt. with model .* ended by SIGKILL"):
        runner_with("KilledWhileBuilt").set_weights(weights, 1)
    assert not trials


@pytest.mark.slow
@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_runner_whose_engine_hangs_is_replaced_and_its_groups_are_played(
    max_staleness: int, tiny_dense: str, ray_local: None, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_dense, tmp_path / "model")
    config = (
        GSPOConfig()
        .environment(toy_engines.Coin)
        .rl_module(model_config={"path": str(model)})
        .generation(engine="HangsOnce", max_tokens_per_turn=4, engine_timeout_s=3.0)
        .env_runners(num_env_runners=1, num_envs_per_env_runner=4)
        .training(group_size=2, groups_per_iteration=4, lr=1e-3)
        .debugging(seed=1)
    )
    if max_staleness:
        config.training(max_staleness=1, rollout_correction="truncate", rollout_correction_level="sequence_mean")
    algorithm = config.build_algo()
    try:
        assert not (model / "hung").exists()
        algorithm.train()
        assert (model / "hung").exists()
        assert algorithm.get_state(components=[])["next_group"] - len(algorithm._source.unfinished) == 4
    finally:
        algorithm.stop()


def test_an_engine_of_the_drivers_own_process_that_hangs_is_told_of(
    runner_with: Callable[..., LanguageEnvRunner], weights: Weights, caplog: pytest.LogCaptureFixture
) -> None:
    runner = runner_with("transformers", engine_timeout_s=0.05)
    runner.set_weights(weights, 1)
    engine = runner._acquire_engine()
    with registry.watched(engine):
        time.sleep(0.5)
    assert "the engine has not answered for 0 s (generation.engine_timeout_s is 0.05)" in caplog.text
    assert "this process cannot be replaced" in caplog.text
