"""Keeps the terminal for the progress line: what libraries say by the way is shown only when asked for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


def hush(config: AlgorithmConfig, *, verbose: bool = False) -> None:
    """Shows Ray's and RLlib's errors only, and no bars for loading or saving a model.

    Args:
        config: The config whose ``log_level`` is changed, which RLlib uses in every process; one that the user set is
            kept.
        verbose: Change nothing.
    """
    if verbose:
        return
    hush_libraries()
    if config.log_level == type(config)().log_level:
        config.debugging(log_level="ERROR")


def hush_libraries() -> None:
    """The part of ``hush`` that concerns this process."""
    from transformers.utils import logging as transformers_logging

    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
