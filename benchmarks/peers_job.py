"""The jobs of peers_multi_turn.py and peers_learning.py: what every side is given, alike.

Imported in the environment of every side, so it needs nothing but Gymnasium, the seeds, and ``gspo_rllib.envs`` to make
one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium

from gspo_rllib.seeds import derive_seed

GROUP_SIZE = 8
MINIBATCHES = 4
TEMPERATURE = 1.0
GRAD_CLIP = 1.0
WEIGHT_DECAY = 0.01
LONGEST_RUN = 1_000
"""More iterations than are ever asked for."""


@dataclass(frozen=True)
class Job:
    """One task, and how it is played and trained.

    Attributes:
        title: What it is called in a picture.
        model: Folder of its start model, seen from the project's.
        env: The environment's name among this project's own.
        env_config: The environment's settings.
        most_turns: Most turns of a trajectory.
        tokens_per_turn: Most tokens the policy samples in a turn.
        context: Most tokens of a trajectory, whole.
        groups: Groups per iteration, ``GROUP_SIZE`` trajectories each.
        lr: AdamW's learning rate, constant.
        clip: How far the ratio may go below and above 1.
        iterations: Most iterations of a side.
        most_cpu_s: A side that has used as many CPU seconds begins no other iteration; where one takes minutes, its
            warming up does not show.
    """

    title: str
    model: str
    env: str
    env_config: Mapping[str, Any]
    most_turns: int
    tokens_per_turn: int
    context: int
    groups: int
    lr: float
    clip: tuple[float, float]
    iterations: int
    most_cpu_s: float = math.inf

    @property
    def trajectories(self) -> int:
        """Trajectories per iteration."""
        return self.groups * GROUP_SIZE

    @property
    def env_id(self) -> str:
        """What ``gymnasium.make`` takes."""
        return f"gspo_rllib.envs:gspo_rllib/{self.env}"


JOBS = {
    "one_turn": Job(
        title="Arithmetic, one turn, 16 groups of 8",
        model="models/arithmetic",
        env="Arithmetic-v0",
        env_config={},
        most_turns=1,
        tokens_per_turn=16,
        context=256,
        groups=16,
        lr=1e-4,
        clip=(0.03, 0.04),
        iterations=15,
    ),
    # As configs/calculator.yaml has it.
    "many_turns": Job(
        title="Calculator, 6 operations, 16 groups of 8",
        model="models/seed",
        env="Calculator-v0",
        env_config={"operations": 6},
        most_turns=14,
        tokens_per_turn=16,
        context=512,
        groups=16,
        lr=1e-4,
        clip=(0.03, 0.04),
        iterations=14,
    ),
    "long_turns": Job(
        title="Recall, 140 turns, 2,200 tokens of context, 4 groups of 8",
        model="models/recall_long",
        env="Recall-v0",
        env_config={"turns": 140, "keys": 1, "values": 8},
        most_turns=140,
        tokens_per_turn=8,
        context=4096,
        groups=4,
        lr=1e-4,
        clip=(3e-3, 4e-3),
        iterations=20,
        most_cpu_s=300.0,
    ),
}


def task_seed(seed: int, number: int) -> int:
    """What our own run with a seed resets its environments with in the group of this number."""
    return derive_seed(seed, "train", str(number), 0, bits=31)


class Played:
    """The job's environment as a plain text game: ``reset`` and ``step`` with text, and what came of it.

    Attributes:
        chat: How it wants to be framed.
        expert: Makes a policy that plays it right.
        system_prompt: What the model is told before the first observation.
        total: The return so far.
        success: Whether the task was solved.
        turns: Turns taken.
        done: Whether it is over.
    """

    def __init__(self, job: Job) -> None:
        env = gymnasium.make(job.env_id, **job.env_config)
        self._env, self.chat, self.expert = env, env.unwrapped.chat, env.unwrapped.expert
        self.system_prompt: str = self.chat.system_prompt
        self.total, self.success, self.turns, self.done = 0.0, False, 0, False

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """The first observation of the task with this seed."""
        self.total, self.success, self.turns, self.done = 0.0, False, 0, False
        observation, info = self._env.reset(seed=seed)
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The answer to a reply; ``info["role"]`` is the role of the message that tells it."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        self.total += float(reward)
        self.turns += 1
        self.done = terminated or truncated
        self.success = bool(info.get("success", False))
        return observation, float(reward), terminated, truncated, {**info, "role": info.get("obs_role", "user")}

    def close(self) -> None:
        """Nothing is held."""


def facts(played: list[Played], *, sampled: float, trained: float) -> dict[str, float]:
    """What a side reports of an iteration.

    Args:
        played: The side's environments, each at the end of its trajectory.
        sampled: Tokens the policy sampled.
        trained: Sampled tokens that the update took part in.
    """
    return {
        "success": sum(env.success for env in played) / len(played),
        "return": sum(env.total for env in played) / len(played),
        "turns": sum(env.turns for env in played),
        "sampled": sampled,
        "trained": trained,
    }
