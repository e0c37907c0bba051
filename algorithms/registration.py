"""Where an algorithm's name is made known: to Ray Tune, and to RLlib, which tells it to Tune again."""

from __future__ import annotations

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.tune.registry import register_trainable


def register(name: str, algorithm: type[Algorithm]) -> None:
    """Makes an algorithm known by name.

    Tune hands the names it knows to the first Ray of a process and forgets them; a second Ray's come from the table of
    algorithms that RLlib has for its own.

    Args:
        name: The name, as in ``tune.Tuner(name)``.
        algorithm: The class.
    """

    def with_defaults() -> tuple[type[Algorithm], AlgorithmConfig]:
        return algorithm, algorithm.get_default_config()

    ALGORITHMS[name] = with_defaults
    register_trainable(name, algorithm)
