"""The driver's side of sampling: deals groups to env runners, and makes sure that each samples with the right weights.

A runner samples only with the weights version it is asked for. One that was restarted behind RLlib's back holds another
and returns nothing; it is sent the weights and asked again. Groups of a runner that died are dealt to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib.errors import NoProgressError
from gspo_rllib.types import TrajectoryGroup, group_episodes

MAX_ROUNDS = 3
"""Times the groups of lost or out-of-date runners are dealt again before the iteration goes on with what there is."""


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


def _sample_once(runners: EnvRunnerGroup, group_ids: Sequence[str], version: int) -> list[tuple[Any, ...]]:
    remote = runners.num_remote_env_runners() > 0
    workers = runners.healthy_worker_ids() if remote else [0]
    shares = {worker: list(group_ids[i :: len(workers)]) for i, worker in enumerate(workers)}

    def sample(runner: Any) -> tuple[Any, ...]:
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
