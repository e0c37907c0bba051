"""The learners of a run, in processes of their own: rebuilt when one is lost, with every update they had made.

RLlib takes a learner in which anything is raised, or whose process ends, out of service for good, and waits for one
that stands still for as long as that lasts. Here every call to the learners watches them. Where one is lost, all of
them are ended and built again, the state of the last commit is set, the updates since are repeated with the batches
they were made with, and the call is made once more: who called sees neither the loss nor another number.

A commit is what each learner holds of the state (weights, optimiser, counters), array by array in Ray's object store,
on this process's machine and owned by it, so that it outlives the learners and their machines.

Learners that share one copy of the model (``learners(sharding=...)``) answer together or not at all: whoever asks the
first of them has all of them asked, and gets the first one's answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.rllib.utils.actor_manager import RemoteCallResults, ResultOrError

from gspo_rllib import checkpoints
from gspo_rllib.checkpoints.components import restore_component
from gspo_rllib.driver.learner_calls import GuardedCall, GuardedStream, Raised, own_copy, raised_where, set_kept
from gspo_rllib.driver.learner_room import await_room, start_again
from gspo_rllib.driver.learner_watch import LearnerLost, LearnerWatch, brought_home
from gspo_rllib.driver.processes import end_process, stands_still_anywhere
from gspo_rllib.driver.setup_state import KeepsWeightsOutOfTheDriver
from gspo_rllib.driver.watched_manager import WatchedManager
from gspo_rllib.errors import GSPOError, LearnersLostError, described, own_error
from gspo_rllib.learners.sharding_settings import shards

logger = logging.getLogger(__name__)

MOST_REPEATED = 100
"""Most updates that are kept for a run whose only commits are its checkpoints."""

_UPDATE = "update"  # the method, as RLlib calls it by name
_ATTEMPTS = 3  # at building the learners again before a run ends

_T = TypeVar("_T")


class LearnerTeam(KeepsWeightsOutOfTheDriver):
    """RLlib's group of learners, which outlives its members.

    A learner in this process cannot be rebuilt: what it raises in an update leaves it with half of one, so the update
    ends in ``LearnersLostError`` and so does whoever wants to save it.

    Args:
        kwargs: RLlib's: ``config``, ``module_spec``, ``placement_group``. ``learner_commit_every`` of the config is how
            many updates a commit is apart; None makes the last checkpoint the only one.

    Attributes:
        num_rebuilds: How often the learners were built again.
        shares_model: Whether they have one copy of the model between them.
        num_updates_repeated: How many updates were made once more for that.
        last_checkpoint: Where the state was last saved, or restored from; None if nowhere.

    Raises:
        LearnersLostError: They could not be built.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._built_with = kwargs
        self.num_rebuilds = self.num_updates_repeated = 0
        self.last_checkpoint: Path | None = None
        self._commit: list[list[ray.ObjectRef]] | Path | None = None
        self._since: list[list[dict[str, Any]]] = []
        self._manager: WatchedManager | None = None
        self._lost: str | None = None
        self._is_healing = False
        self.shares_model = shards(kwargs["config"])
        self._watch = LearnerWatch(kwargs["config"].env_runner_health_probe_timeout_s)
        self._build()
        self._every: int | None = getattr(self.config, "learner_commit_every", None)

    def update(self, **kwargs: Any) -> Any:
        """RLlib's.

        Raises:
            LearnersLostError: It failed twice, or in this process.
            GSPOError: A learner refused the batch, or its settings.
        """
        if not self.is_local:
            return super().update(**kwargs)
        self.check_whole()
        try:
            return super().update(**kwargs)
        except GSPOError:
            raise
        except Exception as error:
            self._lost = f"the learner raised {described(error, 300)} ({raised_where(error)})"
            said = self._words("It is in this process and may have made half of the update.")
            raise LearnersLostError(said) from error

    def set_state(self, state: dict[str, Any]) -> None:
        """RLlib's, which does not look whether it went well.

        Raises:
            Exception: Whatever a learner raised.
        """
        if "learner" not in state:
            return
        if {"rl_module", "optimizer"} <= state["learner"].keys():
            self.forget()
        if self.is_local:
            super().set_state(state)
            return
        ref = ray.put(state["learner"])
        for result in self.foreach_learner(lambda learner: learner.set_state(own_copy(ray.get(ref)))):
            if not result.ok:
                raise result.get()
        self.forget()

    def shutdown(self) -> None:
        """RLlib's, which would wait for ever for a learner that cannot answer."""
        if self.is_local or not self._workers:
            super().shutdown()
            return
        if self._lost is None and not any(map(stands_still_anywhere, self._workers)):
            super().shutdown()
            return
        self._end()
        self._is_shut_down = True

    def check_whole(self) -> None:
        """Refuses to go on with a learner of this process that failed within an update.

        Raises:
            LearnersLostError: It did, and no state was set since.
        """
        if self.is_local and self._lost is not None:
            raise LearnersLostError(self._words("Its weights may be those of half an update, so they are not used."))

    def forget(self) -> None:
        """The state is about to become another one, all of it: what was made before is not to be made again."""
        self._commit = None
        self._since.clear()
        if self.is_local:
            self._lost = None
        elif self._lost is not None and not self._is_healing:
            self._rebuild(bare=True)

    def commit(self) -> None:
        """From now on learners that are lost are rebuilt as they are now; not before the next checkpoint with None.

        Raises:
            LearnersLostError: They were lost twice.
        """
        self.is_set_up = True
        if self.is_local or self._every is None:
            self._commit = None
            self._since.clear()
            return
        self._commit = self.stream(lambda learner: learner.kept_state(), at_home=True)
        self._since.clear()

    def saved(self, checkpoint: Path) -> None:
        """Takes notice of a checkpoint that holds the state as it is now.

        Args:
            checkpoint: The folder it is in.
        """
        self.last_checkpoint = checkpoint
        if self._every is None and not self.is_local:
            self._commit = checkpoint
            self._since.clear()

    def keep(self, function: Callable[[Any], tuple[_T, Any]]) -> tuple[_T, ray.ObjectRef]:
        """Calls a function with the first remote learner.

        Args:
            function: Returns a small value and a large one.

        Returns:
            The small value, and the large one in the object store; this process owns it.

        Raises:
            LearnersLostError: The learners were lost twice.
        """

        def ask() -> tuple[Any, ray.ObjectRef]:
            call = GuardedCall(function, num_values=2)
            small, large = self._workers[0].apply.options(num_returns=2).remote(func=call)
            return self._watch.wait({small: 0}, self._workers)[0], large

        answer, ref = self._healed(ask)
        if isinstance(answer, Raised):
            raise answer.error
        return answer, ref

    def stream(self, function: Callable[[Any], Iterator[Any]], *, at_home: bool = False) -> list[list[ray.ObjectRef]]:
        """Calls a generator with every remote learner.

        Args:
            function: Yields values, no two of which need be in memory at once.
            at_home: Whether the values outlive the learners' machines too: they are brought to this one.

        Returns:
            What each yielded, in the object store; this process owns it.

        Raises:
            LearnersLostError: The learners were lost twice.
        """

        def ask() -> Raised | list[list[ray.ObjectRef]]:
            streams = [worker.stream.remote(GuardedStream(function)) for worker in self._workers]
            # A learner does one thing after the other.
            ends = {w.apply.remote(func=GuardedStream.ended_with): number for number, w in enumerate(self._workers)}
            answers = self._watch.wait(ends, self._workers, together=True)
            raised = [answer for answer in answers.values() if isinstance(answer, Raised)]
            if raised:
                return raised[0]
            values = [list(of) for of in streams]
            return [brought_home(*of) for of in zip(self._workers, values, strict=True)] if at_home else values

        answer = self._healed(ask)
        if isinstance(answer, Raised):
            raise answer.error
        return answer

    def ask(
        self, function: Any, kwargs: Mapping[str, Any] | list[dict[str, Any]] | None, numbers: list[int]
    ) -> RemoteCallResults:
        """Calls remote learners and waits for all of them.

        Args:
            function: Called with each; or the name of a method.
            kwargs: Further arguments, the same for all or one dict for each.
            numbers: Which learners.

        Returns:
            Their answers in the order of ``numbers``; what one raised is an error, and costs nobody its life.

        Raises:
            LearnersLostError: They were lost twice.
            GSPOError: A learner refused an update.
        """
        is_update = function == _UPDATE
        asked = list(range(len(self._workers))) if self.shares_model else numbers
        each = kwargs if isinstance(kwargs, list) else [dict(kwargs or {})] * len(asked)
        call = GuardedCall(function)

        def ask() -> dict[int, Any]:
            refs = {
                self._workers[number].apply.remote(func=call, **more): number
                for number, more in zip(asked, each, strict=True)
            }
            return self._watch.wait(refs, self._workers, is_update=is_update, together=self.shares_model)

        if is_update and self._commit is None and not self._is_healing:
            self.commit()
        answers = self._healed(ask)
        if is_update and not self._is_healing:
            self._log(each)
        results = RemoteCallResults()
        for number in numbers:
            answer = answers[number]
            error = answer.error if isinstance(answer, Raised) else None
            results.add_result(number, ResultOrError(result=None if error else answer, error=error), None)
        return results

    def _log(self, each: list[dict[str, Any]]) -> None:
        """Keeps what an update was made with, or commits."""
        if self._commit is None:
            return  # there is nothing that it could be repeated from
        self._since.append(each)
        if self._every is None and len(self._since) > MOST_REPEATED:
            logger.warning(
                "%d updates since checkpoint %s: learners that are lost cannot be rebuilt before the next checkpoint. "
                "Save more often, or set training.learner_commit_every.",
                len(self._since),
                self._commit,
            )
            self.forget()
        elif self._every is not None and len(self._since) >= self._every:
            try:
                self.commit()
            except Exception as error:  # noqa: BLE001, the update was made; the older commit is as good as before
                logger.warning("the learners' state could not be kept (%s); the next update tries again.", error)

    def _healed(self, ask: Callable[[], _T]) -> _T:
        """What the learners answer; rebuilds them where they are lost, once."""
        if self._is_healing:
            return ask()
        failures: list[str] = []
        while len(failures) < 2:
            if self._lost is not None:
                self._rebuild()
            try:
                return ask()
            except LearnerLost as lost:
                self._lost = str(lost)
                failures.append(str(lost))
            except GSPOError:
                # A refusal would come again. But an update may have begun.
                self._lost = "a learner refused an update"
                raise
            except BaseException:
                self._lost = None if self._commit is None else "a call of the learners was interrupted"
                raise
        raise LearnersLostError(self._words(f"It is the second time at the same step; the first: {failures[0]}."))

    def _build(self) -> None:
        try:
            self._make_learners()
        except (RayError, RuntimeError) as error:
            own = own_error(error)
            if own is not None:
                raise own from None
            raise LearnersLostError(f"the learners could not be built: {described(error)}") from error
        self._watch.start_over()
        if self.is_remote:
            if self._manager is None:
                self._manager = WatchedManager(self)
            self._manager.adopt(self._workers)
            self._worker_manager = self._manager

    def _make_learners(self) -> None:
        executor = getattr(self, "_backend_executor", None)
        if executor is not None and executor.is_started():
            self._workers = start_again(executor, self._built_with.get("placement_group"))
        else:
            super().__init__(**self._built_with)

    def _rebuild(self, *, bare: bool = False) -> None:
        """Builds all learners again.

        Args:
            bare: Leaves them as they are built, for a state that is to be set.

        Raises:
            LearnersLostError: There is nothing to restore them from, or they were lost again, and again.
        """
        if self._commit is None and not bare:
            raise LearnersLostError(self._words("Nothing was kept that they could be rebuilt from."))
        started, cause = time.monotonic(), self._lost
        logger.warning("%s; the learners are rebuilt.", cause)
        self._is_healing = has_room = True
        try:
            for attempt in range(_ATTEMPTS):
                try:
                    self._end()
                    has_room = await_room(self.config, self._built_with.get("placement_group"))
                    if not has_room:
                        raise LearnerLost("no node has room for the learners")
                    self._build()
                    if not bare:
                        self._restore()
                    break
                except (LearnerLost, GSPOError, RayError) as error:
                    self._lost = str(error)
                    if attempt == _ATTEMPTS - 1 or not has_room:
                        raise LearnersLostError(self._words(f"They could not be rebuilt after: {cause}.")) from error
        finally:
            self._is_healing = False
        self._lost = None
        self.num_rebuilds += 1
        took, repeated = time.monotonic() - started, 0 if bare else len(self._since)
        logger.warning("the learners were rebuilt in %.0f s, and repeated %d updates.", took, repeated)

    def _restore(self) -> None:
        """Sets the commit's state and repeats the updates since."""
        if isinstance(self._commit, Path):
            folder = checkpoints.verify(self._commit) / "learner_group" / "learner"
            restore_component(self._manager, folder)
        else:
            kept = self._commit
            assert kept is not None  # else they are not rebuilt
            # Where all hold the same, the first one's arrays are everybody's.
            each = [{"small": of[:1], "arrays": of[1:] or kept[0][1:]} for of in kept]
            for result in self.ask(set_kept, each, list(range(len(each)))):
                if not result.ok:
                    raise LearnersLostError(f"what was kept cannot be restored ({described(result.get())})")
        for each in self._since:
            self.ask(_UPDATE, each, list(range(len(each))))
            self.num_updates_repeated += 1

    def _end(self) -> None:
        """Ends every learner's process, however it stands, and waits until it is gone: a GPU has no room for two."""
        for actor in self._workers or ():
            end_process(actor)
        executor = getattr(self, "_backend_executor", None)
        if executor is not None and executor.is_started():
            executor.worker_group.shutdown(patience_s=0)

    def _words(self, why: str) -> str:
        where = f"The last checkpoint is {self.last_checkpoint}." if self.last_checkpoint else "There is no checkpoint."
        return f"{self._lost}. {why} {where}"
