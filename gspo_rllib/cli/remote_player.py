"""An env runner on a node of a cluster, for commands that let a policy play there instead of in their own process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.policy_source import opened_runner

if TYPE_CHECKING:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    from gspo_rllib.algorithms import GSPOConfig
    from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner


class RemotePlayer:
    """What the commands use of an env runner, played by an actor.

    Args:
        actor: A ``_Player`` as an actor.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @property
    def num_tasks(self) -> int | None:
        """Tasks of the environment, where it counts them."""
        import ray

        count: int | None = ray.get(self._actor.num_tasks.remote())
        return count

    def sample(self, *, num_episodes: int) -> list[SingleAgentEpisode]:
        """Plays so many trajectories to their end."""
        import ray

        episodes: list[SingleAgentEpisode] = ray.get(self._actor.sample.remote(num_episodes))
        return episodes

    def last_errors(self) -> list[str]:
        """See ``LanguageEnvRunner.last_errors``."""
        import ray

        errors: list[str] = ray.get(self._actor.last_errors.remote())
        return errors


class _Player:
    """The actor's side: opens the env runner as a command would in its own process."""

    def __init__(self, config: GSPOConfig, settings: dict[str, Any]) -> None:
        self._open = contextlib.ExitStack()
        self._runner = self._open.enter_context(opened_runner(config, **settings))

    def num_tasks(self) -> int | None:
        return self._runner.num_tasks

    def sample(self, num_episodes: int) -> list[SingleAgentEpisode]:
        episodes: list[SingleAgentEpisode] = self._runner.sample(num_episodes=num_episodes)
        return episodes

    def last_errors(self) -> list[str]:
        return self._runner.last_errors()

    def close(self) -> None:
        self._open.close()


@contextlib.contextmanager
def remote_player(config: GSPOConfig, *, address: str, **settings: Any) -> Iterator[RemotePlayer]:
    """An env runner on the cluster, with the CPUs and GPUs that the config gives one.

    Args:
        config: What ``policy_config`` returned.
        address: The cluster (``address_of``).
        settings: Further arguments of ``opened_runner``.

    Raises:
        SettingError: A node could not take part, or none has room for the env runner.
    """
    import ray

    from gspo_rllib.cli.cluster import ray_session
    from gspo_rllib.cli.preflight import preflight
    from gspo_rllib.cli.quiet import hush

    hush(config)
    # One runner, wherever the policy was trained: what that took is no matter now.
    config.env_runners(num_env_runners=1).learners(num_learners=0, num_gpus_per_learner=0, sharding="none")
    config.evaluation(evaluation_interval=None, evaluation_num_env_runners=0)
    with ray_session(1, address=address):
        preflight(config, storage=None, always=True)
        player = ray.remote(_Player).options(
            num_cpus=config.num_cpus_per_env_runner,
            num_gpus=config.num_gpus_per_env_runner,
            resources=config.custom_resources_per_env_runner or None,
        )
        actor = player.remote(config, settings)
        try:
            yield RemotePlayer(actor)
            ray.get(actor.close.remote())
        finally:
            ray.kill(actor)


def opened_player(
    config: GSPOConfig, *, address: str | None, **settings: Any
) -> AbstractContextManager[LanguageEnvRunner | RemotePlayer]:
    """What plays: an env runner in this process, or on the cluster that the command names.

    Args:
        config: What ``policy_config`` returned.
        address: What ``address_of`` returned.
        settings: As for ``opened_runner``.

    Raises:
        SettingError: A node of the cluster could not take part.
    """
    if address is None:
        return opened_runner(config, **settings)
    return remote_player(config, address=address, **settings)
