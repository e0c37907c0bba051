"""One trial, in a process that Ray Tune started: an algorithm, evaluated before and after each of its iterations.

Evaluations are asked for here, not by the config, so that what an iteration costs is without them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gspo_rllib.run_results import flatten
from gspo_rllib.study.raw import Row

if TYPE_CHECKING:
    from gspo_rllib.algorithms import PolicyGradient
    from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig

_LEARNER = "learners/default_policy/"
MEASURED = {
    "sampled_success": "env_runners/success_mean",
    "tokens": "env_runners/num_tokens_sampled",
    "clip_fraction": f"{_LEARNER}clip_fraction",
    "kl": f"{_LEARNER}kl_to_behavior",
    "entropy": f"{_LEARNER}entropy",
    "abs_log_ratio": f"{_LEARNER}abs_log_ratio_mean",
    "trained": f"{_LEARNER}num_minibatches",
    "staleness": f"{_LEARNER}staleness",
    "router_drift": f"{_LEARNER}router_drift",
    "router_gap": f"{_LEARNER}router_gap",
}
"""Number of a row to its place in a flat result; left out where a result has none."""


def play(config: PolicyGradientConfig, iterations: int, report: Callable[[Row], object]) -> None:
    """Trains and evaluates.

    Args:
        config: The algorithm's; its own evaluations come too seldom to happen.
        iterations: How many.
        report: Called with the start's row and every iteration's.
    """
    is_alone = not (config.num_env_runners or config.num_learners)  # other processes' time is not seen from here
    with built(config) as algorithm:
        cpu_s = 0.0
        report({"iteration": 0, **_evaluated(algorithm)})
        for number in range(1, iterations + 1):
            cpu, clock = time.process_time(), time.perf_counter()
            flat = flatten(algorithm.train())
            cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
            cpu_s += cpu
            row: Row = {"iteration": number, **_evaluated(algorithm)}
            row |= {name: _short(flat[key]) for name, key in MEASURED.items() if flat.get(key) is not None}
            cost = {"cpu_s": round(cpu, 3), "total_cpu_s": round(cpu_s, 3)} if is_alone else {}
            report(row | cost | {"wall_s": round(clock, 3)})


@contextlib.contextmanager
def built(config: PolicyGradientConfig) -> Iterator[PolicyGradient]:
    """An algorithm for the time of a block; nothing of it is left behind."""
    algorithm: PolicyGradient = config.copy(copy_frozen=False).build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()
        # RLlib makes a folder of its own for results, which are reported instead.
        with contextlib.suppress(OSError):
            os.rmdir(algorithm.logdir)


def _evaluated(algorithm: PolicyGradient) -> Row:
    flat = flatten(algorithm.evaluate())
    place = "env_runners/"
    success, mean_return = flat.get(f"{place}success_mean"), flat.get(f"{place}episode_return_mean")
    score = mean_return if success is None else success
    assert score is not None, "an evaluation plays at least one task"
    row: Row = {"score": _short(score)}
    if mean_return is not None:
        row["return"] = _short(mean_return)
    return row


def _short(value: Any) -> float:
    return float(f"{float(value):.6g}")
