"""RLlib's callbacks of an env runner, called in the thread that samples."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from gspo_rllib.env_runners.player import Slots
from gspo_rllib.env_runners.trajectory import EpisodeObserver


class Callbacks:
    """Calls the callbacks that the config of an env runner names.

    Args:
        env_runner: Handed to every callback.
        lock: Held whenever a callback logs a metric.
    """

    def __init__(self, env_runner: EnvRunner, lock: AbstractContextManager[Any]) -> None:
        self._env_runner = env_runner
        self._logger = LockedLogger(env_runner.metrics, lock)
        self._objects = [callback() for callback in force_list(env_runner.config.callbacks_class)]

    def make(self, event: str, **kwargs: Any) -> None:
        """Calls one callback, e.g. ``"on_sample_end"``, with the arguments that RLlib documents for it."""
        make_callback(
            event,
            callbacks_objects=self._objects,
            callbacks_functions=getattr(self._env_runner.config, f"callbacks_{event}"),
            kwargs={"env_runner": self._env_runner, "metrics_logger": self._logger, **kwargs},
        )

    def observer(self, pool: Slots) -> EpisodeObserver:
        """The observer that calls the callbacks of episodes played in this pool."""
        return functools.partial(self._on_episode_event, pool)

    def _on_episode_event(self, pool: Slots, event: str, episode: SingleAgentEpisode, slot: int) -> None:
        kwargs = {"episode": episode, "env": pool.env(slot), "rl_module": None, "env_index": slot}
        if event == "on_episode_end":
            kwargs["prev_episode_chunks"] = []
        self.make(event, **kwargs)


class LockedLogger:
    """RLlib's metrics logger, which is not thread-safe, for the use of callbacks from another thread.

    Args:
        logger: The logger that every call is passed on to.
        lock: Held during every call.
    """

    def __init__(self, logger: MetricsLogger, lock: AbstractContextManager[Any]) -> None:
        self._logger = logger
        self._lock = lock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._logger, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return found(*args, **kwargs)

        return call
