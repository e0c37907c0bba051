"""What plays groups on one engine, environments or agents: turns are submitted or held, and the engine advances."""

from __future__ import annotations

import time

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import Engine, Generation, GenerationRequest
from gspo_rllib.env_pool.calls import EnvFailure
from gspo_rllib.env_runners.group_scheduler import GroupScheduler
from gspo_rllib.env_runners.rollout_stats import RolloutStats
from gspo_rllib.errors import WeightSyncError


class EnginePlayer:
    """The part of a ``player.GroupPlayer`` that has to do with the engine.

    Args:
        engine: Samples the turns; nothing else may use it between ``begin`` and ``end``, except while turns are held
            and it is idle.

    Attributes:
        holds_turns: While True no new turn reaches the engine, so that it becomes idle once those that run have ended.
            The first ``advance`` after it is False submits the turns held meanwhile.

    Raises:
        WeightSyncError: The engine holds no weights yet.
        EngineError: From ``run`` and ``advance``: the engine failed, or refused a request.
    """

    def __init__(self, engine: Engine) -> None:
        if engine.weights_version is None:
            raise WeightSyncError("the engine holds no weights yet: send some before sampling.")
        self._engine = engine
        self.holds_turns = False
        self._held: dict[str, GenerationRequest] = {}
        self._scheduler: GroupScheduler[SingleAgentEpisode]
        self._stats = RolloutStats()

    def run(self, scheduler: GroupScheduler[SingleAgentEpisode]) -> RolloutStats:
        """Plays until every group is complete or given up.

        Args:
            scheduler: Holds the groups to play.

        Returns:
            The complete groups, in the order they were asked for, with the counts and times of playing them.
        """
        self.begin(scheduler)
        try:
            while self.advance():
                pass
        finally:
            self.end()
        return self.collect()

    def begin(self, scheduler: GroupScheduler[SingleAgentEpisode]) -> None:
        """From now on ``advance`` plays the groups of this scheduler, those added to it later included."""
        self._scheduler = scheduler

    def advance(self) -> bool:
        """One step of the engine and of what plays; returns whether anything is left to play."""
        raise NotImplementedError

    def collect(self) -> RolloutStats:
        """What happened since the last call, with the groups completed since; it is forgotten here."""
        stats, self._stats = self._stats, RolloutStats()
        stats.add_settled(self._scheduler.take_settled())
        return stats

    def end(self) -> None:
        """Abandons every trajectory that is still being played."""
        raise NotImplementedError

    def _step_engine(self) -> list[Generation]:
        started = time.perf_counter()
        try:
            with registry.watched(self._engine):
                generations = self._engine.step()
        except Exception:
            with registry.failing_as_itself(self._engine):
                raise
        self._stats.engine_s += time.perf_counter() - started
        self._stats.engine_steps += 1
        return generations

    def _submit_or_hold(self, request: GenerationRequest) -> None:
        if self.holds_turns:
            self._held[request.request_id] = request
        else:
            self._submit(request)

    def _submit(self, request: GenerationRequest) -> None:
        # Environments' turns and agents' calls are made legal before they get here. What the engine refuses all the
        # same is nobody's fault but the engine's or ours, and no other task would help: it ends the run, in either.
        try:
            self._engine.submit(request)
        except Exception:
            with registry.failing_as_itself(self._engine):
                raise

    def _release_turns(self) -> None:
        while self._held and not self.holds_turns:
            request_id = next(iter(self._held))
            self._submit(self._held.pop(request_id))

    def _withdraw(self, request_id: str) -> None:
        """Takes back a request that is held or being sampled."""
        if self._held.pop(request_id, None) is None:
            self._engine.abort([request_id])

    def _counted(self, generation: Generation) -> EnvFailure | None:
        """Counts a finished turn; one that nothing can be learned from is a failure of the engine's instead."""
        logp = np.asarray(generation.logp, dtype=np.float32)
        if not len(logp) == len(generation.token_ids) > 0 or not np.isfinite(logp).all():
            message = (
                f"the engine returned {len(generation.token_ids)} tokens with log-probabilities {logp[:8]} for weights "
                f"version {self._engine.weights_version}; every one must be finite. Its weights may hold NaN."
            )
            return EnvFailure("engine", message)
        self._stats.num_turns_mixed += generation.token_versions is not None
        self._stats.tokens_sampled += len(generation.token_ids)
        self._stats.tokens_cached += generation.num_cached_tokens
        return None
