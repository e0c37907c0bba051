"""GMPO: its range is of a token's log-ratio, and whatever judges a clip range knows it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import GMPO, GMPOConfig
from gspo_rllib.algorithms.policy_gradient.clip_monitor import PATIENCE, ClipMonitor
from gspo_rllib.envs import UnicodeText
from gspo_rllib.errors import SettingError
from gspo_rllib.learners import statistics
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.types import group_episodes
from tests.episodes import make_group

SPACES = {DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))}


def _config(path: str, **training: Any) -> GMPOConfig:
    return (
        GMPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(model_config={"path": str(path)})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .learners(num_learners=0)
        .training(**{"group_size": 4, "groups_per_iteration": 8, **training})
        .debugging(seed=0)
    )


def test_the_defaults_are_the_papers():
    config = GMPOConfig()
    assert config.algo_class is GMPO and GMPO.get_default_config().algo_class is GMPO
    assert (config.surrogate, config.importance_sampling_level) == ("log_clip", "sequence")
    assert (config.reduction, config.advantage_estimator) == ("trajectory_mean", "group_z_score")
    assert (config.clip_low, config.clip_high) == (0.4, 0.4)


def test_a_trajectorys_range_is_warned_about(tiny_dense, caplog):
    """GSPO's 3e-4 would hold nearly every token; GMPO's own 0.4 under a sequence ratio is no mistake."""
    with caplog.at_level(logging.WARNING, logger="gspo_rllib"):
        _config(tiny_dense).validate()
        assert not caplog.records
        _config(tiny_dense, clip_low=3e-4, clip_high=4e-4).validate()
    (message,) = [record.getMessage() for record in caplog.records]
    for part in ("clip_low=0.0003, clip_high=0.0004", "sequence-level range", "0.4 and 0.4", "token's log-ratio"):
        assert part in message


def test_a_tokens_range_does_not_depend_on_the_trajectorys_length(tiny_dense):
    with pytest.raises(SettingError, match=r"clip_scaling='length'.*surrogate='log_clip'.*surrogate='clip'"):
        _config(tiny_dense, clip_scaling="length").validate()
    _config(tiny_dense, clip_scaling="target").validate()


def test_the_clip_monitor_takes_the_clip_for_one_of_tokens():
    """A few clipped tokens are healthy, and a trajectory's noise says nothing about them; a majority is too many."""
    monitor = ClipMonitor(GMPOConfig().training(old_log_probs="engine"))
    healthy = {statistics.CLIP_FRACTION: 0.0, statistics.SEQUENCE_GAP_MEAN: 0.5, statistics.ABS_LOG_RATIO_MEAN: 1e-3}
    assert [monitor.check(healthy) for _ in range(2 * PATIENCE)] == [[]] * 2 * PATIENCE
    said = [monitor.check({**healthy, statistics.CLIP_FRACTION: 0.8}) for _ in range(PATIENCE)]
    (message,) = [message for messages in said for message in messages]
    assert "saturated: 80% of a trajectory's tokens" in message and "the paper reports" not in message


def _update(config: GMPOConfig, *, num_minibatches: int = 1) -> tuple[Any, dict[str, float]]:
    learner = config.build_learner(spaces=SPACES)
    groups = group_episodes([episode for i in range(4) for episode in make_group(f"g{i}", 4)])
    data = GroupTrainingData.from_groups(groups, num_minibatches=num_minibatches, seed=0)
    results = learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]
    return learner, {name: value.peek() for name, value in results.items() if hasattr(value, "peek")}


def test_the_learner_compares_the_range_with_the_noise_of_a_token(tiny_dense):
    """The engine's log-probs of these episodes are made up, so that the worst token is off by more than the mean."""
    learner, measured = _update(_config(tiny_dense, old_log_probs="engine"))
    assert measured[statistics.LOGP_GAP_MAX] > 1.5 * measured[statistics.SEQUENCE_GAP_MEAN]
    assert learner.engine_noise == measured[statistics.LOGP_GAP_MAX]


def test_a_step_that_goes_too_far_clips_some_tokens_of_a_trajectory_and_not_all(tiny_dense):
    _, measured = _update(_config(tiny_dense, old_log_probs="learner", lr=3e-3), num_minibatches=2)
    assert 0.0 < measured[statistics.CLIP_FRACTION] < 0.5
    low, high = measured[statistics.CLIP_FRACTION_LOW], measured[statistics.CLIP_FRACTION_HIGH]
    assert low + high == pytest.approx(measured[statistics.CLIP_FRACTION])
    assert measured["grad_norm"] > 0.0
