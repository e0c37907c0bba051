"""The RLlib env runner for language environments: its settings, weights, metrics and life cycle.

What it samples is played by ``rollout.Rollout``, or by what its parts make instead; how tokens are made is the engine's
business. It owns neither a torch module nor a vectorised environment, so nothing here goes through RLlib's
env-to-module connectors.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Collection
from typing import Any

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import Engine
from gspo_rllib.engines.weights import NamedWeights
from gspo_rllib.env_pool.factory import LanguageEnvSpec, check_language_env_spec
from gspo_rllib.env_runners.background import BackgroundSampler, BackgroundSampling, check_free
from gspo_rllib.env_runners.callbacks import Callbacks
from gspo_rllib.env_runners.curriculum import check_stages
from gspo_rllib.env_runners.engine_user import load
from gspo_rllib.env_runners.evaluation import LendsItsEngine
from gspo_rllib.env_runners.group_names import evaluation_group
from gspo_rllib.env_runners.group_scheduler import Role
from gspo_rllib.env_runners.player import GroupPlayer, Slots
from gspo_rllib.env_runners.replies import AnswersMessages
from gspo_rllib.env_runners.rollout_parts import RolloutParts
from gspo_rllib.env_runners.rollout_stats import RolloutStats
from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import EnvError, SettingError, WeightSyncError
from gspo_rllib.metrics import EPOCH, NUM_VERSION_REFUSALS
from gspo_rllib.policy_state import unwrap_module_state
from gspo_rllib.sent_weights import SentWeights, fetched
from gspo_rllib.types import TrajectoryGroup

_MAX_ERRORS_KEPT = 5


class LanguageEnvRunner(BackgroundSampling, LendsItsEngine, AnswersMessages, EnvRunner, Checkpointable):
    """Samples complete groups of trajectories from text environments with one generation engine.

    ``sample`` is called by RLlib and ``sample_groups`` by the driver: both play groups to their end. The methods of
    ``BackgroundSampling`` do so in a thread. The engine is made on first use, or at the first weights that arrive; the
    environments when they are first reset.

    Args:
        config: An algorithm config with this project's generation settings.
        kwargs: What RLlib passes to every env runner; ``worker_index`` and ``num_workers`` are used.

    Raises:
        EnvError: The environment is unknown, cannot be made, or does not speak text.
    """

    @override(EnvRunner)
    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.tune_trial_id: str | None = kwargs.get("tune_trial_id")
        self.module = None
        # Without a seed a run is not meant to be repeatable; within it, evaluation still repeats its tasks.
        self._run_seed: int = self.config.seed if self.config.seed is not None else secrets.randbits(63)
        self._engine: Engine | None = None
        self._pool: Slots | None = None
        self._pending_weights: tuple[Any, int] | None = None
        self._errors: list[str] = []
        self._metrics_lock = threading.RLock()
        self._callbacks = Callbacks(self, self._metrics_lock)
        self._num_evaluation_groups = 0
        self._env_spec: LanguageEnvSpec
        self._parts: RolloutParts
        self.make_env()
        self.make_module()

    @override(EnvRunner)
    def sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
        group_ids: list[str] | None = None,
        weights_version: int | None = None,
    ) -> list[SingleAgentEpisode]:
        """Plays groups of trajectories to their end.

        Args:
            num_timesteps: At least this many turns, in whole groups; RLlib's evaluation in steps.
            num_episodes: At least this many trajectories, rounded up to whole groups; 1 when nothing is said.
            explore: False samples at temperature 0; None takes ``config.explore``.
            random_actions: Must be False.
            force_reset: Has no effect: every trajectory starts with a reset.
            group_ids: Exactly these groups; how the driver samples. Without it, groups are numbered from 0 after every
                weights update, so every evaluation plays the same tasks, shared out to however many runners there are.
            weights_version: Sample with these weights or not at all.

        Returns:
            Finished episodes of complete groups, group by group. Empty when the engine does not hold
            ``weights_version`` (see ``get_weights_version``) or no group could be completed (see ``last_errors``).

        Raises:
            SettingError: ``random_actions`` is asked for, or a group twice.
            EngineError: A thread is sampling on this engine, and is not paused.
            EnvError: During an evaluation, no group could be completed.
            WeightSyncError: No weights were ever set (and no ``weights_version`` asked for).
        """
        if random_actions:
            raise SettingError("random_actions=True: a language action space has no useful random action; use False.")
        if not self._holds(weights_version):
            return []
        explore = self.config.explore if explore is None else explore
        if group_ids is not None:
            groups = self._play(group_ids, self._role, explore).groups
        else:
            groups = self._play_amount(num_timesteps, num_episodes, explore)
        return self._hand_out(groups)

    def sample_groups(self, group_ids: list[str], *, weights_version: int) -> SampleReport:
        """Plays these groups to their end with these weights, or not at all; how the driver samples in lock-step.

        Args:
            group_ids: Names of the groups.
            weights_version: What the engine must hold. The report names what it does hold; where that differs, nothing
                was sampled.

        Raises:
            SettingError: A group is asked for twice.
            EngineError: A thread is sampling on this engine, and is not paused.
        """
        if not self._holds(weights_version):
            return SampleReport(metrics=self.get_metrics(), weights_version=self.get_weights_version())
        stats = self._play(group_ids, self._role, self.config.explore)
        self._hand_out(stats.groups)
        return SampleReport(
            stats.groups, stats.given_up, self.last_errors(), self.get_metrics(), self.get_weights_version()
        )

    @property
    def num_tasks(self) -> int | None:
        """How many tasks the environment counts; None where it does not."""
        return self._env_spec.num_tasks

    def last_errors(self) -> list[str]:
        """Distinct messages of the trajectories that failed in the last call of ``sample``, at most 5, oldest first."""
        return list(self._errors)

    def get_weights_version(self) -> int | None:
        """The version the engine acknowledged; None when it never got any weights, or there is no engine yet."""
        if self._sampler is not None:
            return self._sampler.weights_version
        return self._engine.weights_version if self._engine is not None else None

    def set_weights(
        self, named_weights: NamedWeights | ray.ObjectRef | SentWeights, version: int, *, force: bool = False
    ) -> int | None:
        """Loads weights into the engine; any version that differs from the one it holds, older ones included.

        Args:
            named_weights: The whole Hugging Face ``state_dict``, float32, or a reference to it in Ray's object store.
            version: What to call these weights.
            force: Load them even if the engine already holds this version (another run's version 3, say).

        Returns:
            The version the engine acknowledges; compare it with ``version``.

        Raises:
            EngineError: The engine cannot be built, or a thread is sampling on it; then use ``offer_weights``.
            WeightSyncError: A name or shape is unknown, or a cache could not be dropped.
        """
        self._num_evaluation_groups = 0
        self._pending_weights = None
        engine = self._acquire_engine()
        if force or engine.weights_version != version:
            check_free(engine)
            named_weights = fetched(named_weights)
            load(engine, named_weights, version)
        self._load_for_evaluation(named_weights, version)
        return engine.weights_version

    @override(Checkpointable)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Counters only: the weights belong to the learner, and all randomness to the names of the groups."""
        return {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime}

    @override(Checkpointable)
    def set_state(self, state: dict[str, Any]) -> None:
        """Takes RLlib's state: counters, and weights under ``"rl_module"`` with their ``"weights_seq_no"``."""
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[NUM_ENV_STEPS_SAMPLED_LIFETIME]
        if COMPONENT_RL_MODULE not in state:
            return
        module_state, version = state[COMPONENT_RL_MODULE], state.get(WEIGHTS_SEQ_NO, 0)
        if self._engine is None and self._is_spare:
            # A driver that samples on remote runners keeps this one in reserve: loading a model can wait until then.
            self._num_evaluation_groups = 0
            self._pending_weights = (module_state, version)
            return
        self._set_module_state(module_state, version)

    @override(Checkpointable)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a copy of this runner is made from."""
        return (), {"config": self.config}

    @override(EnvRunner)
    def get_metrics(self) -> dict[str, Any]:
        """Metrics of everything sampled since the last call; names in ``gspo_rllib.metrics``."""
        with self._metrics_lock:
            measured: dict[str, Any] = self.metrics.reduce()
        return measured

    @override(EnvRunner)
    def get_spaces(self) -> dict[str, tuple[Any, Any]]:
        """The text spaces of the environment, under the three keys RLlib reads."""
        spaces = (self._env_spec.observation_space, self._env_spec.action_space)
        return {INPUT_ENV_SPACES: spaces, INPUT_ENV_SINGLE_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    @override(EnvRunner)
    def make_env(self) -> None:
        """Checks the configured environment; its instances are made when they are first needed."""
        self.stop_sampling()
        self._stop_evaluator()
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._env_spec = self._check_env()
        self._parts = self._make_parts()

    @override(EnvRunner)
    def make_module(self) -> None:
        """Nothing to make: the engine stands in for RLlib's inference module."""

    @override(EnvRunner)
    def assert_healthy(self) -> None:
        """Passes once the constructor has checked the environment."""
        assert self._env_spec is not None

    @override(EnvRunner)
    def stop(self) -> None:
        """Gives the engine back, abandons all environments and what is in flight; waits for no environment."""
        self.stop_sampling()
        self._stop_evaluator()
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._engine is not None:
            engine, self._engine = self._engine, None
            registry.release(engine)

    def _check_env(self) -> LanguageEnvSpec:
        return check_language_env_spec(self.config.env, self.config.env_config, worker_index=self.worker_index or 0)

    def _make_parts(self) -> RolloutParts:
        stages = check_stages(self.config, worker_index=self.worker_index or 0)
        return RolloutParts(self.config, self._env_spec, run_seed=self._run_seed, stages=stages)

    @property
    def _is_spare(self) -> bool:
        return self.worker_index == 0 and bool(self.num_workers)

    @property
    def _role(self) -> Role:
        return "evaluation" if self.config.in_evaluation else "train"

    def _holds(self, weights_version: int | None) -> bool:
        """Whether the engine is free and holds these weights, or any where no version is asked for."""
        check_free(self._acquire_engine())
        held = self.get_weights_version()
        if weights_version is not None and held != weights_version:
            self.metrics.log_value(NUM_VERSION_REFUSALS, 1, reduce="sum")
            return False
        if held is None:
            raise WeightSyncError("sample: this env runner has no weights yet; call set_weights or set_state first.")
        return True

    def _hand_out(self, groups: list[TrajectoryGroup]) -> list[SingleAgentEpisode]:
        episodes = [episode for group in groups for episode in group.episodes]
        self._callbacks.make("on_sample_end", samples=episodes)
        return episodes

    def _play_amount(self, num_timesteps: int | None, num_episodes: int | None, explore: bool) -> list[TrajectoryGroup]:
        size = self._parts.group_size
        wanted = num_episodes if num_episodes is not None else 1
        if num_timesteps is not None:
            wanted = min(self.config.num_envs_per_env_runner, num_timesteps)
        # Runners that are asked for equal amounts play what one would that is asked for all of it.
        stride, offset = (self.num_workers, self.worker_index - 1) if self.worker_index else (1, 0)
        groups: list[TrajectoryGroup] = []
        num_turns = 0
        while True:
            first = self._num_evaluation_groups
            self._num_evaluation_groups += math.ceil(wanted / size)
            numbers = range(first, self._num_evaluation_groups)
            group_ids = [evaluation_group(n * stride + offset) for n in numbers]
            stats = self._play(group_ids, "evaluation", explore)
            groups += stats.groups
            num_turns += stats.num_turns
            if not stats.groups and wanted and self.config.in_evaluation:
                # RLlib's evaluation asks again until it has enough episodes: returning nothing would never end.
                raise EnvError(f"evaluation: no trajectory could be played. Last errors: {self.last_errors()}")
            if num_timesteps is None or not stats.groups or num_turns >= num_timesteps:
                return groups

    def _play(self, group_ids: list[str], role: Role, explore: bool) -> RolloutStats:
        started = time.perf_counter()
        if self._pool is None:
            self._pool = self._parts.make_pool()
        scheduler = self._parts.make_scheduler(group_ids, role)
        stats = self._make_rollout(self._pool, explore).run(scheduler)
        stats.sample_s = time.perf_counter() - started
        self._log(stats)
        return stats

    def _log(self, stats: RolloutStats) -> None:
        with self._metrics_lock:
            stats.log(self.metrics)
            self.metrics.log_value(WEIGHTS_SEQ_NO, self.get_weights_version(), window=1)
            tasks = self._parts.task_order(self._role)
            if tasks is not None and self._role == "train" and stats.settled_ids:
                self.metrics.log_value(EPOCH, max(map(tasks.epoch, stats.settled_ids)), reduce="max")
        self.num_env_steps_sampled_lifetime += stats.num_turns
        self._errors = stats.errors[-_MAX_ERRORS_KEPT:]

    @override(BackgroundSampling)
    def _report(self, stats: RolloutStats, *, num_in_flight: int) -> SampleReport:
        metrics: dict[str, Any] = {}
        if stats.settled_ids:
            self._log(stats)
            metrics = self.get_metrics()
        return SampleReport(
            stats.groups, stats.given_up, stats.errors, metrics, self.get_weights_version(), num_in_flight
        )

    @override(BackgroundSampling)
    def _acquire_sampler(self) -> BackgroundSampler:
        if self._sampler is None:
            pool = self._parts.make_pool()  # not the one of sample(), which may be called during a pause
            self._sampler = BackgroundSampler(
                self._acquire_engine(),
                pool,
                lambda: self._make_rollout(pool, self.config.explore),
                self._parts.make_scheduler([], self._role),
                weight_update=self._parts.settings.weight_update,
                on_groups=self._hand_out,
            )
        return self._sampler

    @override(LendsItsEngine)
    def _make_evaluator(self, config: AlgorithmConfig) -> LanguageEnvRunner:
        whose = {"worker_index": self.worker_index, "num_workers": self.num_workers}
        evaluator: LanguageEnvRunner = type(self)(config=config, tune_trial_id=self.tune_trial_id, **whose)
        return evaluator

    def _make_rollout(self, pool: Slots, explore: bool) -> GroupPlayer:
        observer = self._callbacks.observer(pool)
        return self._parts.make_rollout(self._acquire_engine(), pool, explore=explore, observer=observer)

    def _acquire_engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._parts.acquire_engine(self.worker_index or 0)
            self._watch_engine(self._engine, self._parts.settings.engine_timeout_s)
            pending, self._pending_weights = self._pending_weights, None
            if pending is not None:
                self._set_module_state(*pending)
        return self._engine

    def _set_module_state(self, module_state: Any, version: int) -> None:
        # RLlib hands over whole weights; where engines take adapters, the algorithm sends one before the first sample.
        if GenerationSettings.of(self.config).adapter_sync == "swap":
            return
        # RLlib numbers weights from 1; 0 means "whatever you hold, take these".
        if version and self._acquire_engine().weights_version == version:
            self._num_evaluation_groups = 0
            return
        if isinstance(module_state, ray.ObjectRef):
            module_state = ray.get(module_state)
        self.set_weights(unwrap_module_state(module_state), version, force=True)
