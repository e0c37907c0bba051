"""Whether bfloat16 is faster than float32 on this machine's processor; said once where it is not."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

import ray
import torch

from gspo_rllib.precision import engine_dtype, learner_dtype

logger = logging.getLogger("gspo_rllib")

LEAST_GAIN = 1.2
"""Below it, what faster products gain is less than what casting to bfloat16 and back costs."""

_ROWS, _WIDTH, _REPETITIONS = 256, 512, 5


def say_where_it_gains_nothing(config: Any) -> None:
    """Warns, once per process, where something is to run in bfloat16 on a processor that multiplies it no faster.

    Processors without instructions for it (AVX-512 BF16, AMX) work it out in float32, after casts. Libraries differ, so
    it is measured, which takes some 30 ms.

    Args:
        config: The algorithm's config.
    """
    learner, engine = learner_dtype(config.model_config), engine_dtype(config, config.model_config)
    if "bfloat16" not in (learner, engine) or torch.cuda.is_available():
        return
    runners_gpu = config.num_gpus_per_env_runner if config.num_env_runners else config.num_gpus_per_learner
    sides = {
        "learner": learner == "bfloat16" and not config.num_gpus_per_learner,
        "engine": engine == "bfloat16" and not (runners_gpu or config.engine_device not in (None, "cpu")),
    }
    if not any(sides.values()):
        return
    times = gain()
    if times < LEAST_GAIN and ray.util.log_once("gspo_rllib_bfloat16_gains_nothing"):
        logger.warning(
            "bfloat16 is set for %s on a CPU, and as measured just now this processor multiplies it %.2f times as fast "
            "as float32: it gains no time here, and log-probs are noisier for it. "
            "rl_module.model_config.precision=float32 is exact.",
            " and ".join(side for side, is_on_cpu in sides.items() if is_on_cpu),
            times,
        )


@functools.cache
def gain() -> float:
    """How many times as fast as float32 this process multiplies bfloat16; the best of a few products of either."""
    rows, matrix = torch.ones(_ROWS, _WIDTH), torch.ones(_WIDTH, _WIDTH)
    return _seconds(rows, matrix) / _seconds(rows.bfloat16(), matrix.bfloat16())


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    taken = []
    with torch.inference_mode():
        for _ in range(_REPETITIONS + 1):
            started = time.perf_counter()
            torch.mm(left, right)
            taken.append(time.perf_counter() - started)
    return min(taken)
