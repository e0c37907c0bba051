"""Ray AIR's callback for Weights & Biases, which waits until all is written, and says what failed.

Ray kills the process that logs a run once ``wandb.finish`` has returned, whether or not W&B's own process, a child of
it, has ended; and nobody reads what it ended with.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import ray
from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor
from ray.exceptions import GetTimeoutError

MODE = "WANDB_MODE"
"""Of the environment; Ray asks for a key unless it says that there is no server."""


class RunLogger(_WandbLoggingActor):
    """The process that logs one run, until W&B's own process has ended and its file is whole."""

    def run(self) -> None:
        """Logs what the driver sends, to the end of the run, or until W&B refuses it."""
        import wandb

        try:
            super().run()
        finally:
            wandb.teardown()  # waits


class WandbRuns(WandbLoggerCallback):
    """Ray AIR's callback, which says what a logging process failed with."""

    _logger_actor_cls = RunLogger

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Looks whether there is a key, unless ``mode`` says here or in the environment that none is needed."""
        before, own = os.environ.get(MODE), self.kwargs.get("mode")
        if own is not None:
            os.environ[MODE] = own
        try:
            super().setup(*arguments, **info)
        finally:
            os.environ.pop(MODE, None)
            if before is not None:
                os.environ[MODE] = before

    def _cleanup_logging_actor(self, trial: Any) -> None:
        try:
            ray.get(self._trial_logging_futures[trial], timeout=0)
        except Exception as error:  # noqa: BLE001 - wandb's, Ray's, or a time-out: said, and no end of training
            why = "it took longer than upload_timeout" if isinstance(error, GetTimeoutError) else _last_line(error)
            print(f"wandb has not all of {trial}: {why}", file=sys.stderr, flush=True)
        super()._cleanup_logging_actor(trial)


def _last_line(error: Exception) -> str:
    """Of what Ray says the remote end of, which is a page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
