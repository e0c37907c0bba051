"""A learner that can share one copy of its model with the others: the part of it that RLlib has not.

Every rank makes the same passes over the model, and takes part in whatever gathers it. What is gathered is the first
rank's; the others answer with nothing in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from ray.rllib.core import COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.numpy import convert_to_numpy
from torch.distributed.tensor import DTensor

from gspo_rllib.bfloat16_arrays import to_array, to_tensor
from gspo_rllib.errors import SettingError
from gspo_rllib.learners.sharding_settings import shards
from gspo_rllib.modules.sharding import is_first, largest_over_ranks, local, moment_of, share_of, together, whole
from gspo_rllib.modules.shares import loaded_as_shares, mesh_of_all
from gspo_rllib.packing import empty_row


class ShardableLearner(TorchLearner):
    """RLlib's ``TorchLearner``, whose module and optimisers may be shares."""

    _gives_shares: bool = False

    _keeps_base: bool = False
    """Whether the model below an adapter may be another one than a learner that is built again would load."""

    @property
    def is_sharded(self) -> bool:
        """Whether each learner holds a share of the model, and not all of it."""
        return shards(self.config)

    @property
    def gives_state(self) -> bool:
        """Whether this learner's state is the whole one: of several that share a model, the first's is."""
        return not self.is_sharded or is_first()

    def writes_together(self) -> AbstractContextManager[None]:
        """Around each writing of this learner's state: where it fails on one rank, all that wait for it are told."""
        return together(self.device if self.is_sharded else None)

    @contextmanager
    def state_by_tensor(self) -> Iterator[Callable[[Any], torch.Tensor | None] | None]:
        """Inside the block, the optimisers' state is shares of those that share a model; gives what gathers one."""
        if not self.is_sharded:
            yield None
            return
        self._gives_shares = True
        try:
            yield whole
        finally:
            self._gives_shares = False

    def stream(self, function: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
        """What a generator yields; a method, because Ray streams what those do."""
        yield from function(self)

    def kept_state(self) -> Iterator[Any]:
        """This learner's own part of the state: what is small, then one array after the other.

        Where all learners hold the same, the first has the arrays. They share the memory of what is trained.
        """
        held = {name: optimizer.state_dict()["state"] for name, optimizer in self._named_optimizers.items()}
        moments = {
            name: {
                number: {key: None if _is_large(value) else value for key, value in of.items()}
                for number, of in state.items()
            }
            for name, state in held.items()
        }
        rest = self.get_state(not_components=[COMPONENT_RL_MODULE, COMPONENT_OPTIMIZER])
        yield self._keeps_base, moments, rest
        if self.gives_state or self.is_sharded:
            for tensor in self._own_tensors():
                yield to_array(local(tensor))
            for state in held.values():
                for of in state.values():
                    yield from (to_array(local(value)) for value in of.values() if _is_large(value))

    def set_kept_state(
        self, keeps_base: bool, moments: Mapping[str, Any], rest: dict[str, Any], arrays: Iterator[np.ndarray]
    ) -> None:
        """Sets what ``kept_state`` gave, of as many learners.

        Args:
            keeps_base: The first part of what is small.
            moments: The second: the state of every optimiser, None in the place of an array.
            rest: The third: what the learner's state has beside weights and optimisers.
            arrays: What came after it; each is asked for when its turn comes, and may be read-only.
        """
        self._keeps_base = keeps_base
        with torch.no_grad():
            for tensor, array in zip(self._own_tensors(), arrays, strict=False):
                local(tensor).copy_(to_tensor(array))
        for name, of_optimizer in moments.items():
            optimizer = self._named_optimizers[name]
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {
                    key: moment_of(to_tensor(next(arrays)), parameters[number]) if value is None else value
                    for key, value in of.items()
                }
                for number, of in of_optimizer.items()
            }
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.set_state(rest)

    def _own_tensors(self) -> list[torch.Tensor]:
        """Parameters and buffers, once each; of a policy with an adapter, without what its folder has."""
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        state = module.state_dict(keep_vars=True)
        own = {id(value): value for value in state.values() if isinstance(value, torch.Tensor)}.values()
        if getattr(module, "adapter", None) is None or self._keeps_base:
            return list(own)
        return [value for value in own if value.requires_grad or not isinstance(value, torch.nn.Parameter)]

    def set_state(self, state: dict[str, Any]) -> None:
        """RLlib's."""
        self._keeps_base |= COMPONENT_RL_MODULE in state
        super().set_state(state)

    def even_out(self, minibatches: Sequence[list[dict[str, Any]]]) -> None:
        """Gives each minibatch as many micro-batches as it has on the rank with the most; they are empty.

        Args:
            minibatches: Micro-batches of each minibatch; extended in place.
        """
        if not self.is_sharded:
            return
        numbers = largest_over_ranks([max(1, len(own)) for own in minibatches], self.device)
        for own, number in zip(minibatches, numbers, strict=True):
            own.extend(empty_row(self.device) for _ in range(number - len(own)))

    def _make_module(self) -> Any:
        """RLlib's; of a module that is shared, each learner loads its share."""
        with loaded_as_shares(mesh_of_all(self.device) if self.is_sharded else None):
            return super()._make_module()

    def _map_module_to_device(self, module: Any) -> None:
        """RLlib's; a module that is shared goes there layer by layer, before there is an optimiser."""
        if not self.is_sharded:
            super()._map_module_to_device(module)
            return
        policy = module[DEFAULT_MODULE_ID]
        if not hasattr(policy, "shard"):
            raise SettingError(
                "learners.sharding is 'fsdp2', which shards a CausalLMModule; the policy is a "
                f"{type(policy).__name__}. Subclass CausalLMModule, or use sharding='none'."
            )
        policy.shard(self.device)

    def _make_modules_ddp_if_necessary(self) -> None:
        """RLlib's; a module that is shared exchanges its gradients itself."""
        if not self.is_sharded:
            super()._make_modules_ddp_if_necessary()

    def _get_optimizer_state(self) -> dict[str, Any]:
        """RLlib's; of shares, gathered tensor by tensor."""
        if not self.is_sharded:
            state: dict[str, Any] = super()._get_optimizer_state()
            return state
        found = {}
        for name, optimizer in self._named_optimizers.items():
            own = optimizer.state_dict()
            moments = {
                number: {key: self._given(value) for key, value in of.items()} for number, of in own["state"].items()
            }
            found[name] = {
                "module_id": self._optimizer_name_to_module[name],
                "state": {**convert_to_numpy({**own, "state": {}}), "state": moments},
            }
        return found if self._gives_shares or is_first() else {}

    def _given(self, value: Any) -> Any:
        """A value of an optimiser's state: a share, where one is asked for, or as RLlib's state has it."""
        if not isinstance(value, torch.Tensor) or (self._gives_shares and isinstance(value, DTensor)):
            return value
        return convert_to_numpy(value if self._gives_shares else whole(value))

    def _set_optimizer_state(self, state: dict[str, Any]) -> None:
        """RLlib's; of whole tensors, shares keep their part."""
        if self.is_sharded:
            state = {name: self._as_shares(name, of) for name, of in state.items()}
        super()._set_optimizer_state(state)

    def _as_shares(self, name: str, saved: dict[str, Any]) -> dict[str, Any]:
        groups = self._named_optimizers[name].param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        moments = {
            number: {key: share_of(torch.as_tensor(value), parameters[int(number)]) for key, value in of.items()}
            for number, of in saved["state"]["state"].items()
        }
        return {**saved, "state": {**saved["state"], "state": moments}}


def _is_large(value: Any) -> bool:
    """Whether a value of an optimiser's state is as large as a parameter may be, not a counter."""
    return isinstance(value, torch.Tensor) and value.dim() > 0
