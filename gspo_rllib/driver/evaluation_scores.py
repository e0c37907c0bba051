"""What an evaluation of several samples per task says: accuracy, pass@k and maj@k, each with an interval over tasks.

Samples of one task are not independent of each other, so intervals resample tasks, with all samples of each.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from gspo_rllib.metrics import ESTIMATES
from gspo_rllib.types import STATED_ANSWER, TRUNCATED_BY, TrajectoryGroup, succeeded, turns

_RESAMPLES = 10_000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Sample:
    """One trajectory of a task.

    Attributes:
        reply: The last action.
        episode_return: Sum of its rewards.
        success: Whether the task was solved; None where the environment does not say.
        answer: What it stated as its answer; None where it states none, or the environment does not say.
        num_turns: Turns that were played.
        num_tokens: Tokens that were sampled.
        truncated_by: What cut it short, if anything did.
    """

    reply: str
    episode_return: float
    success: bool | None
    answer: str | None
    num_turns: int
    num_tokens: int
    truncated_by: str | None


@dataclass(frozen=True, slots=True)
class Task:
    """One task and its samples.

    Attributes:
        task_id: The environment's name of the task; None where it has none.
        question: The first observation.
        samples: In the order of their index.
    """

    task_id: str | None
    question: str
    samples: list[Sample]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tasks.

    Attributes:
        value: The mean.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def tasks_of(groups: Sequence[TrajectoryGroup]) -> list[Task]:
    """The tasks that groups were played on, in the same order."""
    return [
        Task(
            _text(group.episodes[0].get_infos(0).get("task_id")),
            str(group.episodes[0].get_observations(0)),
            [_sample(episode) for episode in group.episodes],
        )
        for group in groups
    ]


def estimates(tasks: Sequence[Task], *, seed: int = 0) -> dict[str, Estimate]:
    """Accuracy, pass@k and maj@k.

    Args:
        tasks: Played with the same number of samples k each, at least one task.
        seed: Makes the resampling reproducible.

    Returns:
        ``"accuracy"``, the share of samples that are right; with k > 1 also ``"pass@2"``, ``"pass@4"``, … ``"pass@k"``,
        the chance that one of so many samples is right, without bias (arXiv:2107.03374, eq. 1); and ``"maj@k"``,
        whether the most frequent answer is right, where samples say what they answered. Empty where the environment
        does not say which samples are right.

    Example:
        >>> right, wrong = (Sample("", 0.0, success, str(success), 1, 1, None) for success in (True, False))
        >>> tasks = [Task("0", "?", [right, right, wrong]), Task("1", "?", [wrong, right, wrong])]
        >>> {name: round(estimate.value, 3) for name, estimate in estimates(tasks).items()}
        {'accuracy': 0.5, 'pass@2': 0.833, 'pass@3': 1.0, 'maj@3': 0.5}
    """
    if any(sample.success is None for task in tasks for sample in task.samples):
        return {}
    right = np.array([sum(bool(sample.success) for sample in task.samples) for task in tasks])
    size = min(len(task.samples) for task in tasks)
    values = {"accuracy": np.array([count / len(t.samples) for count, t in zip(right, tasks, strict=True)])}
    for k in [*(2**power for power in range(1, 20) if 2**power < size), *([size] if size > 1 else [])]:
        values[f"pass@{k}"] = np.array(
            [pass_at_k(len(task.samples), int(count), k) for count, task in zip(right, tasks, strict=True)]
        )
    if size > 1 and any(sample.answer is not None for task in tasks for sample in task.samples):
        values[f"maj@{size}"] = np.array([float(_majority_is_right(task.samples)) for task in tasks])
    places = np.random.default_rng(seed).integers(len(tasks), size=(_RESAMPLES, len(tasks)), dtype=np.int32)
    return {name: _estimate(of_tasks, places) for name, of_tasks in values.items()}


def estimate_metrics(groups: Sequence[TrajectoryGroup]) -> dict[str, Any]:
    """The estimates of these groups as an env runner would report them, under ``metrics.ESTIMATES``."""
    logger = MetricsLogger(root=False)
    for name, estimate in estimates(tasks_of(groups)).items():
        for part, value in asdict(estimate).items():
            logger.log_value((ESTIMATES, name, part), value, window=1)
    measured: dict[str, Any] = logger.reduce()
    return measured


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that k of these samples, drawn without replacement, hold a right one.

    Example:
        >>> pass_at_k(4, 1, 2), pass_at_k(4, 3, 2), pass_at_k(4, 0, 4)
        (0.5, 1.0, 0.0)
    """
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def _majority_is_right(samples: Sequence[Sample]) -> bool:
    votes = Counter(sample.answer for sample in samples if sample.answer is not None)
    if not votes:
        return False
    # Of equally frequent answers the one that was sampled first, which is what a Counter counts first.
    answer, _ = votes.most_common(1)[0]
    return any(bool(sample.success) for sample in samples if sample.answer == answer)


def _estimate(of_tasks: np.ndarray, places: np.ndarray) -> Estimate:
    low, high = np.percentile(of_tasks[places].mean(axis=1), _INTERVAL)
    return Estimate(float(of_tasks.mean()), float(low), float(high))


def _text(value: Any) -> str | None:
    """A word of ``info`` that is to be a text; environments say numbers and lists, too."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _sample(episode: SingleAgentEpisode) -> Sample:
    return Sample(
        reply=str(episode.get_actions(-1)),
        episode_return=float(episode.get_return()),
        success=succeeded(episode),
        answer=_text(episode.get_infos(-1).get(STATED_ANSWER)),
        num_turns=len(episode),
        num_tokens=sum(len(turn.action_token_ids) for turn in turns(episode)),
        truncated_by=episode.custom_data.get(TRUNCATED_BY),
    )
