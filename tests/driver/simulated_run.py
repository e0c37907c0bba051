"""A run in a simulated world: the driver's own classes and an algorithm's own training step, on learners that count.

Nothing of what is tested is written again here: ``Run`` is a ``PolicyGradient`` that is built by its own ``setup``,
with its own sources of groups, fleet, admission, weights, selection and state. Only what RLlib, Ray and torch would do
beneath is replaced, by ``install``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.actor_manager import ResultOrError

from gspo_rllib import weight_sync
from gspo_rllib.algorithms.policy_gradient import algorithm, recorded_training
from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient
from gspo_rllib.driver import fixed_lag, fleet, selection, stream
from gspo_rllib.driver.learner_team import LearnerTeam
from gspo_rllib.driver.selection import GroupSelection
from gspo_rllib.errors import LearnersLostError, WeightSyncError
from gspo_rllib.learners.statistics import NUM_TRAJECTORIES, NUM_ZERO_ADVANTAGE
from gspo_rllib.types import TrajectoryGroup
from tests.driver import simulated_ray
from tests.driver.simulated_ray import RAY, Ref, World
from tests.episodes import make_episode


class Learners(LearnerTeam):
    """Learners whose policy is a number, another one after every update.

    Args:
        world: Where policies get their numbers.
        watch: Called with the learners and the groups of every update.
    """

    is_local = is_remote = property(lambda self: False)  # type: ignore[assignment]

    def __init__(self, world: World, watch: Callable[[Learners, list[TrajectoryGroup]], None]) -> None:
        self._world, self._watch_update = world, watch
        self._worker_manager = SimpleNamespace(healthy_actor_ids=lambda: [0])
        self._is_shut_down = True  # there is nothing to shut down
        self.num_rebuilds = self.num_updates_repeated = self.version = 0
        self.policies: dict[int, set[int]] = {}
        self.loses_next = self.shares_model = False
        self._learn()

    def _learn(self) -> None:
        self.policy = next(self._world.numbers)
        self.policies.setdefault(self.version, set()).add(self.policy)

    def update(self, **kwargs: Any) -> dict[str, Any]:
        if self.loses_next:
            self.loses_next = False
            raise LearnersLostError("the learners were lost twice.")
        self._watch_update(self, kwargs["training_data"].groups)
        self.version += 1
        self._learn()
        return {}

    def rebuild(self) -> None:
        """As after a loss: the same number of updates, and weights that may differ in a bit."""
        self.num_rebuilds += 1
        self._learn()

    def keep(self, function: Any) -> tuple[Any, Any]:
        return (self.version, SimpleNamespace(learner_dtype=None), False, None), Ref(self.policy, done=True)

    def foreach_learner(self, func: Any, **kwargs: Any) -> Any:
        learner = SimpleNamespace(_weights_seq_no=self.version, score=lambda *_: self.policies[self.version])
        return [ResultOrError(result=func(learner))]

    def commit(self) -> None:
        pass

    def get_state(self) -> dict[str, Any]:
        return {"version": self.version, "policies": {v: sorted(p) for v, p in self.policies.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        self.version = state["version"]
        self.policies = {int(v): set(p) for v, p in state["policies"].items()}
        self._learn()


class _NoRLlib(Algorithm):
    """What ``PolicyGradient`` calls of its base class."""

    def setup(self, config: Any) -> None:
        self.env_runner_group, self.learner_group = config.world.runners, config.learners
        self.metrics = _NoMetrics()

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"learners": self.learner_group.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.learner_group.restore(state["learners"])


class _NoMetrics:
    def log_time(self, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext()

    def peek(self, *args: Any, default: Any = 0, **kwargs: Any) -> Any:
        return {NUM_TRAJECTORIES: 1, NUM_ZERO_ADVANTAGE: 0} if isinstance(default, dict) else default

    def aggregate(self, *args: Any, **kwargs: Any) -> None:
        pass

    log_value = aggregate


class _Says:
    """Stands for what only warns: monitors of clipping, of idle iterations, of machines."""

    def __init__(self, *args: Any) -> None:
        self.num_idle = 0

    def check(self, *args: Any, **kwargs: Any) -> Any:
        return []

    def draw(self, groups: Any) -> None:
        pass


class Run(PolicyGradient, _NoRLlib):
    """An algorithm in a simulated world.

    Args:
        world: Its env runners.
        watch: See ``Learners``.
        schedule: ``"sync"``, or a ``training.schedule``.
        max_staleness: η; 0 with ``"sync"``.
        groups: G, groups of an iteration.
        dull_groups: What becomes of groups without variance.
    """

    def __init__(
        self, world: World, watch: Any, *, schedule: str, max_staleness: int, groups: int, dull_groups: Any
    ) -> None:
        settings = SimpleNamespace(
            max_staleness=max_staleness,
            schedule="free" if schedule == "sync" else schedule,
            groups_per_iteration=groups,
            group_selection=_SELECTIONS[dull_groups],
            resampling_budget=groups if dull_groups == "resample" else 0,
            recorded_groups=None,
            reward_part_weights=None,
            advantage_estimator="group_z_score",
            curriculum=[],
            curriculum_success=0.5,
            num_minibatches=2,
            num_epochs=1,
            min_informative_trajectories=0,
            returns_decide_advantages=False,
            router_drift=False,
        )
        self.learners = Learners(world, watch)
        self.config = SimpleNamespace(  # type: ignore[assignment]
            world=world,
            learners=self.learners,
            seed=1,
            training_settings=None,
            settings=lambda _: settings if _ is None else SimpleNamespace(temperature=1.0),
            model_config={},
            colocate=False,
            num_env_runners=0,
            evaluation_num_env_runners=0,
            min_train_timesteps_per_iteration=0,
        )
        self.failed_updates = "/nowhere"
        self._num_futile_steps = 0
        self.setup(self.config)  # type: ignore[arg-type]

    def train(self) -> None:  # type: ignore[override]
        """What RLlib does in an iteration."""
        self.restore_env_runners(self.env_runner_group)
        self.training_step()

    def state(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        saved: dict[str, Any] = json.loads(json.dumps(self.get_state()))
        return saved


_SELECTIONS = {name: GroupSelection(zero_variance_groups=name) for name in ("keep", "drop", "resample")}  # type: ignore[arg-type]


def foreign_groups(number: int) -> list[TrajectoryGroup]:
    """Groups that were made elsewhere."""
    names = [f"mine-{number}-{i}" for i in range(2)]
    return [TrajectoryGroup(name, [make_episode(name, i, [(1, 1)], float(i)) for i in range(2)]) for name in names]


def _check_gap(sample: Any, gap: Any) -> None:
    if sample.policy not in gap:
        raise WeightSyncError(f"an engine samples from policy {sample.policy}, not from one of {gap}")


def install(patch: pytest.MonkeyPatch) -> None:
    """Has the driver's modules find the simulated world in place of Ray, torch and RLlib."""
    for module in (fleet, stream, fixed_lag, weight_sync):
        patch.setattr(module, "ray", RAY)
    patch.setattr(fleet, "time", simulated_ray.Clock())
    patch.setattr(fleet, "Standstill", simulated_ray.Standstill)
    patch.setattr(fleet, "actor_entry", simulated_ray.entry)
    for module in (fleet, fixed_lag, selection):
        patch.setattr(module, "logger", SimpleNamespace(warning=lambda *args: None))
    for module in (stream, weight_sync):
        patch.setattr(module, "os", SimpleNamespace(getpid=simulated_ray.pid))
    patch.setattr(weight_sync, "Gap", SimpleNamespace(between=lambda sample, scored, dtype: scored))
    patch.setattr(weight_sync, "check_gap", _check_gap)
    patch.setattr(weight_sync, "with_alternatives", lambda words, spec: words)
    for name in ("resources", "overlap"):
        patch.setattr(algorithm, name, SimpleNamespace(check_own_gpu=_nothing, check_schedulable=_nothing,
                                                       main_process_cpus=_nothing,
                                                       say_where_it_cannot_win=_nothing))  # fmt: skip
    for name in ("threads_for", "task_sets"):
        patch.setattr(algorithm, name, _nothing)
    patch.setattr(algorithm, "waiting_is_said", lambda config: contextlib.nullcontext())
    patch.setattr(algorithm, "alive_nodes", _nothing)
    patch.setattr(algorithm, "logger", SimpleNamespace(warning=lambda *args: None))
    for name in ("ClusterMonitor", "IdleMonitor", "ClipMonitor"):
        patch.setattr(algorithm, name, _Says)
    for name in (
        "_log_counts",
        "_watch_cluster",
        "_warn_if_idle",
        "_log_recovery",
        "_kept_for_replay",
        "_end_if_futile",
    ):
        patch.setattr(Run, name, _nothing, raising=False)
    for name in ("check_recorded", "vocabulary_size", "longest_context"):
        patch.setattr(recorded_training, name, _nothing)
    patch.setattr(recorded_training, "with_own_behavior", lambda groups, **_: (groups, 0))


def _nothing(*args: Any, **kwargs: Any) -> Any:
    return None
