"""An algorithm's name is known where RLlib's own are, also to a second Ray of one process."""

from __future__ import annotations

import pytest
from ray.rllib.algorithms.registry import ALGORITHMS as RLLIB_ALGORITHMS
from ray.tune.registry import TRAINABLE_CLASS, _global_registry, get_trainable_cls

from gspo_rllib.algorithms import ALGORITHMS


@pytest.mark.parametrize("name", ALGORITHMS)
def test_rllib_knows_the_class_and_its_defaults(name: str) -> None:
    algorithm, config = RLLIB_ALGORITHMS[name]()
    assert algorithm is ALGORITHMS[name]
    assert type(config) is type(algorithm.get_default_config())


@pytest.mark.filterwarnings("ignore::UserWarning")  # of environments that RLlib imports
def test_a_name_that_tune_lost_is_found_again() -> None:
    """As with a Ray that was started after another was shut down: Tune has handed its names to the first."""
    _global_registry.unregister(TRAINABLE_CLASS, "GSPO")
    assert not _global_registry.contains(TRAINABLE_CLASS, "GSPO")
    assert get_trainable_cls("GSPO") is ALGORITHMS["GSPO"]
