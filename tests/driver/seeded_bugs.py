"""Faults of the driver itself, one edit of its source each, which the tests of groups' life must see."""
# ruff: noqa: E501 -- a table is read row by row

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

import pytest

from gspo_rllib.algorithms.policy_gradient import algorithm, outliving_learners
from gspo_rllib.driver import admission, fixed_lag, fleet, lockstep, stream


@dataclass(frozen=True)
class Bug:
    """A fault of the driver itself: a method of its classes, with one piece of its source in another form."""

    words: str
    where: Any
    method: str
    source: str
    broken: str

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        """Has the class run the broken source in the method's place."""
        found = inspect.getattr_static(self.where, self.method)
        function = found.fget if isinstance(found, property) else found
        text = textwrap.dedent(inspect.getsource(function))
        assert text.count(self.source) == 1, f"{self.method} no longer holds {self.source!r} once"
        # Within a function that has the name, so that super() finds its class.
        broken = textwrap.indent(text.replace(self.source, self.broken), "    ")
        made: dict[str, Any] = dict(function.__globals__)
        exec(f"from __future__ import annotations\ndef made(__class__):\n{broken}\n    return {self.method}", made)
        patch.setattr(self.where, self.method, made["made"](self.where))


POLICY_GRADIENT = algorithm.PolicyGradient
BUGS = [
    Bug("weights are not sent after an update", stream.GroupStream, "advance", "weights.offer(", "id, ("),
    Bug("a restored state is synced with nobody", POLICY_GRADIENT, "set_state", "self._sync_weights()", "self._source.start(self._weights)"),
    Bug("a result of a runner that was given up is accepted", stream._Group, "is_in_flight_on", "and self.worker == worker", ""),
    Bug("a result that comes twice is accepted", stream.GroupStream, "_keep", "group = self._groups.get(finished.group_id)\n        if group is not None and group.is_in_flight_on(worker)", "group = self._groups.setdefault(finished.group_id, _Group(finished.group_id, 0))\n        if True"),
    Bug("a restarted process is taken for the one before", stream.GroupStream, "_collect", "self._admission.processes.get(worker) != process", "False"),
    Bug("groups of a lost runner are given up", stream._Group, "lose_runner", "GroupState.DRAWN", "GroupState.GIVEN_UP"),
    Bug("groups of a lost runner are forgotten", stream._Group, "lose_runner", "self.state = GroupState.DRAWN", "pass"),
    Bug("the bound is one version too wide", stream.GroupStream, "_choose", "self._max_staleness", "self._max_staleness - 1"),
    Bug("no place is kept for groups that grow old", stream.GroupStream, "_may_take", "return False", "pass"),
    Bug("one batch too many is drawn", stream.GroupStream, "_dispatch", "self._max_staleness * self._per_iteration", "(self._max_staleness + 1) * self._per_iteration"),
    Bug("what an interruption finds chosen is dropped", stream.GroupStream, "take", "self._groups = {group.group_id: group for group in taken} | self._groups", "pass"),
    Bug("an update on other groups makes nothing too old", stream.GroupStream, "overtake", "group.overtaken = True", "pass"),
    Bug("an engine is admitted without a look", admission.Admission, "settle", "weights.prove(receipt)", "False"),
    Bug("the counter of groups is not restored", POLICY_GRADIENT, "set_state", "state[NEXT_GROUP], list(", "self._next_group, list("),
    Bug("unfinished groups are not saved", POLICY_GRADIENT, "get_state", "*self._source.unfinished, ", ""),
    Bug("what was sampled ahead is sampled again", POLICY_GRADIENT, "set_state", "if group_id not in known", ""),
    Bug("what is in flight is not taken back before a restore", POLICY_GRADIENT, "_stop_sampling", "self._source.stop() + self._unfinished", "self._unfinished"),
    Bug("groups of a failed update are not put back", outliving_learners.OutlivesLearners, "_update_learners", "self._source.put_back()", "pass"),
    Bug("groups of a failed update are dropped", outliving_learners.OutlivesLearners, "_update_learners", "self._taken + self._unfinished", "self._unfinished"),
    Bug("groups of a failed iteration are dropped", POLICY_GRADIENT, "_take", "self._taken + self._unfinished", "self._unfinished"),
    Bug("a batch is put back behind the others", fixed_lag.FixedLag, "put_back", "appendleft", "append"),
    Bug("two batches are swapped", fixed_lag.FixedLag, "_fill", "self._batches.append(", "self._batches.appendleft("),
    Bug("the lag is one batch too long", fixed_lag.FixedLag, "_fill", "<= self._lag", "<= self._lag + 1"),
    Bug("a lost part of a batch is sampled by newer weights", fixed_lag.FixedLag, "_send", "self._weights_of(batch).loading", "self._weights.loading"),
    Bug("batches of older weights are saved by name", fixed_lag.FixedLag, "get_state", "!= self._weights.version and waits", "!= self._weights.version and False"),
    Bug("a batch is in the order of its answers", fixed_lag._Batch, "complete", "self.groups[group_id] for group_id in self.group_ids if group_id in self.groups", "*self.groups.values()"),
    Bug("a report of other weights is accepted", lockstep.Lockstep, "take", "report.weights_version == self._weights.version", "True"),
    Bug("an iteration is in the order of its answers", lockstep.Lockstep, "take", "groups[group_id] for group_id in group_ids if group_id in groups", "*groups.values()"),
    Bug("an interrupted iteration forgets its groups", lockstep.Lockstep, "take", "[*self._open, ", "["),
    Bug("runners that come back are given no weights", lockstep.Lockstep, "readmit", "self._weights.push(self._runners)", "pass"),
    Bug("a stopped runner is waited for", fleet.Fleet, "_end_stopped", "ray.kill(actors[worker], no_restart=False)", "pass"),
    Bug("a lost runner stays in service", fleet.Fleet, "answer", "self._worker_manager.set_actor_state(worker, healthy=False)", "pass"),
]  # fmt: skip
"""Each is one edit of the real source; a bug whose source has changed fails its test by name."""
