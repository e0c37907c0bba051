"""The RLlib env runner for agents of the user's own: like the one for environments, but for what plays.

No method here may be a coroutine: one is enough for Ray to make the actor asynchronous, and every other method then
runs inside an event loop.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any, NoReturn

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.annotations import override

from gspo_rllib.agents.context_watch import ContextWatch
from gspo_rllib.agents.external import ExternalDoor
from gspo_rllib.agents.function import find_play
from gspo_rllib.agents.process_workers import ProcessWorkers, importable_name
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import Session
from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.agents.tasks import Tasks
from gspo_rllib.agents.workers import ThreadWorkers
from gspo_rllib.engines.protocol import Engine
from gspo_rllib.env_pool.factory import LanguageEnvSpec
from gspo_rllib.env_runners.agent_rollout import AgentRollout
from gspo_rllib.env_runners.agent_slots import AgentSlots
from gspo_rllib.env_runners.engine_spec import load_message_renderer, load_tool_parser, vocabulary_size
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.env_runners.player import Slots
from gspo_rllib.env_runners.rollout_parts import RolloutParts
from gspo_rllib.env_runners.trajectory import EpisodeObserver


class AgentEnvRunner(LanguageEnvRunner):
    """Samples complete groups of trajectories that the user's function plays; see ``LanguageEnvRunner``.

    Raises:
        SettingError: The function or the tasks cannot be found, or are not what they must be.
    """

    _door: ExternalDoor | None = None

    @override(LanguageEnvRunner)
    def _check_env(self) -> LanguageEnvSpec:
        text = gym.spaces.Text(max_length=2**20)  # RLlib asks for spaces; nothing is ever compared with them
        num_tasks = Tasks(AgentSettings.of(self.config).tasks).count
        return LanguageEnvSpec(_make_nothing, text, text, blocking=True, process=False, chat=None, num_tasks=num_tasks)

    @override(LanguageEnvRunner)
    def _make_parts(self) -> RolloutParts:
        self._close_door()
        agent = AgentSettings.of(self.config)
        if agent.workers == "external":
            role = "evaluation-" if self.config.in_evaluation else ""
            self._door = ExternalDoor(agent, name=f"{role}runner-{self.worker_index or 0}")
        return AgentParts(self.config, self._env_spec, run_seed=self._run_seed, door=self._door)

    @override(LanguageEnvRunner)
    def stop(self) -> None:
        """Gives the engine back, abandons all agents, and ends their server; waits for no agent."""
        super().stop()
        self._close_door()

    def _close_door(self) -> None:
        door, self._door = self._door, None
        if door is not None:
            door.close()


class AgentParts(RolloutParts):
    """Makes places for agents, and rollouts, from one config.

    Args:
        config: The env runner's config.
        env: Stands for the environment that there is none of.
        run_seed: Root of every seed.
        door: Where a harness outside takes trajectories; None where the user's function plays them.
    """

    def __init__(
        self, config: AlgorithmConfig, env: LanguageEnvSpec, *, run_seed: int, door: ExternalDoor | None
    ) -> None:
        super().__init__(config, env, run_seed=run_seed)
        self._agent = AgentSettings.of(config)
        self._door = door
        self._play = None if self._agent.play is None else find_play(self._agent.play)
        self._tasks = Tasks(self._agent.tasks)
        self._contexts = ContextWatch()
        self._tool_parser = load_tool_parser(self._agent.tool_parser, config.model_config)

    def make_pool(self) -> AgentSlots:
        """Places for as many agents as trajectories are played at a time.

        Raises:
            SettingError: Agents are played outside, and the server for them cannot be started.
        """
        size = self._config.num_envs_per_env_runner
        if self._door is not None:
            self._door.open()
            return AgentSlots(size, self._door.lobby, self._door.endpoint)
        assert self._play is not None
        if self._agent.workers == "process":
            return AgentSlots(size, ProcessWorkers(importable_name(self._agent.play or self._play)))
        return AgentSlots(size, ThreadWorkers(self._play))

    def make_rollout(self, engine: Engine, pool: Slots, *, explore: bool, observer: EpisodeObserver) -> AgentRollout:
        """A rollout on this engine and in these places; greedy unless it explores."""
        assert isinstance(pool, AgentSlots)
        settings = self.settings if explore else dataclasses.replace(self.settings, temperature=0.0)
        vocab_size = vocabulary_size(self._config.model_config)

        def make_session() -> Session:
            return Session(
                self._message_renderer,
                max_model_len=engine.max_model_len,
                max_tokens=settings.max_tokens_per_turn,
                max_calls=settings.max_turns,
                history=self._agent.history,
                vocab_size=vocab_size,
                tool_parser=self._tool_parser,
            )

        return AgentRollout(
            engine,
            pool,
            workers=pool.workers,
            tasks=self._tasks,
            make_session=make_session,
            settings=settings,
            agent=self._agent,
            contexts=self._contexts,
            run_seed=self._run_seed,
            observer=observer,
        )

    @cached_property
    def _message_renderer(self) -> MessageRenderer:
        # A tokenizer of its own: agents' threads use it, and the renderer's lock guards no other.
        return load_message_renderer(self.settings, self._config.model_config)


def _make_nothing(**kwargs: Any) -> NoReturn:
    raise AssertionError("an agent has no environment")
