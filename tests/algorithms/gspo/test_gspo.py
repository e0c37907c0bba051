"""GSPO's own folder: the paper's values, and what is left for checkpoints made before the machine moved out of it."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gspo_rllib import checkpoints
from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.errors import CheckpointError

GOLDEN = Path(__file__).parents[2] / "golden"


def test_the_defaults_are_the_papers() -> None:
    config = GSPOConfig()
    assert (config.importance_sampling_level, config.surrogate, config.reduction) == (
        "sequence",
        "clip",
        "trajectory_mean",
    )
    assert (config.advantage_estimator, config.kl_coeff, config.entropy_coeff) == ("group_z_score", 0.0, 0.0)
    assert (config.clip_low, config.clip_high, config.num_minibatches, config.num_epochs) == (3e-4, 4e-4, 4, 1)


def test_a_checkpoint_of_0_1_goes_on_where_it_ended(tmp_path: Path, ray_local: None) -> None:
    """``golden/checkpoint_0_1.tar.gz``: two iterations of a 16-wide model, saved when the classes had other paths."""
    with tarfile.open(GOLDEN / "checkpoint_0_1.tar.gz") as archive:
        archive.extractall(tmp_path / "checkpoint", filter="data")
    with pytest.raises(CheckpointError, match="holds pickles, which are programs"):
        GSPO.from_checkpoint(tmp_path / "checkpoint")
    state = checkpoints.self_contained_config(tmp_path / "checkpoint", trust_pickle=True)
    assert not checkpoints.RENAMED_SETTINGS.keys() & state.keys()
    algo = GSPO.from_checkpoint(tmp_path / "checkpoint", trust_pickle=True)
    try:
        assert type(algo.config) is GSPOConfig
        assert (algo.iteration, algo.config.lr, algo.config.group_size, algo.config.weight_update) == (
            2,
            1e-3,
            2,
            "turn",
        )
        saved = load_file(checkpoints.policy_folder(tmp_path / "checkpoint") / "model.safetensors")
        held = algo.learner_group.get_weights()["default_policy"]
        assert held.keys() >= {f"model.{name}" for name in saved}
        assert all(np.array_equal(held[f"model.{name}"], value) for name, value in saved.items())
        trained = algo.train()
        assert trained["training_iteration"] == 3
        again = algo.save_to_path(str(tmp_path / "again"))
    finally:
        algo.stop()
    assert not checkpoints.is_pickled(Path(again))
    moved = load_file(checkpoints.policy_folder(again) / "model.safetensors")
    assert not all(np.array_equal(moved[name], value) for name, value in saved.items())
