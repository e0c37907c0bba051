"""A run whose learners share the model: from the environment to a checkpoint, and through the loss of a learner."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.driver.processes import actor_entry
from gspo_rllib.metrics import NUM_LEARNER_REBUILDS, RECOVERY
from gspo_rllib.weight_sync import Weights
from tests.toy_envs.coin_env import CoinEnv


def _config(path: str, num_learners: int, **training: Any) -> GSPOConfig:
    return (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", max_tokens_per_turn=6)
        .training(group_size=4, groups_per_iteration=4, num_minibatches=2, lr=1e-4, **training)
        .learners(num_learners=num_learners, sharding="fsdp2" if num_learners else "none")
        .debugging(seed=0)
    )


def _weights(algorithm: GSPO) -> dict[str, np.ndarray]:
    return Weights(algorithm.learner_group).on_host()


def _moments(algorithm: GSPO) -> dict[Any, Any]:
    (state,) = algorithm.learner_group.get_state(components="learner/optimizer")["learner"]["optimizer"].values()
    moments: dict[Any, Any] = state["state"]["state"]
    return moments


def _distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


@pytest.mark.slow
def test_it_samples_trains_saves_and_resumes_as_one_learner_does(
    tiny_tied: str, ray_local: None, tmp_path: Path
) -> None:
    alone = _config(tiny_tied, 0, kl_coeff=0.01).build_algo()
    expected = [alone.train()["env_runners"]["episode_return_mean"] for _ in range(3)]
    start, trained = _weights(_config(tiny_tied, 0).build_algo()), _weights(alone)
    together = _config(tiny_tied, 2, kl_coeff=0.01).build_algo()
    try:
        assert [together.train()["env_runners"]["episode_return_mean"] for _ in range(3)] == expected
        assert _distance(_weights(together), trained) <= 1e-6 < 1e-4 < _distance(_weights(together), start)
        # Nothing that asks one learner for something waits for the others.
        module = together.get_module()
        assert _distance(module.get_state(), alone.get_module().get_state()) <= 1e-6
        saved, moments = _weights(together), _moments(together)
        together.save_to_path(tmp_path / "two")
        # A learner that is lost takes all with it; they come back as they were.
        together.train()
        undisturbed = _weights(together)
        together.restore_from_path(str(tmp_path / "two"))
        os.kill(int(actor_entry(together.learner_group._workers[1])["Pid"]), signal.SIGKILL)
        result = together.train()
        assert result[RECOVERY][NUM_LEARNER_REBUILDS] == 1
        assert _distance(_weights(together), undisturbed) == 0.0
    finally:
        together.stop()
    again = GSPO.from_checkpoint(str(tmp_path / "two"), trust=[CoinEnv])
    try:
        assert again.config.sharding == "fsdp2" and again.config.num_learners == 2
        assert _distance(_weights(again), saved) == 0.0
        for number, of in moments.items():
            assert all(np.array_equal(value, _moments(again)[number][key]) for key, value in of.items())
    finally:
        again.stop()
    config = _config(tiny_tied, 0, kl_coeff=0.01)
    one = GSPO.from_checkpoint(str(tmp_path / "two"), config=config, trust=[CoinEnv])
    assert _distance(_weights(one), saved) == 0.0
    one.train()
    assert _distance(_weights(one), undisturbed) <= 1e-7 < 1e-5 < _distance(_weights(one), saved)
    assert DEFAULT_MODULE_ID in one.learner_group.get_state()["learner"]["rl_module"]
