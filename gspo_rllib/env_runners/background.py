"""Sampling in a thread beside the caller's: it goes on while the driver, or a learner, does something else.

The thread drives the engine while it has anything to sample or to load, and sleeps otherwise. New weights are loaded
between turns (``"turn"``: no turn starts until those running have ended) or at once (``"token"``: what runs is computed
again under them). Whatever fails in the thread is kept, and raised by the next call that asks for its results.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Literal

import ray
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.util import log_once

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import Engine
from gspo_rllib.engines.weights import NamedWeights, for_engine
from gspo_rllib.env_runners.group_scheduler import GroupScheduler
from gspo_rllib.env_runners.player import GroupPlayer, Slots
from gspo_rllib.env_runners.rollout_stats import RolloutStats
from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.errors import EngineError, SettingError, WeightSyncError
from gspo_rllib.sent_weights import SentWeights, fetched
from gspo_rllib.types import TrajectoryGroup

logger = logging.getLogger(__name__)

WeightUpdate = Literal["turn", "token"]

_samplers: weakref.WeakSet[BackgroundSampler] = weakref.WeakSet()


def check_free(engine: Engine) -> None:
    """Refuses the use of an engine that a thread is driving.

    Raises:
        EngineError: A background sampler of this process drives it, and is not paused.
    """
    for sampler in list(_samplers):
        if sampler.engine is engine:
            sampler.check_idle()


class BackgroundSampler:
    """Samples groups in a daemon thread of its own, which starts when there is first something to do.

    All methods are for one other thread, the caller's.

    Args:
        engine: Driven by the thread alone, except while it is paused or has nothing to do.
        pool: Used by the thread alone; closed by ``stop``.
        make_rollout: Makes the rollout on this engine and pool; called once, when the engine holds weights.
        scheduler: A scheduler without groups.
        weight_update: When new weights are loaded; ``"token"`` becomes ``"turn"`` where the engine cannot do it.
        on_groups: Called in the thread with groups that were just completed.

    Raises:
        EngineError: Another background sampler drives this engine.
    """

    engine: Engine

    def __init__(
        self,
        engine: Engine,
        pool: Slots,
        make_rollout: Callable[[], GroupPlayer],
        scheduler: GroupScheduler[SingleAgentEpisode],
        *,
        weight_update: WeightUpdate,
        on_groups: Callable[[list[TrajectoryGroup]], object],
    ) -> None:
        if any(sampler.engine is engine for sampler in _samplers):
            raise EngineError(
                "another env runner of this process already samples on the same engine; call its stop_sampling() "
                "first, or put the two into separate processes (num_env_runners >= 1)."
            )
        if weight_update == "token" and not engine.can_update_while_running:
            if log_once("gspo_rllib_weight_update"):
                logger.warning(
                    "weight_update='token': this engine cannot take up weights while requests are running (vLLM with "
                    "enable_multiprocessing=True cannot); it takes them up between turns instead, as with 'turn'."
                )
            weight_update = "turn"
        self.engine = engine
        self._pool = pool
        self._make_rollout = make_rollout
        self._rollout: GroupPlayer | None = None
        self._scheduler = scheduler
        self._weight_update = weight_update
        self._on_groups = on_groups
        self._thread: threading.Thread | None = None
        self._held_version = engine.weights_version
        self._waits_since: float | None = None  # when the thread first saw the weights that wait to be loaded
        self._changed = threading.Condition()  # guards what follows
        self._added: list[str] = []
        self._in_flight: dict[str, None] = {}
        self._offered: tuple[NamedWeights | ray.ObjectRef | SentWeights, int] | None = None
        self._any_offered = self._pausing = self._stopping = False
        self._idle = True  # the thread sleeps, and nothing it was told would wake it
        self._finished = RolloutStats()
        self._played_s = 0.0
        self._counted_until = 0.0
        self._failure: BaseException | None = None
        _samplers.add(self)

    @property
    def weights_version(self) -> int | None:
        """What the engine holds, or held last while it is loading; None before the first weights."""
        held = self.engine.weights_version
        if held is not None:
            self._held_version = held
        return self._held_version

    def add(self, group_ids: Sequence[str]) -> None:
        """Adds groups; see ``BackgroundSampling.sample_in_background``."""
        with self._changed:
            self._raise_failure()
            if len(set(group_ids)) != len(group_ids) or self._in_flight.keys() & set(group_ids):
                raise SettingError(f"group_ids: every group may be asked for once, got {list(group_ids)}.")
            if self.engine.weights_version is None and not self._any_offered:
                raise WeightSyncError(
                    "sample_in_background: this env runner has no weights yet; call offer_weights or set_weights."
                )
            self._added += group_ids
            self._in_flight.update(dict.fromkeys(group_ids))
            self._wake()

    def offer(self, named_weights: NamedWeights | ray.ObjectRef | SentWeights, version: int) -> None:
        """Lets new weights wait to be loaded; see ``BackgroundSampling.offer_weights``."""
        with self._changed:
            self._offered, self._any_offered = (named_weights, version), True
            self._wake()

    def take(self, timeout_s: float) -> tuple[RolloutStats, int]:
        """What was finished since the last call, and how many groups are not.

        Args:
            timeout_s: Longest to wait for a group, where one may still come.

        Raises:
            BaseException: Whatever ended the thread; again with every call until ``stop``.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has_news or not self._in_flight or self._idle, timeout_s)
            self._raise_failure()
            stats = RolloutStats()
            if self._has_news:
                stats, self._finished = self._finished, stats
            return stats, len(self._in_flight)

    def pause(self) -> None:
        """Returns once the engine is idle between two turns; it stays so until ``resume``."""
        with self._changed:
            self._pausing = True
            self._pool.wake()
            self._changed.wait_for(lambda: self._idle)

    def resume(self) -> None:
        """Goes on after a pause."""
        with self._changed:
            self._pausing = False
            if self._failure is None and (self._in_flight or self._offered):
                self._wake()

    def stop(self) -> list[str]:
        """Ends the thread between two steps, and abandons what is in flight.

        Returns:
            Ids of the groups that were asked for and never handed out by ``take``.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._pool.wake()
        if self._thread is not None:
            self._thread.join()
        self._pool.close()
        _samplers.discard(self)
        return [*self._finished.settled_ids, *self._in_flight]

    def check_idle(self) -> None:
        """Waits for the thread to have let go of the engine.

        Raises:
            EngineError: It will not, unless it is paused.
        """
        with self._changed:
            if not self._pausing and self._failure is None and (self._in_flight or self._offered):
                raise EngineError(
                    f"a thread of this process has {len(self._in_flight)} groups in flight on this engine. Call "
                    "pause_sampling() on the env runner that owns it, and resume_sampling() afterwards; new weights "
                    "for what is in flight go through offer_weights()."
                )
            self._changed.wait_for(lambda: self._idle)

    @property
    def _has_news(self) -> bool:
        return bool(self._finished.settled_ids or self._failure)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        if self._pausing or self._failure is not None:
            return
        self._idle = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gspo-background-sampler", daemon=True)
            self._thread.start()
        self._changed.notify_all()
        self._pool.wake()

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            try:
                while self._sleep_until_needed():
                    self._counted_until = time.perf_counter()
                    self._advance()
                    self._count_time()
            finally:
                if self._rollout is not None:
                    self._rollout.end()
        except BaseException as error:  # noqa: BLE001, raised by the next take() or add()
            self._failure = error
        finally:
            with self._changed:
                self._idle = True
                self._changed.notify_all()

    def _sleep_until_needed(self) -> bool:
        """Sleeps while there is nothing to do; False when the thread is to end."""
        with self._changed:
            # Again after every wake-up: a pause may have begun before this thread came round to the end of the last.
            while self._may_rest() and not self._stopping:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait()
            self._idle = False
            self._scheduler.add_groups(self._added)
            self._added = []
            return not self._stopping

    def _may_rest(self) -> bool:
        if self._pausing:
            # Weights offered before the pause are loaded before it begins, those offered meanwhile after its end.
            return self._idle or (self._offered is None and not self.engine.has_work())
        return not self._in_flight and self._offered is None

    def _advance(self) -> None:
        self._update_weights()
        if self._rollout is None:
            if not self._in_flight:
                return
            self._rollout = self._make_rollout()
            self._rollout.begin(self._scheduler)
        self._rollout.holds_turns = self._pausing or self._waits_since is not None
        self._rollout.advance()
        if self._scheduler.has_settled:
            stats = self._rollout.collect()
            self._on_groups(stats.groups)
            self._count_time()
            # With the engine's own seconds since the last groups, whenever those are taken.
            stats.sample_s, self._played_s = self._played_s, 0.0
            with self._changed:
                self._finished.add(stats)
                for group_id in stats.settled_ids:
                    del self._in_flight[group_id]
                self._changed.notify_all()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self._played_s += now - self._counted_until
        self._counted_until = now

    def _update_weights(self) -> None:
        """Loads the newest weights that were offered, if the engine is ready for them."""
        with self._changed:
            if self._offered is None:
                return
            self._waits_since = self._waits_since or time.perf_counter()
            if self._weight_update == "turn" and self.engine.has_work():
                return
            (named_weights, version), self._offered = self._offered, None
        if version != self.engine.weights_version:
            named_weights = fetched(named_weights)
            with registry.failing_as_itself(self.engine), registry.watched(self.engine):
                weights = for_engine(self.engine, named_weights)
                self.engine.load_weights(weights, version, keep_running=self.engine.has_work())
            with self._changed:
                self._finished.num_weight_updates += 1
                self._finished.weight_update_s += time.perf_counter() - self._waits_since
        self._waits_since = None


class BackgroundSampling:
    """The methods an env runner has for sampling in the background: they return at once, while a thread samples.

    RLlib's metrics are written by the caller's thread. The callbacks of episodes, and ``on_sample_end``, come from the
    sampling thread: never two at a time, but beside whatever the caller's thread does. What they log through their
    ``metrics_logger`` is kept apart from the caller's writing by a lock.
    """

    _sampler: BackgroundSampler | None = None

    def sample_in_background(self, group_ids: list[str]) -> None:
        """Adds groups to what is in flight; they start as slots get free. Returns at once.

        Args:
            group_ids: Names of the groups, none of which is in flight.

        Raises:
            SettingError: A group is asked for twice.
            WeightSyncError: No weights were ever set or offered.
            Exception: Whatever ended the thread since the last call.
        """
        self._acquire_sampler().add(group_ids)

    def offer_weights(self, named_weights: NamedWeights | ray.ObjectRef | SentWeights, version: int) -> None:
        """Lets new weights wait to be loaded, in place of any that still wait; returns at once.

        Groups added after this call start with these weights or newer ones.

        Args:
            named_weights: The whole Hugging Face ``state_dict``, float32, or a reference to it in Ray's object store.
                Nothing may change these arrays any more.
            version: What to call these weights; nothing is loaded if the engine already holds it.
        """
        self._acquire_sampler().offer(named_weights, version)

    def take_finished(self, timeout_s: float) -> SampleReport:
        """The groups that were completed or given up since the last call.

        Args:
            timeout_s: Longest to wait for the first of them; does not wait where none can come.

        Raises:
            Exception: Whatever ended the thread; again with every call until ``stop_sampling``.
        """
        if self._sampler is None:
            return SampleReport(weights_version=self.get_weights_version())
        stats, num_in_flight = self._sampler.take(timeout_s)
        return self._report(stats, num_in_flight=num_in_flight)

    def pause_sampling(self) -> None:
        """Returns once the engine is idle between two turns, the thread asleep, and weights offered before are loaded.

        Until ``resume_sampling`` the engine may be used otherwise, e.g. by an evaluation runner that shares it.
        """
        if self._sampler is not None:
            self._sampler.pause()

    def resume_sampling(self) -> None:
        """Goes on after ``pause_sampling``."""
        if self._sampler is not None:
            self._sampler.resume()

    def stop_sampling(self) -> list[str]:
        """Abandons everything that is in flight; ends the thread after the step it is in.

        Returns:
            Ids of the groups that were asked for and never handed out by ``take_finished``.
        """
        sampler, self._sampler = self._sampler, None
        return sampler.stop() if sampler is not None else []

    def get_weights_version(self) -> int | None:
        """The version the engine acknowledged."""
        raise NotImplementedError

    def _acquire_sampler(self) -> BackgroundSampler:
        """The sampler, made on first use."""
        raise NotImplementedError

    def _report(self, stats: RolloutStats, *, num_in_flight: int) -> SampleReport:
        """Logs what was finished, if anything was, and tells the driver."""
        raise NotImplementedError
