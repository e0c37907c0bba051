"""Keeps the terminal for the progress line: what libraries say by the way is shown only when asked for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
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


@contextlib.contextmanager
def each_warning_once() -> Iterator[None]:
    """Inside ``with``, what is said of every config, or of one whenever it is validated, is said once."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_first = text not in said
        said.add(text)
        return is_first

    logger = logging.getLogger("gspo_rllib")
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)
