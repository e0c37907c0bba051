"""The life of groups under random faults: planned, leased, complete, late, twice, lost, committed, restored.

The driver's own classes run in a simulated world (``simulated_ray``), and a ledger that knows nothing of them says what
must hold: no group is lost or trained twice, none is older than the bound, each was sampled by a policy of this run and
in the last attempt at it, and where the schedule is no matter of time, batches are the ones that count by number.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from gspo_rllib.errors import LearnersLostError, NoProgressError
from gspo_rllib.types import TrajectoryGroup, turns
from tests.driver.seeded_bugs import BUGS, Bug
from tests.driver.simulated_ray import FAULTS, BrokenPromise, Sampled, World, names
from tests.driver.simulated_run import Learners, Run, foreign_groups, install


def promise(holds: bool, words: str) -> None:
    if not holds:
        raise BrokenPromise(words)


@dataclass
class Ledger:
    """What was trained, and in which order; kept apart from everything the driver knows.

    Attributes:
        trained: Version of the learners that trained each group, by name, in order.
        skipped: Numbers that groups from elsewhere used up.
        regular: Whether every update so far was on a batch of this run's own, so that ages follow from numbers.
    """

    schedule: str
    bound: int
    world: World
    dull_groups: str
    trained: dict[str, int] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)
    regular: bool = True

    def copy(self) -> tuple[Any, ...]:
        return dict(self.trained), set(self.skipped), self.regular

    def restore(self, copied: tuple[Any, ...]) -> None:
        trained, skipped, self.regular = copied
        self.trained, self.skipped = dict(trained), set(skipped)

    def update(self, learners: Learners, groups: list[TrajectoryGroup]) -> None:
        """Called when the learners are about to train on groups."""
        own = [group for group in groups if not group.group_id.startswith("mine")]
        for group in own:
            self._check(group, learners)
            self.trained[group.group_id] = learners.version
        self.regular &= bool(own)
        numbers = [int(name) for name in names(own)]
        if (self.schedule, self.dull_groups) != ("free", "resample"):  # there, several draws make an update
            promise(numbers == sorted(numbers), f"an update sums its groups in the order {numbers}")
        if self.schedule != "free":
            in_order = [int(name) for name in self.trained]
            promise(in_order == sorted(in_order), f"batches are trained in the order {in_order}")

    def _check(self, group: TrajectoryGroup, learners: Learners) -> None:
        name = group.group_id
        promise(name not in self.trained, f"group {name} is trained twice")
        versions = {turn.policy_version for episode in group.episodes for turn in turns(episode)}
        age = learners.version - min(versions)
        promise(0 <= age <= self.bound, f"group {name} is {age} versions old, the bound is {self.bound}")
        if self.schedule == "fixed_lag" and self.regular:
            promise(
                age == min(learners.version, self.bound), f"group {name} is {age} versions old, by number it is not"
            )
        if isinstance(group, Sampled):
            known = learners.policies.get(min(versions), set())
            promise(group.policy in known, f"group {name} was sampled by a policy of another run")
            promise(group.proven, f"group {name} was sampled by an engine that nobody has compared")
            promise(group.attempt == self.world.attempts[name], f"group {name} is trained as an earlier attempt had it")
        promise(not self._is_gone(name), f"group {name} is trained, which cannot be")

    def _is_gone(self, name: str) -> bool:
        left_out = self.dull_groups != "keep" and self.world.is_dull(name)
        return self.world.is_unlucky(name) or left_out

    def balance(self, drawn: int, unfinished: list[str]) -> None:
        """Called between two iterations: every group that was drawn is somewhere, once."""
        promise(len(set(unfinished)) == len(unfinished), f"a group is to come twice: {unfinished}")
        promise(not self.trained.keys() & set(unfinished), "a group that was trained is still to come")
        for number in range(drawn):
            name = str(number)
            known = name in self.trained or number in self.skipped or self._is_gone(name)
            promise(known or name in unfinished, f"group {name} is lost")
        extra = [name for name in [*unfinished, *self.trained] if int(name) >= drawn]
        promise(not extra, f"groups {extra} were never drawn")


class GroupLife(RuleBasedStateMachine):
    """One run: its iterations, the faults within and between them, its checkpoints, and what resumes from them."""

    schedules: ClassVar[tuple[str, ...]] = ("sync", "free", "fixed_lag")

    @initialize(
        schedule=st.integers(0, 2),
        runners=st.integers(0, 3),
        groups=st.integers(1, 3),
        bound=st.integers(1, 3),
        rates=st.sampled_from([(0, 0), (5, 0), (0, 4), (3, 4)]),
        newest_first=st.booleans(),
        says_twice=st.booleans(),
        dull_groups=st.sampled_from(["keep", "drop", "resample"]),
    )
    def begin(
        self, schedule: int, runners: int, groups: int, bound: int, rates: Any, dull_groups: str, **ways: bool
    ) -> None:
        self.schedule = self.schedules[schedule % len(self.schedules)]
        if self.schedule == "fixed_lag" and dull_groups == "resample":
            dull_groups = "drop"
        self.shape: dict[str, Any] = {
            "schedule": self.schedule,
            "max_staleness": 0 if self.schedule == "sync" else bound,
            "groups": groups,
            "dull_groups": dull_groups,
        }
        self.outside = {"num_runners": runners, "unlucky": rates[0], "dull": rates[1], **ways}
        self.saved: tuple[Any, Any] | None = None
        self.num_foreign = 0
        self._build()
        self._look()

    def _build(self) -> None:
        self.world = World(**self.outside)
        self.ledger = Ledger(self.schedule, self.shape["max_staleness"], self.world, self.shape["dull_groups"])
        self.run = Run(self.world, lambda *update: self.ledger.update(*update), **self.shape)

    def _look(self) -> None:
        source = self.run._source
        self.ledger.balance(self.run._next_group, [*source.unfinished, *self.run._unfinished])
        most = (self.shape["max_staleness"] + 1) * self.shape["groups"]
        ahead = len(source.unfinished)
        promise(ahead <= most, f"{ahead} groups are drawn and not trained, at most {most} may be")

    @rule(script=st.binary(max_size=12), learners=st.sampled_from(["stay", "stay", "stay", "are lost", "are rebuilt"]))
    def train(self, script: bytes, learners: str) -> None:
        self.world.script(script)
        self.run.learners.loses_next = learners == "are lost"
        if learners == "are rebuilt":
            self.run.learners.rebuild()
        before = self.run.learners.version
        with contextlib.suppress(NoProgressError, LearnersLostError):  # a RunnersLostError is one, too
            self.run.train()
        self.ledger.regular &= self.run.learners.version > before
        self._look()

    @rule(worker=st.integers(1, 3), fault=st.sampled_from(sorted(set(FAULTS))))
    def disturb_between_iterations(self, worker: int, fault: str) -> None:
        if worker in self.world.actors:
            self.world.fault(fault, self.world.actors[worker])

    @rule(script=st.binary(max_size=4))
    def save(self, script: bytes) -> None:
        self.world.script(script)
        state = self.run.state()
        self.ledger.balance(state["next_group"], state["unfinished_groups"])
        copied = self.ledger.copy()
        ahead = state.get("sampled_ahead", {})
        if ahead.get("whole_batches"):
            due = [batch for batch in ahead["batches"] if batch["version"] != self.run.learners.version]
            by_name = any(batch["groups"] is None for batch in due)
            left = self.world.runners.healthy_actor_ids()
            promise(not (by_name and left), f"batches of older weights are saved by name, with runners {left} at hand")
            # Those of which nobody is left are played again, by other weights than those they were due.
            copied = (*copied[:2], copied[2] and not by_name)
        self.saved = (state, copied)

    @precondition(lambda self: self.saved is not None)
    @rule(script=st.binary(max_size=6), anew=st.booleans())
    def restore(self, script: bytes, anew: bool) -> None:
        assert self.saved is not None
        state, copied = self.saved
        if anew:
            self._build()
        self.ledger.restore(copied)
        self.world.script(script)
        self.run.set_state(state)
        self._look()
        again = self.run.state()
        for key in ("next_group", "unfinished_groups"):
            promise(again[key] == state[key], f"{key} is {again[key]} after a restore, {state[key]} before")
        ahead = [sorted(name for batch in s.get("sampled_ahead", {}).get("batches", []) for name in batch["group_ids"])
                 for s in (state, again)]  # fmt: skip
        promise(ahead[0] == ahead[1], f"sampled ahead is {ahead[1]} after a restore, {ahead[0]} before")

    @rule(script=st.binary(max_size=6))
    def train_on_groups_from_elsewhere(self, script: bytes) -> None:
        self.world.script(script)
        self.num_foreign += 1
        first = self.run._next_group
        self.ledger.skipped.update(range(first, first + 2))
        with contextlib.suppress(NoProgressError, LearnersLostError):
            self.run.train_on(foreign_groups(self.num_foreign))
        self._look()

    @rule(script=st.binary(max_size=4))
    def evaluate(self, script: bytes) -> None:
        self.world.script(script)
        with self.run._source.paused():
            pass
        self._look()


def schedules(number: int, *, phases: tuple[Phase, ...] = (Phase.generate,)) -> settings:
    return settings(
        max_examples=number,
        stateful_step_count=10,
        phases=phases,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(monkeypatch)
    return None


def test_no_fault_loses_a_group_or_trains_one_twice(world) -> None:
    run_state_machine_as_test(GroupLife, settings=schedules(250, phases=(Phase.generate, Phase.shrink)))


def test_a_runner_that_was_out_of_reach_when_weights_were_offered_samples_with_no_older_ones(world) -> None:
    life = GroupLife()
    life.begin(1, 2, 1, 1, (0, 0), "keep", newest_first=False, says_twice=False)
    life.train(learners="are rebuilt", script=b"\n")
    life.train(learners="stay", script=b"")
    life.train(learners="stay", script=b"")


def test_a_runner_whose_answers_were_lost_while_a_checkpoint_was_restored_samples_with_no_other_one(world) -> None:
    life = GroupLife()
    life.begin(0, 1, 1, 1, (0, 0), "keep", newest_first=False, says_twice=False)
    life.save(script=b"")
    life.restore(anew=False, script=b"l")
    life.restore(anew=False, script=b"")
    life.train(learners="stay", script=b"")


@pytest.mark.slow
def test_no_fault_does_in_ten_thousand_schedules(world) -> None:
    begun = time.process_time()
    run_state_machine_as_test(GroupLife, settings=schedules(10_000, phases=(Phase.generate, Phase.shrink)))
    print(f"10,000 schedules in {time.process_time() - begun:.0f} s of processor time")


def schedules_until_caught(bug: Bug, most: int) -> tuple[int, str]:
    """How many schedules it takes to see a bug, and the promise that it breaks."""
    count = 0

    class Counted(GroupLife):
        def __init__(self) -> None:
            nonlocal count
            count += 1
            super().__init__()

    with pytest.MonkeyPatch.context() as patch:
        bug.plant(patch)
        try:
            run_state_machine_as_test(Counted, settings=schedules(most))
        except Exception as error:  # noqa: BLE001, a broken driver may end in any
            return count, f"{error}"
    return count, ""


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.words)
def test_a_bug_is_caught(world, bug: Bug) -> None:
    count, promise_broken = schedules_until_caught(bug, most=4_000)
    print(f"{bug.words}: caught in schedule {count}: {promise_broken}")
    assert promise_broken
