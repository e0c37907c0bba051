"""From the config of an env runner to what its rollouts consist of."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.engines.protocol import Engine, EngineSpec
from gspo_rllib.env_pool.factory import LanguageEnvSpec
from gspo_rllib.env_pool.pool import EnvPool
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.engine_spec import chosen_engine, engine_spec, load_renderer
from gspo_rllib.env_runners.engine_user import acquire
from gspo_rllib.env_runners.group_scheduler import GroupScheduler, Role
from gspo_rllib.env_runners.player import GroupPlayer, Slots
from gspo_rllib.env_runners.rollout import Rollout
from gspo_rllib.env_runners.settings import GenerationSettings, GroupSettings
from gspo_rllib.env_runners.task_order import TaskOrder
from gspo_rllib.env_runners.trajectory import EpisodeObserver
from gspo_rllib.types import ChatSpec

# Framings that are kept ready. Environments with a framing of their own for each episode would else fill the memory.
_MAX_RENDERERS = 64


class RolloutParts:
    """Makes environments' slots, schedulers, renderers and rollouts, all from one config.

    Args:
        config: The env runner's config.
        env: The environment that is played.
        run_seed: Root of every seed.
        stages: What is played in the stages of a curriculum instead.

    Attributes:
        settings: How text is sampled.
        group_size: K, trajectories of a group.
    """

    def __init__(
        self, config: AlgorithmConfig, env: LanguageEnvSpec, *, run_seed: int, stages: Sequence[LanguageEnvSpec] = ()
    ) -> None:
        self.settings = GenerationSettings.of(config)
        self.group_size = GroupSettings.of(config).group_size
        self._config = config
        self._env = env
        self._stages = stages
        self._run_seed = run_seed
        self._renderers: OrderedDict[str, ChatRenderer] = OrderedDict()

    def make_pool(self) -> Slots:
        """Slots for as many environments as trajectories are played at a time; none is made yet."""
        return EnvPool(
            self._env.make,
            self._config.num_envs_per_env_runner,
            blocking=any(env.blocking for env in (self._env, *self._stages)),
            process=any(env.process for env in (self._env, *self._stages)),
            step_timeout_s=self.settings.step_timeout_s,
            stages=[stage.make for stage in self._stages],
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
            tasks=self.task_order(role),
        )

    def task_order(self, role: Role) -> TaskOrder | None:
        """In which order groups play the environment's tasks; None where it does not count them."""
        counts = [stage.num_tasks for stage in self._stages]
        if self._env.num_tasks is None and not any(counts):
            return None
        return TaskOrder(self._env.num_tasks, run_seed=self._run_seed, shuffled=role == "train", stages=counts)

    def make_rollout(self, engine: Engine, pool: Slots, *, explore: bool, observer: EpisodeObserver) -> GroupPlayer:
        """A rollout on this engine and in a pool that ``make_pool`` made; greedy unless it explores."""
        assert isinstance(pool, EnvPool)
        settings = self.settings if explore else dataclasses.replace(self.settings, temperature=0.0)
        return Rollout(
            engine,
            pool,
            self.renderer_for,
            settings,
            run_seed=self._run_seed,
            observer=observer,
            deterministic=all(env.deterministic for env in (self._env, *self._stages)),
        )

    def acquire_engine(self, worker_index: int) -> Engine:
        """The process's engine for this config; it must be released.

        Args:
            worker_index: See ``engine_spec``.

        Raises:
            EngineError: It cannot be built for this model.
        """
        return acquire(self.engine_spec(worker_index), otherwise=chosen_engine(self._config).otherwise)

    def engine_spec(self, worker_index: int) -> EngineSpec:
        """What to ask the engine registry for.

        Args:
            worker_index: RLlib's number of the env runner; makes its engine's own seed differ from the others'.
        """
        return engine_spec(
            dataclasses.replace(self.settings, engine=chosen_engine(self._config).name),
            self._config.model_config,
            max_num_seqs=self._config.num_envs_per_env_runner,
            run_seed=self._config.seed,
            stop_token_ids=self.renderer_for(self._env.chat).stop_token_ids,
            worker_index=worker_index,
            colocated_bytes=getattr(self._config, "colocated_bytes", None),
        )

    def renderer_for(self, chat: ChatSpec | None) -> ChatRenderer:
        """The renderer of conversations that are framed like this; the same one for equal framings."""
        key = repr(chat)
        if key in self._renderers:
            self._renderers.move_to_end(key)
            return self._renderers[key]
        renderer = self._renderers[key] = self._renderer.reframed(chat)
        if len(self._renderers) > _MAX_RENDERERS:
            self._renderers.popitem(last=False)  # whoever plays with it keeps it
        return renderer

    @cached_property
    def _renderer(self) -> ChatRenderer:
        """What all renderers share: the tokenizer, and what is known of its chat template."""
        return load_renderer(self.settings, self._config.model_config, self._env.chat)
