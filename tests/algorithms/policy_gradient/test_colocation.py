"""An engine and a learner that take turns on one device: what is refused, who gives way when, what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.algorithms.policy_gradient import colocation
from gspo_rllib.algorithms.policy_gradient.memory_plan import (
    ASLEEP_BYTES,
    colocation_problems,
    kept_bytes,
    learner_memory,
    model_sizes,
)
from gspo_rllib.engines.transformers import TransformersEngine
from gspo_rllib.errors import EngineError, LearnersLostError, SettingError, WeightSyncError
from gspo_rllib.learners.language_learner import LanguageLearner
from tests.toy_envs.coin_env import CoinEnv


def _config(path: str, *, colocate: bool = True, **generation: Any) -> GSPOConfig:
    return (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": path})
        .generation(**{"engine": "transformers", "max_tokens_per_turn": 6, "colocate": colocate, **generation})
        .training(group_size=4, groups_per_iteration=4, num_minibatches=2, lr=1e-3)
        .debugging(seed=0)
    )


def _trained(config: GSPOConfig, iterations: int = 3) -> tuple[list[float], dict[str, np.ndarray]]:
    algorithm = config.build_algo()
    try:
        returns = [algorithm.train()["env_runners"]["episode_return_mean"] for _ in range(iterations)]
        return returns, algorithm._weights.on_host()
    finally:
        algorithm.stop()


def _assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_same_is_sampled_and_learnt_and_the_engine_holds_nothing_while_the_learner_works(
    tiny_tied: str, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    returns, weights = _trained(_config(tiny_tied, colocate=False))
    engines: list[TransformersEngine] = []
    held: list[int] = []
    start, update = TransformersEngine.__init__, LanguageLearner._uncompiled_update

    def started(self: TransformersEngine, spec: Any) -> None:
        start(self, spec)
        engines.append(self)

    def watched(self: LanguageLearner, *args: Any, **kwargs: Any) -> Any:
        assert engines[-1]._model is not None
        parameters = engines[-1]._model.parameters()
        held.append(sum(p.untyped_storage().nbytes() for p in parameters) + len(engines[-1]._cache._layers))
        return update(self, *args, **kwargs)

    monkeypatch.setattr(TransformersEngine, "__init__", started)
    monkeypatch.setattr(LanguageLearner, "_uncompiled_update", watched)
    algorithm = _config(tiny_tied).build_algo()
    try:
        assert [algorithm.train()["env_runners"]["episode_return_mean"] for _ in range(3)] == returns
        assert len(held) == 6 and not any(held)
        _assert_equal(algorithm._weights.on_host(), weights)
        # Nothing was copied on the way: what the engine reads is what the learner trains.
        lent = algorithm._weights._here["lm_head.weight"]
        learner = algorithm.learner_group._learner
        assert any(lent.data_ptr() == p.data_ptr() for p in learner.module["default_policy"].parameters())
        assert all(p.grad is None for p in learner.module["default_policy"].parameters())
    finally:
        algorithm.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("runners", "learners"), [(1, 0), (0, 1), (1, 1)])
def test_the_same_comes_of_engine_and_learner_in_processes_of_their_own(
    tiny_dense: str, ray_local: None, runners: int, learners: int
) -> None:
    returns, weights = _trained(_config(tiny_dense, colocate=False))
    config = _config(tiny_dense).env_runners(num_env_runners=runners).learners(num_learners=learners)
    got = _trained(config)
    assert got[0] == returns
    _assert_equal(got[1], weights)


def test_after_an_update_that_failed_a_run_goes_on_from_its_checkpoint(
    tiny_dense: str, ray_local: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state, update = {"fails": False, "calls": 0}, LanguageLearner._uncompiled_update

    def failing(self: LanguageLearner, *args: Any, **kwargs: Any) -> Any:
        state["calls"] += 1
        if state["fails"] and state["calls"] % 2 == 0:  # one step is taken by then
            raise RuntimeError("out of memory")
        return update(self, *args, **kwargs)

    monkeypatch.setattr(LanguageLearner, "_uncompiled_update", failing)
    algorithm: GSPO = _config(tiny_dense).build_algo()
    try:
        algorithm.train()
        algorithm.failed_updates = tmp_path
        algorithm.save_to_path(tmp_path / "saved")
        state.update(fails=True, calls=0)
        with pytest.raises(LearnersLostError, match="out of memory"):
            algorithm.train()
        state["fails"] = False
        assert algorithm.env_runner.get_weights_version() is None
        algorithm.restore_from_path(str(tmp_path / "saved"))
        result = algorithm.train()
        # At the same weights engine and learner agree.
        assert result["learners"]["default_policy"]["logp_gap_max"] < 1e-4
    finally:
        algorithm.stop()


def test_a_version_that_learners_have_moved_on_from_is_not_sent(tiny_dense: str, ray_local: None) -> None:
    algorithm = _config(tiny_dense).build_algo()
    try:
        old = algorithm._weights
        algorithm.train()
        with pytest.raises(WeightSyncError, match=r"version 0 was lent by learners that are at 1 now"):
            old.push(algorithm.env_runner_group)
    finally:
        algorithm.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_runners": {"num_env_runners": 2}}, r"env_runners\.num_env_runners is 2\. Set it to 0 or 1"),
        ({"learners": {"num_learners": 2}}, r"learners\.num_learners is 2\. Set it to 0 or 1"),
        ({"evaluation": {"evaluation_num_env_runners": 1}}, r"evaluation_num_env_runners is 1\. Set it to 0"),
        ({"training": {"max_staleness": 1}}, r"max_staleness=1 has them work at the same time\. Set max_staleness=0"),
        ({"generation": {"sync_dtype": "bfloat16"}}, r"sync_dtype is 'bfloat16', but with colocate nothing is sent"),
        ({"generation": {"engine": "vllm"}}, r"vllm's build for CPU keeps its memory"),
        ({"generation": {"colocate": 1}}, r"generation\.colocate is 1"),
        (
            {
                "env_runners": {"num_env_runners": 1, "num_gpus_per_env_runner": 1},
                "learners": {"num_learners": 1, "num_gpus_per_learner": 1},
            },
            r"num_gpus_per_learner=1 and env_runners\.num_gpus_per_env_runner=1 are more than one GPU together",
        ),
    ],
)
def test_what_could_not_take_turns_is_refused(tiny_dense: str, change: dict[str, Any], message: str) -> None:
    config = _config(tiny_dense)
    for section, settings in change.items():
        config = getattr(config, section)(**settings)
    with pytest.raises(SettingError, match=message):
        config.validate()


def test_an_adapter_beside_a_base_that_stays_is_refused(tiny_dense: str) -> None:
    config = _config(tiny_dense, engine="vllm", adapter_sync="swap")
    config.rl_module(model_config={"path": tiny_dense, "lora": {"rank": 2}})
    with pytest.raises(SettingError, match=r"adapter_sync='swap' has it keep the base"):
        config.validate()


def test_what_does_not_fit_is_said_for_each_turn(tiny_dense: str) -> None:
    config = _config(tiny_dense)
    sizes = model_sizes(config)
    memory = learner_memory(config, sizes)
    assert kept_bytes(config) == config.colocated_bytes == 3 * 4 * sizes.parameters < memory.total
    room = memory.total + ASLEEP_BYTES
    assert not list(colocation_problems(config, sizes, memory, room, 1))
    (problem,) = colocation_problems(config, sizes, memory, room - 1, 1)
    assert problem.startswith("while the learner trains it needs ") and "activation_checkpointing" in problem
    *_, problem = colocation_problems(config, sizes, memory, memory.kept, 1)
    assert problem.startswith("while the engine samples, its weights and one context of ")


def test_a_gpu_that_is_too_small_is_refused_before_anything_is_loaded(
    tiny_dense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(tiny_dense).learners(num_gpus_per_learner=1)
    monkeypatch.setattr(colocation, "_gpu_bytes", lambda config: 1_000_000)
    with pytest.raises(SettingError, match=r"a GPU of 0\.001 GB is too small: while the learner trains it needs"):
        colocation.check_memory(config)
    monkeypatch.setattr(colocation, "_gpu_bytes", lambda config: 80e9)
    colocation.check_memory(config)


def test_an_engine_with_work_does_not_sleep(tiny_dense: str, ray_local: None) -> None:
    algorithm = _config(tiny_dense).build_algo()
    try:
        from gspo_rllib.engines.protocol import GenerationRequest

        engine = algorithm.env_runner._engine
        engine.submit(GenerationRequest("a", [1, 2, 3], 4, 1.0, 0))
        with pytest.raises(WeightSyncError, match="1 requests are unfinished"):
            algorithm.env_runner.rest_engine()
        engine.abort(["a"])
        algorithm.env_runner.rest_engine()
        algorithm.env_runner.rest_engine()  # asleep is asleep
        with pytest.raises(EngineError, match="holds no weights yet"):
            engine.submit(GenerationRequest("b", [1, 2, 3], 4, 1.0, 0))
        assert not torch.cuda.is_available() or torch.cuda.memory_reserved() == 0
    finally:
        algorithm.stop()
