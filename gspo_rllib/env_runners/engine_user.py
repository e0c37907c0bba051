"""What an env runner does with its engine apart from sampling: weights go in, and what it samples with them is shown.

Whatever the engine fails with stays an engine's failure: it names the engine and the model, says what serves the model
instead where that was tried, and is never taken for the environment's or the process's.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import ray

from gspo_rllib.engines import registry
from gspo_rllib.engines.proof import Conversation, EngineSample, converse
from gspo_rllib.engines.protocol import Engine, EngineSpec
from gspo_rllib.engines.trial import with_alternatives
from gspo_rllib.engines.weights import NamedWeights, for_engine
from gspo_rllib.env_runners.background import check_free
from gspo_rllib.errors import EngineError, EngineLostError, WeightSyncError

logger = logging.getLogger("gspo_rllib")


class EngineUser:
    """The methods an env runner has for its engine; comes before RLlib's ``EnvRunner`` among the bases."""

    worker_index: int | None
    _engine: Engine | None
    _engine_failure: EngineError | WeightSyncError | None = None

    def converse(self, conversation: Conversation) -> EngineSample | None:
        """What the engine samples with its weights; None if that was compared with the learner's policy before.

        Args:
            conversation: What it is asked.

        Raises:
            EngineError: The engine failed, or a thread is sampling on it.
        """
        engine = self._acquire_engine()
        spec = registry.spec_of(engine)
        if spec is None or registry.is_proven(engine):
            return None
        check_free(engine)
        with first_use(engine), registry.watched(engine):
            return converse(engine, spec, conversation)

    def rest_engine(self) -> None:
        """Has the engine, if there is one, give its memory back until weights are loaded again.

        Raises:
            EngineError: The engine failed, or a thread is sampling on it.
        """
        if self._engine is not None:
            check_free(self._engine)
            with registry.failing_as_itself(self._engine), registry.watched(self._engine):
                self._engine.sleep()  # type: ignore[attr-defined]

    def mark_proven(self) -> None:
        """Notes that what ``converse`` returned was found to be the learner's policy."""
        registry.mark_proven(self._acquire_engine())

    def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs a function of this runner, as RLlib does; but an engine's failure is raised, and ends no process.

        RLlib restarts a runner that raises. An engine that cannot serve the model would fail again in every one. One
        whose own process was killed is lost, and the runner's process ends with it, to be replaced.
        """
        failures: list[EngineError | WeightSyncError] = []

        def noting_failures(runner: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return func(runner, *args, **kwargs)
            except (EngineError, WeightSyncError) as error:
                failures.append(error)

        result = super().apply(noting_failures, *args, **kwargs)  # type: ignore[misc]
        if failures:
            if isinstance(failures[0], EngineLostError) and self._is_replaceable():
                end_process(failures[0])
            self._engine_failure = failures[0]
            raise failures[0]
        return result

    def raise_engine_failure(self) -> None:
        """Raises what the engine failed with in a call that RLlib made, and passed over.

        Raises:
            EngineError: It failed, or refused.
            WeightSyncError: It does not hold the weights it was sent.
        """
        if self._engine_failure is not None:
            raise self._engine_failure

    def _watch_engine(self, engine: Engine, timeout_s: float | None) -> None:
        """Has the process end once a call of the engine takes too long; that of the driver only says so.

        Args:
            engine: The engine.
            timeout_s: How long one call may take; None for ever.
        """
        if timeout_s is None:
            return
        is_replaceable = bool(self.worker_index) and ray.get_runtime_context().get_actor_id() is not None

        def on_late(taken_s: float) -> None:
            error = EngineLostError(
                f"the engine has not answered for {taken_s:.0f} s (generation.engine_timeout_s is {timeout_s:g}); what "
                "its threads are doing stands above."
            )
            if sys.__stderr__ is not None:
                faulthandler.dump_traceback(sys.__stderr__)
            if is_replaceable:
                end_process(error)
            logger.error("%s It is waited for: this process cannot be replaced.", error)

        registry.watch(engine, timeout_s, on_late)

    def _is_replaceable(self) -> bool:
        """Whether another process can do what this one cannot: it is an actor, and the engine was there before."""
        context = ray.get_runtime_context()
        if context.get_actor_id() is None or not self.worker_index:
            return False
        return self._engine is not None or context.was_current_actor_reconstructed

    def _acquire_engine(self) -> Engine:
        """The engine, made on first use."""
        raise NotImplementedError


def end_process(error: EngineLostError) -> NoReturn:
    """Ends this process, which says why in its log; Ray restarts an env runner."""
    logger.error("%s This env runner ends with it, and is replaced.", error)
    logging.shutdown()
    os._exit(1)


def acquire(spec: EngineSpec, *, otherwise: str | None = None) -> Engine:
    """``registry.acquire``; where the engine cannot be built, the message says which other one serves the model.

    Args:
        spec: How the engine is built.
        otherwise: Engine that is taken then; None to raise.

    Raises:
        EngineError: The engine cannot be built for this model, and neither can the other.
    """
    if otherwise is None:
        return registry.acquire(spec, explain=with_alternatives)
    try:
        return registry.acquire(spec)
    except EngineLostError:
        raise
    except EngineError as error:
        logger.warning("engine %r is taken in place of %r: %s", otherwise, spec.engine, error)
        return registry.acquire(dataclasses.replace(spec, engine=otherwise), explain=with_alternatives)


def load(engine: Engine, named_weights: NamedWeights, version: int) -> None:
    """Loads weights into an idle engine; see ``Engine.load_weights``."""
    with first_use(engine), registry.watched(engine):
        engine.load_weights(for_engine(engine, named_weights), version)


@contextmanager
def first_use(engine: Engine) -> Iterator[None]:
    """Inside the block a failure of an engine that was never proven says which other one serves the model.

    Raises:
        EngineError: It failed, or refused.
        WeightSyncError: It does not hold the weights it was sent.
    """
    try:
        with registry.failing_as_itself(engine):
            yield
    except (EngineError, WeightSyncError) as error:
        spec = registry.spec_of(engine)
        if spec is None or registry.is_proven(engine) or isinstance(error, EngineLostError):
            raise
        raise type(error)(with_alternatives(str(error), spec)) from error
