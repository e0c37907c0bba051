"""The sampled success rate of a policy: it really plays, through the env runner's own loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.engines.protocol import Engine
from gspo_rllib.env_pool.factory import LanguageEnvSpec
from gspo_rllib.env_pool.pool import EnvPool
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.group_names import evaluation_group
from gspo_rllib.env_runners.group_scheduler import GroupScheduler
from gspo_rllib.env_runners.rollout import Rollout
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import EnvError
from gspo_rllib.types import ChatSpec, succeeded, turns

MAX_TOKENS_PER_TURN = 32

# Three standard errors: one evaluation in some hundreds is ended early on the wrong side of its bound.
_CLEAR = 3.0
# An environment's own process or thread may need this long, in seconds, as in an env runner.
_STEP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class PlayReport:
    """How a policy did on a set of tasks.

    Attributes:
        num_tasks: How many tasks were played.
        success: Fraction of tasks solved.
        mean_return: Mean sum of rewards.
        mean_turns: Mean number of turns.
        mean_tokens: Mean length of the whole context, in tokens.
        max_tokens: The longest context, in tokens.
    """

    num_tasks: int
    success: float
    mean_return: float
    mean_turns: float
    mean_tokens: float
    max_tokens: int


class Player:
    """Plays tasks with whatever weights an engine holds.

    Args:
        engine: Samples the turns; nothing else may use it meanwhile.
        env: The environment.
        renderer: Renders the conversation as the environment frames it.
        num_slots: Most trajectories that are played at a time.
        run_seed: Root of the seeds of tasks and samples.

    Attributes:
        seconds_per_task: Wall time of a task when they were last played; None before.
    """

    def __init__(
        self, engine: Engine, env: LanguageEnvSpec, renderer: ChatRenderer, *, num_slots: int, run_seed: int
    ) -> None:
        self.seconds_per_task: float | None = None
        self._engine = engine
        self._renderer = renderer
        self._run_seed = run_seed
        self._pool = EnvPool(
            env.make, num_slots, blocking=env.blocking, process=env.process, step_timeout_s=_STEP_TIMEOUT_S
        )

    def play(
        self,
        tasks: range,
        temperature: float,
        *,
        at_a_time: int,
        bound: float | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> PlayReport | None:
        """Plays one trajectory per task, part by part.

        Args:
            tasks: Numbers of the tasks; the same number is always the same task, sampled with the same seeds.
            temperature: Sampling temperature of every turn.
            at_a_time: Tasks of a part. Only whole parts count, as trajectories that end early are of another kind.
            bound: A success rate; playing ends after the first part that leaves no doubt on which side of it success
                is. None plays all tasks.
            stop: Asked all the time; once it is true, playing ends and the part that is being played is lost.

        Returns:
            The report; None where no part was finished. A trajectory whose context no longer fits the engine is over
            and counts as it stands. An environment that says nothing about ``success`` succeeded where its return is
            positive.

        Raises:
            EnvError: The environment fails for task after task.
        """
        episodes: list[SingleAgentEpisode] = []
        started = time.monotonic()
        for first in range(0, len(tasks), at_a_time):
            part = self._play(tasks[first : first + at_a_time], temperature, stop)
            if part is None:
                break
            episodes += part
            self.seconds_per_task = (time.monotonic() - started) / len(episodes)
            solved = sum(map(_is_solved, episodes))
            if bound is not None and is_clear(solved, len(episodes), bound):
                break
        return _report(episodes) if episodes else None

    def close(self) -> None:
        """Abandons all environments."""
        self._pool.close()

    def _play(self, tasks: range, temperature: float, stop: Callable[[], bool]) -> list[SingleAgentEpisode] | None:
        settings = GenerationSettings(temperature=temperature, max_tokens_per_turn=MAX_TOKENS_PER_TURN)
        rollout = Rollout(self._engine, self._pool, self._renderer_for, settings, run_seed=self._run_seed)
        rollout.begin(_scheduler(tasks, self._run_seed))
        try:
            while rollout.advance():
                if stop():
                    return None
        finally:
            rollout.end()
        stats = rollout.collect()
        if stats.given_up:
            raise EnvError(f"the environment failed in {len(stats.given_up)} of {len(tasks)} tasks: {stats.errors}")
        return stats.episodes

    def _renderer_for(self, chat: ChatSpec | None) -> ChatRenderer:
        return self._renderer if (chat or ChatSpec()) == self._renderer.chat else self._renderer.reframed(chat)


def held_out_seeds(tasks: range, run_seed: int) -> frozenset[int]:
    """The ``reset`` seeds of tasks that a policy is judged on, so that it learns from others."""
    scheduler = _scheduler(tasks, run_seed)
    seeds = set()
    while (assignment := scheduler.next_assignment()) is not None:
        seeds.add(assignment.task_seed)
    return frozenset(seeds)


def is_clear(solved: int, played: int, bound: float) -> bool:
    """Whether so many solved tasks leave no doubt on which side of a bound the success rate is.

    Example:
        >>> is_clear(0, 32, 0.3), is_clear(8, 32, 0.3), is_clear(25, 32, 0.3)
        (True, False, True)
    """
    return abs(solved / played - bound) > _CLEAR * math.sqrt(bound * (1.0 - bound) / played)


def _scheduler(tasks: range, run_seed: int) -> GroupScheduler[SingleAgentEpisode]:
    return GroupScheduler(map(evaluation_group, tasks), group_size=1, run_seed=run_seed, role="evaluation")


def _is_solved(episode: SingleAgentEpisode) -> bool:
    said = succeeded(episode)
    return said if said is not None else episode.get_return() > 0


def _report(episodes: list[SingleAgentEpisode]) -> PlayReport:
    lengths = [
        sum(len(turn.prompt_token_ids) + len(turn.action_token_ids) for turn in turns(episode)) for episode in episodes
    ]
    return PlayReport(
        num_tasks=len(episodes),
        success=float(np.mean([_is_solved(episode) for episode in episodes])),
        mean_return=float(np.mean([episode.get_return() for episode in episodes])),
        mean_turns=float(np.mean([len(episode) for episode in episodes])),
        mean_tokens=float(np.mean(lengths)),
        max_tokens=max(lengths),
    )
