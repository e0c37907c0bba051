"""The driver's side of sampling: deals groups to env runners, and makes sure that each samples with the right weights.

A runner samples only with the weights version it is asked for. One that was restarted behind RLlib's back holds another
and returns nothing; it is sent the weights and asked again. Groups of a runner that died are dealt to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib.env_runners.weights import inference_state
from gspo_rllib.errors import NoProgressError, WeightSyncError
from gspo_rllib.types import TrajectoryGroup, group_episodes

MAX_ROUNDS = 3
"""Times the groups of lost or out-of-date runners are dealt again before the iteration goes on with what there is."""


class Weights:
    """One version of the policy's weights, taken from the learners once and sent to any number of runners.

    It stays what it was when the learners go on: a learner in this process is copied once; one in an actor writes to
    Ray's object store, which runners read from without a detour through the driver.

    Attributes:
        version: The learners' count of updates when it was taken.
    """

    def __init__(self, learner_group: LearnerGroup) -> None:
        first = None if learner_group.is_local else learner_group._worker_manager.healthy_actor_ids()[:1]
        (answer,) = learner_group.foreach_learner(_take_weights, remote_actor_ids=first)
        if not answer.ok:
            raise answer.get()
        self.version, self._taken = answer.get()

    @property
    def _here(self) -> dict[str, np.ndarray]:
        """The arrays, for a runner in this process."""
        taken = self._taken
        return ray.get(taken) if isinstance(taken, ray.ObjectRef) else taken

    @property
    def _anywhere(self) -> ray.ObjectRef:
        """The arrays in the object store: put there once, mapped by every runner."""
        if not isinstance(self._taken, ray.ObjectRef):
            self._taken = ray.put(self._taken)
        return self._taken

    def push(self, runners: EnvRunnerGroup, *, force: bool = False) -> None:
        """Loads the weights into every healthy runner's engine and waits until each has acknowledged them.

        Args:
            runners: Training or evaluation env runners.
            force: Load them also where the version is the same: after a restore it may be another run's.

        Raises:
            WeightSyncError: A runner acknowledged another version.
        """
        remote = runners.num_remote_env_runners() > 0
        named: Any = self._anywhere if remote else self._here
        version = self.version

        def load(runner: Any) -> int | None:
            return runner.set_weights(named, version, force=force)

        acknowledged = runners.foreach_env_runner(load, local_env_runner=not remote)
        wrong = sorted({str(got) for got in acknowledged if got != version})
        if wrong:
            raise WeightSyncError(
                f"weights version {version} was sent, but env runners hold version {', '.join(wrong)}; no trajectory "
                "was sampled with them. Restart the run from its last checkpoint."
            )

    def offer(self, runners: EnvRunnerGroup, workers: Sequence[int]) -> None:
        """Hands the weights to runners that play, each of which takes them up when it can; waits for none.

        Args:
            runners: Training env runners.
            workers: Which of them, by RLlib's numbers.
        """
        version = self.version
        if not runners.num_remote_env_runners():
            for _ in workers:
                runners.local_env_runner.offer_weights(self._here, version)
            return
        named = self._anywhere if workers else None

        def offer(runner: Any) -> None:
            runner.offer_weights(named, version)

        for worker in workers:
            runners._worker_manager.actors()[worker].apply.remote(offer)


def _take_weights(learner: Learner) -> tuple[int, dict[str, np.ndarray] | ray.ObjectRef]:
    """The version and a copy of the weights, made where the learner is."""
    in_driver = learner.config.num_learners == 0
    state = inference_state(learner.module[DEFAULT_MODULE_ID].unwrapped(), copy=in_driver)
    # The object store makes a copy of its own.
    return learner._weights_seq_no, state if in_driver else ray.put(state)


def sample_groups(
    runners: EnvRunnerGroup,
    group_ids: Sequence[str],
    *,
    weights_version: int,
    recover: Callable[[], None],
) -> tuple[list[TrajectoryGroup], list[Any]]:
    """Samples groups in parallel, whatever happens to single runners.

    Args:
        runners: RLlib's group of ``LanguageEnvRunner``.
        group_ids: Names of the groups; a name fixes the group's task and its sampling seeds.
        weights_version: What every runner must hold.
        recover: Brings back failed runners and sends the weights to all; called between rounds.

    Returns:
        Complete groups ordered by name as given, and the runners' metrics.

    Raises:
        NoProgressError: Not a single group is complete.
    """
    groups: dict[str, TrajectoryGroup] = {}
    metrics: list[Any] = []
    errors: list[str] = []
    pending = list(group_ids)
    for attempt in range(MAX_ROUNDS):
        if attempt:
            recover()
        reports = _sample_once(runners, pending, weights_version)
        answered: set[str] = set()
        for asked, episodes, measured, held, messages in reports:
            errors += [m for m in messages if m not in errors]
            if held != weights_version:
                continue
            metrics.append(measured)
            answered.update(asked)
            groups.update({g.group_id: g for g in group_episodes(episodes)})
        # What a runner answered without is given up: its environment failed too often, and trying again would not help.
        pending = [group_id for group_id in pending if group_id not in answered]
        if not pending:
            break
    if not groups:
        raise NoProgressError(no_progress_message(len(group_ids), runners, errors))
    return [groups[group_id] for group_id in group_ids if group_id in groups], metrics


def _sample_once(runners: EnvRunnerGroup, group_ids: Sequence[str], version: int) -> list[tuple]:
    remote = runners.num_remote_env_runners() > 0
    workers = runners.healthy_worker_ids() if remote else [0]
    shares = {worker: list(group_ids[i :: len(workers)]) for i, worker in enumerate(workers)}

    def sample(runner: Any) -> tuple:
        asked = shares.get(runner.worker_index, [])
        episodes = runner.sample(group_ids=asked, weights_version=version) if asked else []
        return asked, episodes, runner.get_metrics(), runner.get_weights_version(), runner.last_errors()

    if not workers:
        return []
    return [r for r in runners.foreach_env_runner(sample, local_env_runner=not remote) if r is not None]


def no_progress_message(asked: int, runners: EnvRunnerGroup, errors: Sequence[str]) -> str:
    """Why not a single group is complete, and what to do about it."""
    healthy = runners.num_healthy_remote_workers()
    state = (
        f"{healthy} of {runners.num_remote_env_runners()} remote env runners are healthy"
        if (runners.num_remote_env_runners())
        else "the local env runner ran"
    )
    causes = "; ".join(errors[:3]) or "no error was reported by an environment: see the env runners' logs"
    return (
        f"none of {asked} groups could be completed ({state}). Last errors: {causes}. Check the environment with a few "
        "hand-written actions, and raise generation.step_timeout_s if it is only slow."
    )
