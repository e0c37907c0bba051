"""``PolicyGradient``: what every algorithm here does, as an RLlib ``Algorithm``: sample, update, sync; checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)
from ray.util import log_once

from gspo_rllib.algorithms.policy_gradient import bfloat16_gain, overlap, resources
from gspo_rllib.algorithms.policy_gradient.answers import AnswersQuestions
from gspo_rllib.algorithms.policy_gradient.choices import SCHEDULES
from gspo_rllib.algorithms.policy_gradient.clip_monitor import ClipMonitor
from gspo_rllib.algorithms.policy_gradient.cluster_monitor import ClusterMonitor, alive_nodes
from gspo_rllib.algorithms.policy_gradient.colocation import TakesTurns, check_memory
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.policy_gradient.cut_monitor import CutMonitor
from gspo_rllib.algorithms.policy_gradient.evaluation import EvaluatesTasks
from gspo_rllib.algorithms.policy_gradient.foreign_methods import RefusesOldCalls
from gspo_rllib.algorithms.policy_gradient.idle_monitor import PATIENCE, IdleMonitor
from gspo_rllib.algorithms.policy_gradient.kept_trajectories import KeepsTrajectories
from gspo_rllib.algorithms.policy_gradient.outliving_learners import OutlivesLearners
from gspo_rllib.algorithms.policy_gradient.recorded_training import TrainsOnRecorded
from gspo_rllib.algorithms.policy_gradient.router_gap import ComparesRouting
from gspo_rllib.algorithms.policy_gradient.saved_as_data import SavedAsData
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.algorithms.policy_gradient.task_record import task_sets
from gspo_rllib.algorithms.policy_gradient.waiting import waiting_is_said
from gspo_rllib.driver.curriculum import Curriculum
from gspo_rllib.driver.first_build import first_build_of
from gspo_rllib.driver.fixed_lag import FixedLag
from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.driver.lockstep import Lockstep
from gspo_rllib.driver.protocol import GroupSource
from gspo_rllib.driver.recorded import RecordedGroups
from gspo_rllib.driver.runner_group import groups_by_value
from gspo_rllib.driver.selection import returns_differ, sample_until_informative
from gspo_rllib.driver.stream import GroupStream
from gspo_rllib.engines.compute_threads import ComputeThreads
from gspo_rllib.env_runners.engine_spec import threads_for
from gspo_rllib.env_runners.group_names import in_order
from gspo_rllib.errors import RunnersLostError
from gspo_rllib.learners.statistics import NUM_TRAJECTORIES, NUM_ZERO_ADVANTAGE
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.metrics import (
    CLUSTER,
    CURRICULUM_STAGE,
    GROUP_SELECTION,
    GROUP_STREAM,
    NUM_GROUPS_STALE_DROPPED,
    NUM_ITERATIONS_IDLE,
    TOKENS_PER_S,
)
from gspo_rllib.run_results import flatten, tokens_per_second
from gspo_rllib.seeds import derive_seed
from gspo_rllib.types import TrajectoryGroup

logger = logging.getLogger("gspo_rllib")

NEXT_GROUP = "next_group"
"""Key in the checkpointed state: how many groups the run has drawn so far, which names the next ones."""

UNFINISHED_GROUPS = "unfinished_groups"
"""Key in the checkpointed state: groups that were drawn and not yet trained; they are sampled first after a restore."""

SAMPLED_AHEAD = "sampled_ahead"
"""Key in the checkpointed state, where sampling overlaps learning: what was sampled of these groups, and when."""


class PolicyGradient(
    AnswersQuestions,
    ComparesRouting,
    RefusesOldCalls,
    TrainsOnRecorded,
    KeepsTrajectories,
    TakesTurns,
    OutlivesLearners,
    EvaluatesTasks,
    SavedAsData,
    Algorithm,
):
    """Samples groups, updates on them and syncs the weights; an algorithm subclasses it with its own default config."""

    config: PolicyGradientConfig

    def setup(self, config: AlgorithmConfig) -> None:
        """Builds runners and learners and puts the same weights everywhere.

        Raises:
            SettingError: Ray has not got, and cannot get, what they need.
        """
        resources.check_own_gpu(config)
        resources.check_schedulable(config, main_process=False)
        check_memory(config)
        bfloat16_gain.say_where_it_gains_nothing(config)
        self._next_group = 0
        self._unfinished: list[str] = []
        self._source: GroupSource
        self._settings: TrainingSettings = config.settings(config.training_settings)
        self._clip_monitor = ClipMonitor(self._settings)
        self._idle_monitor = IdleMonitor()
        self._cut_monitor = CutMonitor()
        self._curriculum = Curriculum(
            len(self._settings.curriculum),
            threshold=self._settings.curriculum_success,
            least_groups=math.ceil(self._settings.groups_per_iteration / 2),
        )
        self._selection = self._settings.group_selection
        self._threads = ComputeThreads(threads_for(config.model_config, resources.main_process_cpus(config)))
        try:
            with waiting_is_said(config), groups_by_value(), first_build_of(config):
                super().setup(config)
            self._cluster_monitor = ClusterMonitor(alive_nodes())
            self._task_sets = task_sets(config, counted=[self.env_runner, self.eval_env_runner])
            self._source = self._make_source()
            self._sync_weights()
        except BaseException:
            # Nobody has the algorithm to stop it, and its engines would be held as long as this process lives.
            self.cleanup()
            raise

    def _run_one_training_iteration(self) -> tuple[dict[str, Any], Any]:
        """RLlib's, which repeats training steps until ``reporting``'s minima are reached."""
        self._num_futile_steps = 0
        as_set = self.config
        self._begin_keeping()
        try:
            result: tuple[dict[str, Any], Any] = super()._run_one_training_iteration()
        finally:
            self.config = as_set
        self._write_kept()
        return result

    def log_result(self, result: dict[str, Any]) -> None:
        """RLlib's, with what is worked out from a whole iteration."""
        rate = tokens_per_second(flatten(result))
        if not math.isnan(rate):
            result[ENV_RUNNER_RESULTS][TOKENS_PER_S] = rate
        super().log_result(result)

    def training_step(self) -> None:
        """One training step, and the only one of an iteration unless ``reporting`` asks for more."""
        trained = self._lifetime_trained_steps()
        with self._groups_of_file():
            self._sample_and_update()
            self._num_futile_steps = self._num_futile_steps + 1 if self._lifetime_trained_steps() == trained else 0
            self._end_if_futile()
        self._log_recovery()
        self._watch_cluster()

    def _end_if_futile(self) -> None:
        """Has an iteration end that could never reach a minimum: RLlib would repeat the step for ever."""
        config = self.config
        if isinstance(self._source, RecordedGroups):
            # They are used up.
            unreachable: dict[str, Any] = {"min_time_s_per_iteration": None, "min_sample_timesteps_per_iteration": 0}
        elif self._num_futile_steps >= PATIENCE and config.min_train_timesteps_per_iteration:
            unreachable = {}
            logger.warning(
                "reporting.min_train_timesteps_per_iteration is %s, but %d training steps in a row had nothing to "
                "learn from: the iteration ends without.",
                config.min_train_timesteps_per_iteration,
                self._num_futile_steps,
            )
        else:
            return
        self.config = config.copy(copy_frozen=False)
        self.config.reporting(min_train_timesteps_per_iteration=0, **unreachable)
        self.config.freeze()

    def _sample_and_update(self) -> None:
        """Samples groups, updates on them in minibatches, syncs the weights."""
        self._taken: list[str] = []
        self._give_rebuilt_weights()
        with self._log_time(ENV_RUNNER_SAMPLING_TIMER):
            groups, env_runner_results, counts = sample_until_informative(
                self._take,
                self._selection.select,
                wanted=self._settings.groups_per_iteration,
                budget=0 if isinstance(self._source, RecordedGroups) else self._settings.resampling_budget,
            )
            self.metrics.aggregate(env_runner_results, key=ENV_RUNNER_RESULTS)
            self._log_counts(GROUP_SELECTION, counts)
            stream = self._source.measure()
            self._log_counts(GROUP_STREAM, stream)
        if self._settings.curriculum:
            self.metrics.log_value(CURRICULUM_STAGE, self._curriculum.stage, window=1)
            if news := self._curriculum.advance():
                logger.warning(news)
        if self._selection.filters_on_shaping(groups) and log_once("gspo_rllib_filters_on_shaping"):
            logger.warning(
                "training.zero_variance_metric='return' keeps groups whose trajectories all have the same "
                'info["success"] and differ by shaped reward only; a policy trained on those learns the shaping, not '
                "the task. Use zero_variance_metric='success'."
            )
        num_stale = int(stream.get(NUM_GROUPS_STALE_DROPPED, 0))
        if not groups:
            logger.warning("No group of this iteration has anything to learn from (%s): no update.", counts)
            self._warn_if_idle(0, num_stale)
            return

        self._log_router_gap(groups)
        with self._log_time(LEARNER_UPDATE_TIMER):
            learner_results = self._update_learners(
                groups,
                training_data=GroupTrainingData.from_groups(
                    groups,
                    num_minibatches=self._settings.num_minibatches,
                    seed=derive_seed(self.config.seed, "minibatches", self._next_group, bits=31),
                    min_informative=self._settings.min_informative_trajectories,
                    num_informative=self._num_informative,
                ),
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self._lifetime_env_steps()},
                num_epochs=self._settings.num_epochs,
            )
            self.metrics.aggregate(learner_results, key=LEARNER_RESULTS)
            self._look_at_trained(groups)
            measured = self.metrics.peek((LEARNER_RESULTS, DEFAULT_MODULE_ID), default={})
            for warning in self._clip_monitor.check(measured):
                logger.warning(warning)
            self._warn_if_idle(measured[NUM_TRAJECTORIES] - measured[NUM_ZERO_ADVANTAGE], num_stale)

        with self._log_time(SYNCH_WORKER_WEIGHTS_TIMER):
            self._take_weights()
            self._source.advance(self._weights)

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Brings failed env runners back and gives them the current weights before they sample."""
        restored = Fleet.of(env_runner_group).revive()
        if restored and env_runner_group is self.env_runner_group:
            self._source.readmit()
        elif restored:
            self._weights.push(Fleet.of(env_runner_group))
        return restored

    def cleanup(self) -> None:
        """RLlib's, which would wait for ever for a runner that cannot answer."""
        for name in ("env_runner_group", "eval_env_runner_group"):  # a setup that failed has made neither
            if (runners := getattr(self, name, None)) is not None:
                Fleet.of(runners).end()
        super().cleanup()
        self._threads.release()

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, and which groups come next."""
        unfinished = in_order([*self._source.unfinished, *self._unfinished])
        own = {NEXT_GROUP: self._next_group, UNFINISHED_GROUPS: unfinished, CURRICULUM_STAGE: self._curriculum.stage}
        if isinstance(self._source, (FixedLag, GroupStream)):
            own[SAMPLED_AHEAD] = self._source.get_state()
        return {**super().get_state(*args, **kwargs), **own}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state, older ones too; every engine holds its weights before this returns."""
        self._stop_sampling()
        super().set_state(state)
        if NEXT_GROUP in state:
            self._next_group, self._unfinished = state[NEXT_GROUP], list(state.get(UNFINISHED_GROUPS, []))
            self._curriculum.restore(state.get(CURRICULUM_STAGE, 0))
        if isinstance(self._source, (FixedLag, GroupStream)):
            known = self._source.restore(state.get(SAMPLED_AHEAD, {}))
            self._unfinished = [group_id for group_id in self._unfinished if group_id not in known]
        self._sync_weights()

    @classmethod
    def default_resource_request(cls, config: Any) -> Any:
        """RLlib's, for Ray Tune.

        Raises:
            SettingError: Ray has not got, and cannot get, what a trial needs.
        """
        request = super().default_resource_request(config)
        if ray.is_initialized():
            resources.check_schedulable(cls.get_default_config().update_from_dict(config), main_process=True)
        return request

    def _log_time(self, phase: str) -> AbstractContextManager[None]:
        # RLlib smooths timers by default; these are this iteration's own.
        timer: AbstractContextManager[None] = self.metrics.log_time((TIMERS, phase), reduce="mean", window=1)
        return timer

    def _log_counts(self, key: str, counts: Mapping[str, float]) -> None:
        for name, count in counts.items():
            self.metrics.log_value((key, name), count, reduce="sum")

    def _draw_groups(self, count: int) -> list[str]:
        """Names of the next groups: those that a restored run had not finished, then new ones."""
        drawn, self._unfinished = self._unfinished[:count], self._unfinished[count:]
        first = self._next_group
        self._next_group += count - len(drawn)
        return drawn + [self._curriculum.group(number) for number in range(first, self._next_group)]

    def _num_informative(self, group: TrajectoryGroup) -> int:
        """Trajectories with an advantage, as far as it can be told before the learners work it out."""
        teaches = not self._settings.returns_decide_advantages or returns_differ(group.episodes)
        return len(group.episodes) if teaches else 0

    def _make_source(self) -> GroupSource:
        if not self._settings.max_staleness or self._settings.recorded_groups is not None:
            return Lockstep(self.env_runner_group, draw=self._draw_groups)
        overlap.say_where_it_cannot_win(self.config)
        if SCHEDULES[self._settings.schedule]:
            return FixedLag(
                self.env_runner_group,
                groups_per_iteration=self._settings.groups_per_iteration,
                lag=self._settings.max_staleness,
                draw=self._draw_groups,
            )
        return GroupStream(
            self.env_runner_group,
            groups_per_iteration=self._settings.groups_per_iteration,
            max_staleness=self._settings.max_staleness,
            draw=self._draw_groups,
        )

    def _stop_sampling(self) -> None:
        self._unfinished = self._source.stop() + self._unfinished

    def _first_learner(self, function: Callable[[Any], Any]) -> list[Any]:
        first = None if self.learner_group.is_local else self.learner_group._worker_manager.healthy_actor_ids()[:1]
        results = list(self.learner_group.foreach_learner(function, remote_actor_ids=first))
        for result in results:
            if not result.ok:
                raise result.get()
        return [result.get() for result in results]

    def _take(self, count: int) -> tuple[list[TrajectoryGroup], list[Any]]:
        try:
            groups, metrics = self._source.take(count)
        except RunnersLostError:
            # Earlier draws of this iteration are not trained on: a resumed run plays them again.
            self._unfinished, self._taken = self._taken + self._unfinished, []
            raise
        self._taken += [group.group_id for group in groups]
        self._idle_monitor.draw(groups)
        if (warning := self._cut_monitor.draw(groups)) is not None:
            logger.warning(warning)
        self._offer(groups)
        if not isinstance(self._source, RecordedGroups):
            self._keep(groups)
            self._curriculum.watch(groups)
        return groups, metrics

    def _warn_if_idle(self, num_informative: float, num_stale: int) -> None:
        warning = self._idle_monitor.check(num_informative, num_stale=num_stale)
        if warning is not None:
            logger.warning(warning)
        self._log_counts(GROUP_SELECTION, {NUM_ITERATIONS_IDLE: self._idle_monitor.num_idle})

    def _watch_cluster(self) -> None:
        news, counts = self._cluster_monitor.check(alive_nodes(), self.env_runner_group)
        for line in news:
            logger.warning(line)
        for name, count in counts.items():
            self.metrics.log_value((CLUSTER, name), count, window=1)

    def _sync_weights(self) -> None:
        self.learner_group.commit()
        self._take_weights()
        self._source.start(self._weights)

    def _lifetime_trained_steps(self) -> int:
        return int(self.metrics.peek((LEARNER_RESULTS, ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME), default=0))

    def _lifetime_env_steps(self) -> int:
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))
