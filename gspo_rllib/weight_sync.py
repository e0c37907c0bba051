"""One version of the policy's weights: taken from the learners once, named as engines know them, sent to any runner."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import ray
from ray.exceptions import RayError
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner

from gspo_rllib.bfloat16_arrays import to_array
from gspo_rllib.engines.proof import Conversation, EngineSample, Gap, check_gap
from gspo_rllib.engines.trial import with_alternatives
from gspo_rllib.engines.weights import NamedWeights, on_host
from gspo_rllib.errors import WeightSyncError
from gspo_rllib.lent_weights import LentWeights
from gspo_rllib.model_files import ADAPTER_CONFIG
from gspo_rllib.modules.sharding import whole
from gspo_rllib.policy_state import adapter_config, adapter_state, inference_state, inference_tensors
from gspo_rllib.precision import learner_dtype, sync_dtype
from gspo_rllib.runner_calls import RunnerCall, returned
from gspo_rllib.sent_dtypes import Wire, each_once
from gspo_rllib.sent_weights import SentWeights, fetched, sent


class EnvRunners(Protocol):
    """What weights are sent to: RLlib's ``EnvRunnerGroup``, or who stands in for it (``driver.fleet``)."""

    @property
    def local_env_runner(self) -> Any:
        """The env runner in this process."""

    @property
    def _worker_manager(self) -> Any: ...

    def num_remote_env_runners(self) -> int:
        """How many env runners have a process of their own."""

    def foreach_env_runner(self, function: Callable[[Any], Any], *, local_env_runner: bool = True) -> list[Any]:
        """The answers of all of them."""


class Learners(Protocol):
    """What weights are taken from: a ``LearnerTeam``."""

    @property
    def is_local(self) -> bool:
        """Whether the only learner is in this process."""

    @property
    def _worker_manager(self) -> Any: ...

    def foreach_learner(self, func: Callable[[Any], Any], *, remote_actor_ids: Sequence[int] | None) -> Any:
        """The answers of some learners."""

    @property
    def shares_model(self) -> bool:
        """Whether the learners have one copy of the model between them."""

    def keep(self, function: Callable[[Any], tuple[Any, Any]]) -> tuple[Any, ray.ObjectRef]:
        """What the first learner answers; its second part stays in the object store, owned by this process."""

    def stream(self, function: Callable[[Any], Iterator[Any]]) -> list[list[ray.ObjectRef]]:
        """What each learner yields; it stays there likewise."""


class Weights:
    """One version of the policy's weights, taken from the learners once and sent to any number of runners.

    Later updates of the learners do not change it. The weights of a learner in this process are copied once; a learner
    in an actor writes them to Ray's object store, which runners read from without a detour through the driver. Where
    learner and engine take turns on one device (``generation.colocate``), nothing is copied: the engine reads what the
    learner trains, and a version is gone with the next update.

    Args:
        learner_group: Has the policy.
        dtype: Precision to take matrices in; None for the one in which engines are sent them (``sync_dtype``).

    Attributes:
        version: Number of updates the learners had made when the weights were taken.
    """

    def __init__(self, learner_group: Learners, *, dtype: str | None = None) -> None:
        self._learners, self._dtype = learner_group, dtype
        self._taken: Any
        if learner_group.is_local:
            about, self._taken = self._first_learner(partial(_take_weights, dtype=dtype))
        else:
            # Owned by this process: what a learner puts there itself is gone with it.
            about, self._taken = _kept_weights(learner_group, dtype)
        self.version, self._conversation, self._are_lent, self._machine = about
        # Who has these very weights, by number and process; None where whoever has their version has them.
        self._holders: set[tuple[int, int]] | None = None

    def _first_learner(self, function: Any) -> Any:
        first = None if self._learners.is_local else self._learners._worker_manager.healthy_actor_ids()[:1]
        (answer,) = self._learners.foreach_learner(function, remote_actor_ids=first)
        if not answer.ok:
            raise answer.get()
        return answer.get()

    @property
    def _here(self) -> NamedWeights:
        """The arrays, for a runner in this process; tensors on its device where a learner in this process has one."""
        named: NamedWeights
        try:
            named = fetched(self._taken)
        except RayError:
            self._be_there()
            named = fetched(self._taken)
        return named

    @property
    def _anywhere(self) -> ray.ObjectRef | SentWeights | LentWeights:
        """The arrays in the object store: put there once, mapped by every runner."""
        self._be_there()
        if not isinstance(self._taken, ray.ObjectRef | SentWeights | LentWeights):
            self._taken = sent(on_host(self._taken))
        return self._taken

    def restore(self) -> bool:
        """Has learners that are built again give these weights once more, where the machine they lay on is gone.

        Returns:
            Whether they are there; not where the learners have other ones by now.

        Raises:
            LearnersLostError: The learners cannot be built again.
        """
        if self._machine is None or any(node["Alive"] and node["NodeID"] == self._machine for node in ray.nodes()):
            return True
        (version, _, _, machine), taken = _kept_weights(self._learners, self._dtype)
        if version != self.version:
            return False
        self._taken, self._machine = taken, machine
        return True

    def _be_there(self) -> None:
        if not self.restore():
            raise WeightSyncError(
                f"weights version {self.version} lay on a machine that is lost, and the learners have later ones. "
                "Restart the run from its last checkpoint."
            )

    def on_host(self) -> dict[str, np.ndarray]:
        """The weights as arrays under Hugging Face names, possibly read-only; see ``bfloat16_arrays``."""
        return on_host(self._here)

    def push(self, runners: EnvRunners, *, force: bool = False) -> list[Receipt]:
        """Loads the weights into every healthy runner's engine and waits until each has acknowledged them.

        An engine that never had any is proven: what it samples is compared with the learner's policy.

        Args:
            runners: Training or evaluation env runners.
            force: Load them also where the version is the same: after a restore it may be another run's. From now on
                also into runners that are not healthy now, once they are reached.

        Returns:
            What the runners answered.

        Raises:
            EngineError: An engine could not be built, or failed.
            WeightSyncError: A runner acknowledged another version, or its engine samples from another policy.
        """
        remote = runners.num_remote_env_runners() > 0
        self._check_not_changed()
        if force and self._holders is None:
            self._holders = set()
        load = RunnerCall(self.loading(here=not remote, force=force))
        receipts = returned(runners.foreach_env_runner(load, local_env_runner=not remote))
        wrong = sorted({str(receipt.version) for receipt in receipts if receipt.version != self.version})
        if wrong:
            raise WeightSyncError(
                f"weights version {self.version} was sent, but env runners hold version {', '.join(wrong)}; no "
                "trajectory was sampled with them. Restart the run from its last checkpoint."
            )
        if any([self.prove(receipt) for receipt in receipts]):
            runners.foreach_env_runner(_mark_proven, local_env_runner=not remote)
        return receipts

    def _check_not_changed(self) -> None:
        if self._are_lent and (held := self._first_learner(lambda learner: learner._weights_seq_no)) != self.version:
            raise WeightSyncError(
                f"weights version {self.version} was lent by learners that are at {held} now: nobody has it any more. "
                "Send the learners' present weights."
            )

    def loading(self, *, here: bool, force: bool = False) -> Callable[[Any], Receipt]:
        """What an env runner is to do with the weights; see ``Receipt`` for what it answers.

        Args:
            here: Whether the runner is in this process.
            force: See ``push``.
        """
        named: Any = self._here if here else self._anywhere
        version, conversation = self.version, self._conversation
        holders = None if self._holders is None else frozenset(self._holders)

        def load(runner: Any) -> Receipt:
            has_others = holders is not None and (runner.worker_index or 0, os.getpid()) not in holders
            held = runner.set_weights(named, version, force=force or has_others)
            sample = runner.converse(conversation) if held == version else None
            return Receipt(held, sample, runner.worker_index or 0, os.getpid())

        return load

    def prove(self, receipt: Receipt) -> bool:
        """Notes who holds the weights, and compares what an engine sampled after its first with the learner's policy.

        Args:
            receipt: A runner's answer.

        Returns:
            Whether there was anything to compare; the runner is then to be told (``marking_proven``).

        Raises:
            WeightSyncError: The engine samples from another policy, or the learners have moved on since.
        """
        if self._holders is not None:
            self._holders.add((receipt.worker, receipt.process))
        sample = receipt.sample
        if sample is None:
            return False
        trajectories, temperatures = sample.trajectories(), sample.temperatures
        version, scored = self._first_learner(
            lambda learner: (learner._weights_seq_no, learner.score(trajectories, temperatures))
        )
        if version != self.version:
            raise WeightSyncError(
                f"an engine was built and sent weights version {self.version}, but the learners are at {version}, so "
                "what it samples cannot be compared with them. Send the learners' present weights, or restore the last "
                "checkpoint."
            )
        gap = Gap.between(sample, scored, self._conversation.learner_dtype)
        try:
            check_gap(sample, gap)
        except WeightSyncError as error:
            raise WeightSyncError(with_alternatives(str(error), sample.spec)) from None
        return True

    @staticmethod
    def marking_proven() -> RunnerCall[None]:
        """Tells an env runner that its engine is proven."""
        return RunnerCall(_mark_proven)

    def offer(self, runners: EnvRunners, workers: Sequence[int]) -> None:
        """Sends the weights to runners that are sampling; each loads them as soon as it can. Waits for none of them.

        Args:
            runners: Training env runners.
            workers: RLlib's numbers of the runners to send to.
        """
        version = self.version
        if not runners.num_remote_env_runners():
            for _ in workers:
                runners.local_env_runner.offer_weights(self._here, version)
            return
        named = self._anywhere if workers else None

        def offer(runner: Any) -> None:
            runner.offer_weights(named, version)

        for worker in workers:
            runners._worker_manager.actors()[worker].apply.remote(offer)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an env runner answers to weights.

    Attributes:
        version: The version its engine holds.
        sample: What the engine samples with them, where nobody has looked yet.
        worker: RLlib's number of the runner.
        process: Number of its process.
    """

    version: int | None
    sample: EngineSample | None = None
    worker: int = 0
    process: int = 0


def _mark_proven(runner: Any) -> None:
    runner.mark_proven()


_About = tuple[int, Conversation, bool, str | None]
"""The version, what engines that get the weights are asked, whether they are lent, and the machine they lie on."""


def _kept_weights(learners: Learners, dtype: str | None) -> tuple[_About, ray.ObjectRef | SentWeights]:
    """What remote learners have, in the object store; tensor by tensor where they share the model."""
    if not learners.shares_model:
        return learners.keep(partial(_take_weights, dtype=dtype))
    (about, *arrays), *_ = learners.stream(partial(gather_weights, dtype=dtype))
    version, conversation, machine, numbers = ray.get(about)
    return (version, conversation, False, machine), SentWeights(numbers, arrays)


def gather_weights(learner: Learner, dtype: str | None = None) -> Iterator[Any]:
    """What there is to know and which name has which tensor; then the tensors, in the first learner."""
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    swaps = _swaps_adapters(learner)
    tensors = module.adapter.state() if swaps else inference_tensors(module)
    wire = Wire() if swaps else Wire.of(module, learner.config, dtype)
    distinct = {id(tensor): (name, tensor) for name, tensor in tensors.items()}
    number_of = {key: number for number, key in enumerate(distinct)}
    numbers = {name: number_of[id(tensor)] for name, tensor in tensors.items()}
    if swaps:
        numbers[ADAPTER_CONFIG] = len(distinct)
    yield learner._weights_seq_no, _conversation(learner), _machine(learner), numbers
    for name, tensor in distinct.values():
        gathered = whole(tensor)
        if gathered is not None:
            yield to_array(gathered.to(wire.dtype_of(name, gathered)))
    if swaps:
        yield adapter_config(module)


def _swaps_adapters(learner: Learner) -> bool:
    return getattr(learner.config, "adapter_sync", None) == "swap"


def _conversation(learner: Learner) -> Conversation:
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    # A bound on rounding is asked for: that of the weights on their way is like that of the learner's own passes.
    rounds = "bfloat16" in (learner_dtype(module.settings), sync_dtype(learner.config, module.settings))
    return Conversation.of(
        module.model.config,
        module.model.get_input_embeddings().num_embeddings,
        temperature=module.temperature,
        learner_dtype="bfloat16" if rounds else "float32",
    )


def _machine(learner: Learner) -> str | None:
    """Ray's name of the machine that a learner's answers lie on; None of one in the driver's process."""
    is_actor = learner.config.num_learners and ray.is_initialized()
    return str(ray.get_runtime_context().get_node_id()) if is_actor else None


def _take_weights(learner: Learner, dtype: str | None = None) -> tuple[_About, NamedWeights | LentWeights]:
    """What there is to know, and the weights."""
    version, conversation, machine = learner._weights_seq_no, _conversation(learner), _machine(learner)
    module, config = learner.module[DEFAULT_MODULE_ID].unwrapped(), learner.config
    if getattr(config, "colocate", False) and dtype is None:
        tensors = inference_tensors(module)
        if config.num_learners == config.num_env_runners == 0:
            return (version, conversation, True, machine), tensors
        if all(tensor.is_cuda for tensor in tensors.values()):
            return (version, conversation, True, machine), LentWeights.of(tensors, module)
    about, wire = (version, conversation, False, machine), Wire.of(module, config, dtype)
    if _swaps_adapters(learner):
        return about, adapter_state(module)
    if learner.config.num_learners == 0 and learner.config.num_env_runners == 0:
        # On a GPU a copy is made on the device: the way through the host takes a second per 2 GB.
        return about, _copied(module, wire)
    # The object store makes a copy of its own; for a learner in an actor, out of its answer.
    uncopied = inference_state(module, copy=False, wire=wire)
    return about, sent(uncopied) if learner.config.num_learners == 0 else uncopied


def _copied(module: Any, wire: Wire) -> NamedWeights:
    """Copies on the device of a module on a GPU, arrays of any other."""
    tensors = inference_tensors(module)
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return inference_state(module, copy=True, wire=wire)
    return each_once(tensors, lambda name, tensor: tensor.to(wire.dtype_of(name, tensor), copy=True))
