"""From the config of an env runner to what its rollouts consist of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.engines.protocol import Engine, EngineSpec
from gspo_rllib.env_pool.factory import LanguageEnvSpec
from gspo_rllib.env_pool.pool import EnvPool
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.engine_spec import engine_spec, load_runner_tokenizer
from gspo_rllib.env_runners.group_scheduler import GroupScheduler, Role
from gspo_rllib.env_runners.player import GroupPlayer, Slots
from gspo_rllib.env_runners.rollout import Rollout
from gspo_rllib.env_runners.settings import GenerationSettings, GroupSettings
from gspo_rllib.env_runners.trajectory import EpisodeObserver
from gspo_rllib.types import ChatSpec


class RolloutParts:
    """Makes environments' slots, schedulers, renderers and rollouts, all from one config.

    Args:
        config: The env runner's config.
        env: The environment that is played.
        run_seed: Root of every seed.

    Attributes:
        settings: How text is sampled.
        group_size: K, trajectories of a group.
    """

    def __init__(self, config: AlgorithmConfig, env: LanguageEnvSpec, *, run_seed: int) -> None:
        self.settings = GenerationSettings.of(config)
        self.group_size = GroupSettings.of(config).group_size
        self._config = config
        self._env = env
        self._run_seed = run_seed
        self._tokenizer: Any = None
        self._renderers: dict[str, ChatRenderer] = {}

    def make_pool(self) -> Slots:
        """Slots for as many environments as trajectories are played at a time; none is made yet."""
        return EnvPool(
            self._env.make,
            self._config.num_envs_per_env_runner,
            blocking=self._env.blocking,
            process=self._env.process,
            step_timeout_s=self.settings.step_timeout_s,
        )

    def make_scheduler(self, group_ids: Iterable[str], role: Role) -> GroupScheduler[SingleAgentEpisode]:
        """Who plays next in these groups, and in those that are added later."""
        return GroupScheduler(
            group_ids,
            group_size=self.group_size,
            run_seed=self._run_seed,
            role=role,
            trajectory_retries=self.settings.trajectory_retries,
            ragged_groups=self.settings.ragged_groups,
        )

    def make_rollout(self, engine: Engine, pool: Slots, *, explore: bool, observer: EpisodeObserver) -> GroupPlayer:
        """A rollout on this engine and in a pool that ``make_pool`` made; greedy unless it explores."""
        assert isinstance(pool, EnvPool)
        settings = self.settings if explore else dataclasses.replace(self.settings, temperature=0.0)
        return Rollout(engine, pool, self.renderer_for, settings, run_seed=self._run_seed, observer=observer)

    def engine_spec(self, worker_index: int) -> EngineSpec:
        """What to ask the engine registry for.

        Args:
            worker_index: RLlib's number of the env runner; makes its engine's own seed differ from the others'.
        """
        return engine_spec(
            self.settings,
            self._config.model_config,
            max_num_seqs=self._config.num_envs_per_env_runner,
            run_seed=self._config.seed,
            stop_token_ids=self.renderer_for(self._env.chat).stop_token_ids,
            worker_index=worker_index,
        )

    def renderer_for(self, chat: ChatSpec | None) -> ChatRenderer:
        """The renderer of conversations that are framed like this; the same one for equal framings."""
        key = repr(chat)
        if key not in self._renderers:
            if self._tokenizer is None:
                self._tokenizer = load_runner_tokenizer(self._config.model_config)
            self._renderers[key] = ChatRenderer(self._tokenizer, chat)
        return self._renderers[key]
