"""The weights that leave the learners: a version stays what it was, one tensor travels once, and engines have it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.numpy import convert_to_numpy
from transformers import AutoModelForCausalLM

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.engines import registry, trial
from gspo_rllib.engines.weights import for_engine
from gspo_rllib.envs import UnicodeText
from gspo_rllib.errors import EngineError, WeightSyncError
from gspo_rllib.policy_state import unwrap_module_state
from gspo_rllib.weight_sync import Weights
from tests import toy_engines


def _learners(path: str, num_learners: int = 0) -> Any:
    config = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Arithmetic-v0")
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .learners(num_learners=num_learners)
    )
    return config.build_learner_group(spaces={DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))})


class Runners:
    """An env runner group of one runner that notes what it is sent."""

    def __init__(self, remote: int) -> None:
        self.remote = remote
        self.sent: Any = None

    def num_remote_env_runners(self) -> int:
        return self.remote

    def foreach_env_runner(self, load: Callable[[Any], int], local_env_runner: bool) -> list[int]:
        runner = SimpleNamespace(set_weights=self._set_weights, converse=lambda conversation: None, worker_index=1)
        return [load(runner)]

    def _set_weights(self, named: Any, version: int, force: bool) -> int:
        self.sent = named
        return version


def test_a_version_stays_what_it_was_while_the_learner_goes_on(tiny_tied: str) -> None:
    learners, runners = _learners(tiny_tied), Runners(remote=0)
    weights = Weights(learners)
    with torch.no_grad():
        for parameter in learners._learner.module[DEFAULT_MODULE_ID].parameters():
            parameter.add_(1.0)

    weights.push(runners)

    expected = AutoModelForCausalLM.from_pretrained(tiny_tied).state_dict()
    assert runners.sent.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(runners.sent[name], tensor.numpy(), err_msg=name)


def test_a_tied_head_is_copied_and_sent_once(tiny_tied: str, ray_local: None) -> None:
    here, elsewhere = Runners(remote=0), Runners(remote=1)
    weights = Weights(_learners(tiny_tied))
    weights.push(here)
    weights.push(elsewhere)

    assert isinstance(elsewhere.sent, ray.ObjectRef)
    for sent in (here.sent, ray.get(elsewhere.sent)):
        assert sent["lm_head.weight"] is sent["model.embed_tokens.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("remote", [0, 1])
def test_a_learner_in_an_actor_sends_its_weights_and_version(tiny_dense: str, ray_local: None, remote: int) -> None:
    learners, runners = _learners(tiny_dense, num_learners=1), Runners(remote)
    try:
        weights = Weights(learners)
        weights.push(runners)
        (version,) = [answer.get() for answer in learners.foreach_learner(lambda learner: learner._weights_seq_no)]
        sent = ray.get(runners.sent) if remote else runners.sent
    finally:
        learners.shutdown()

    assert weights.version == version
    expected = AutoModelForCausalLM.from_pretrained(tiny_dense).state_dict()
    assert sent.keys() == expected.keys()
    np.testing.assert_array_equal(sent["lm_head.weight"], expected["lm_head.weight"].numpy())


class OnANode:
    """Learners of which only the node counts that their weights lie on, and their version."""

    is_local = shares_model = False

    def __init__(self, node: str) -> None:
        self.node, self.version, self.asked = node, 3, 0

    def keep(self, function: Any) -> Any:
        self.asked += 1
        return (self.version, None, False, self.node), ray.put({"weights": np.full(2, self.asked)})


def test_weights_that_lay_on_a_lost_node_are_given_again_by_learners_that_are_where_they_were(ray_local: None) -> None:
    here = ray.get_runtime_context().get_node_id()
    learners, runners = OnANode(here), Runners(remote=1)
    weights: Any = Weights(learners)  # type: ignore[arg-type]
    weights.push(runners)
    assert learners.asked == 1
    learners.node = "lost"
    weights = Weights(learners)  # type: ignore[arg-type]
    learners.node = here
    for _ in range(2):
        weights.push(runners)
        assert ray.get(runners.sent)["weights"].tolist() == [3, 3]
    learners.node = "lost"
    weights = Weights(learners)  # type: ignore[arg-type]
    learners.version += 1
    assert not weights.restore()
    with pytest.raises(
        WeightSyncError, match=r"^weights version 3 lay on a machine that is lost, and the learners have"
    ):
        weights.push(runners)


def test_a_value_head_beside_the_model_is_left_out_of_the_engines_weights() -> None:
    array = np.zeros(1)
    state = {"model.lm_head.weight": array, "model.model.norm.weight": array, "value_head.bias": array}
    assert set(unwrap_module_state({"default_policy": state})) == {"lm_head.weight", "model.norm.weight"}
    gpt2 = {"model.transformer.wte.weight": array, "model.lm_head.weight": array}
    assert set(unwrap_module_state(gpt2)) == {"transformer.wte.weight", "lm_head.weight"}
    assert set(unwrap_module_state({"lm_head.weight": array, "model.norm.weight": array})) == {
        "lm_head.weight",
        "model.norm.weight",
    }


def test_what_rllib_makes_a_python_number_of_is_an_array_again() -> None:
    state = {"model.norm.weight": torch.ones(2), "mlp.act_fn.alpha": torch.tensor(0.1), "batches": torch.tensor(3)}
    named = unwrap_module_state(convert_to_numpy(state))
    for name, tensor in state.items():
        np.testing.assert_array_equal(named[name], tensor.numpy(), strict=True)


def _run(path: str, engine: str, *, num_env_runners: int = 0, num_learners: int = 0, **training: Any) -> GSPOConfig:
    config = (
        GSPOConfig()
        .environment(toy_engines.Coin)
        .rl_module(model_config={"path": path})
        .generation(engine=engine, max_tokens_per_turn=6)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=4)
        .learners(num_learners=num_learners)
        .training(group_size=2, groups_per_iteration=2, num_minibatches=2, **training)
    )
    if training.get("max_staleness"):
        config.training(rollout_correction="truncate", rollout_correction_level="sequence_mean")
    return config


@pytest.fixture
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_try", lambda spec, engine: None)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_an_engine_that_keeps_a_tensor_ends_the_run_before_its_first_trajectory(
    tiny_dense: str, ray_local: None, no_trials: None, max_staleness: int
) -> None:
    with pytest.raises(WeightSyncError) as caught:
        _run(tiny_dense, "OneTensorStays", max_staleness=max_staleness).build_algo()
    said = str(caught.value)
    for part in ("'OneTensorStays'", tiny_dense, "nats per token", "layers.0.self_attn.sinks", "was tried with this"):
        assert part in said


@pytest.mark.slow
@pytest.mark.parametrize(("num_learners", "max_staleness"), [(0, 1), (1, 0)])
def test_so_does_one_in_another_process_whose_learner_is_in_a_third(
    tiny_dense: str, ray_local: None, no_trials: None, num_learners: int, max_staleness: int
) -> None:
    config = _run(
        tiny_dense, "OneTensorStays", num_env_runners=1, num_learners=num_learners, max_staleness=max_staleness
    )
    with pytest.raises(WeightSyncError, match=r"layers\.0\.self_attn\.sinks"):
        config.build_algo()


def _train(algo: Any, iterations: int) -> None:
    for _ in range(iterations):
        algo.train()


@pytest.mark.slow
@pytest.mark.parametrize("max_staleness", [0, 1])
def test_an_engine_that_fails_in_another_process_is_named_and_no_environment_is(
    tiny_dense: str, ray_local: None, max_staleness: int
) -> None:
    algo = _run(tiny_dense, "FailsToStep", num_env_runners=1, max_staleness=max_staleness).build_algo()
    try:
        with pytest.raises(EngineError, match="the kernel is gone") as caught:
            _train(algo, 20)
    finally:
        algo.stop()
    said = str(caught.value)
    assert "engine 'FailsToStep'" in said and tiny_dense in said and "environment" not in said


@pytest.mark.slow
def test_an_engine_that_fails_while_rllib_evaluates_elsewhere_is_named(tiny_dense: str, ray_local: None) -> None:
    config = _run(tiny_dense, "transformers")
    config.evaluation(
        evaluation_num_env_runners=1,
        evaluation_duration=2,
        evaluation_config=GSPOConfig.overrides(engine="RefusesRequests"),
    )
    algo = config.build_algo()
    try:
        with pytest.raises(EngineError, match=r"engine 'RefusesRequests'.*stop is not supported"):
            algo.evaluate()
    finally:
        algo.stop()


def test_an_engine_is_compared_with_the_weights_it_was_sent_and_no_later_ones(tiny_dense: str, ray_local: None) -> None:
    algo = _run(tiny_dense, "transformers").build_algo()
    try:
        weights = algo._weights
        algo.env_runner.stop()
        algo.learner_group._learner._weights_seq_no += 1
        with pytest.raises(WeightSyncError, match="cannot be compared"):
            weights.push(algo.env_runner_group)
        algo._sync_weights()
        assert registry.is_proven(algo.env_runner._engine)
    finally:
        algo.stop()


def test_tensors_of_a_learners_device_become_arrays_for_who_cannot_take_them(tiny_tied: str) -> None:
    state = AutoModelForCausalLM.from_pretrained(tiny_tied).state_dict()
    taker, other = SimpleNamespace(loads_tensors=True), SimpleNamespace()

    arrays = for_engine(other, state)  # type: ignore[arg-type]

    assert for_engine(taker, state) is state  # type: ignore[arg-type]
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    for name, tensor in state.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


def test_a_copy_on_the_device_has_a_tied_tensor_once_and_does_not_change(
    tiny_tied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A CPU's tensors take the way of a GPU's.
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    learners = _learners(tiny_tied)
    weights = Weights(learners)
    monkeypatch.undo()
    with torch.no_grad():
        for parameter in learners._learner.module[DEFAULT_MODULE_ID].parameters():
            parameter.add_(1.0)

    expected = AutoModelForCausalLM.from_pretrained(tiny_tied).state_dict()
    assert weights._here["lm_head.weight"] is weights._here["model.embed_tokens.weight"]
    for name, tensor in weights._here.items():
        assert isinstance(tensor, torch.Tensor)
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
