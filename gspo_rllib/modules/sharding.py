"""One module over several processes: each holds a share of every parameter, and gathers a layer while it runs.

The shares are torch's ``DTensor``, cut along the first dimension. Whatever gathers something is a collective: all
processes must make the same calls in the same order, and the same number of forward and backward passes.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from gspo_rllib.errors import ModelError
from gspo_rllib.modules.recomputation import decoder_layers
from gspo_rllib.modules.shares import cut, mesh_of_all

_WITHOUT = "Train it with learners(sharding='none')."


def shard(
    module: torch.nn.Module, models: Sequence[PreTrainedModel], *, passes: Sequence[str], device: torch.device | str
) -> None:
    """Leaves this process its share of a module; every process of torch's group calls it with the same module.

    Layers go to the device one by one, so none ever holds the whole module. What was loaded as shares (``shares``)
    stays as it is; all else begins as it is in the first process.

    Args:
        module: Changed in place. Its parameters become other objects: optimisers are made afterwards.
        models: The models in it whose layers are gathered one at a time; what is left is gathered together.
        passes: Names of the methods of ``module`` that run it. None of them may call another one.
        device: Where the module computes.

    Raises:
        ModelError: Layers cannot be found, or two of them share a parameter.
    """
    mesh, units = mesh_of(module) or mesh_of_all(device), _units(models)
    loaded = _set_aside(module)
    for unit in [*units, module]:
        for parameter in unit.parameters():
            if not isinstance(parameter, DTensor) and not parameter.is_meta:
                parameter.data = parameter.data.to(device).contiguous()
                distributed.broadcast(parameter.data, src=0)
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    module.load_state_dict(loaded, strict=False, assign=True)
    # Nothing here changes what a pass returns in place, which is what torch warns of.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    for name in passes:
        register_fsdp_forward_method(module, name)


def _set_aside(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Takes the shares out of a module, by name, and leaves parameters without storage for ``fully_shard``."""
    loaded, empty = dict[str, torch.nn.Parameter](), dict[int, torch.nn.Parameter]()
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if isinstance(parameter, DTensor):
            loaded[name] = parameter
            if id(parameter) not in empty:
                without = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                empty[id(parameter)] = torch.nn.Parameter(without, requires_grad=parameter.requires_grad)
            part, _, own = name.rpartition(".")
            setattr(module.get_submodule(part), own, empty[id(parameter)])
    return loaded


def _units(models: Sequence[PreTrainedModel]) -> list[torch.nn.Module]:
    """The layers: no parameter may belong to two of them, or to one and to what is outside; each would train a copy."""
    units = []
    for model in models:
        layers = check_has_layers(model)
        units += layers
        own = {id(layer) for layer in layers}
        starts = tuple(f"{name}." for name, part in model.named_modules(remove_duplicate=False) if id(part) in own)
        owners = defaultdict[int, dict[str, str]](dict)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owners[id(parameter)].setdefault(next((start for start in starts if name.startswith(start)), ""), name)
        shared = [list(names.values()) for names in owners.values() if len(names) > 1]
        if shared:
            raise ModelError(
                f"{type(model).__name__} cannot be sharded: {shared[0][0]!r} is {shared[0][1]!r} too, outside of that "
                f"layer, and each would train a copy of its own. {_WITHOUT}"
            )
    return units


def check_has_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The layers of a model, to be gathered one at a time.

    Raises:
        ModelError: It does not say which they are.
    """
    layers = list(decoder_layers(model))
    if not layers:
        raise ModelError(
            f"{type(model).__name__} cannot be sharded: it does not say which its layers are (neither "
            f"GradientCheckpointingLayer nor _no_split_modules). {_WITHOUT}"
        )
    return layers


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether this process holds shares of a module's parameters, not all of them."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@contextmanager
def at_work(module: torch.nn.Module, models: Sequence[PreTrainedModel]) -> Iterator[dict[int, str]]:
    """Gives the names of a module's parameters by the ids of those that a pass inside the block computes with.

    Of shares these are the gathered ones, which are there while their part runs.

    Args:
        module: A module, which runs inside the block.
        models: The models in it.
    """
    own = {name: p for name, p in module.named_parameters() if not isinstance(p, DTensor)}
    names, kept = {id(parameter): name for name, parameter in own.items()}, [*own.values()]

    def note(*_: Any) -> None:
        gathered = [(n, p) for n, p in module.named_parameters() if id(p) not in names and not isinstance(p, DTensor)]
        names.update({id(parameter): name for name, parameter in gathered})
        kept.extend(parameter for _, parameter in gathered)

    parts = [part for model in models for part in (model, model.base_model, *decoder_layers(model))]
    handles = [part.register_forward_pre_hook(note) for part in parts if is_sharded(module)]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def mesh_of(module: torch.nn.Module) -> DeviceMesh | None:
    """The processes that share a module; None where it is whole."""
    return next((p.device_mesh for p in module.parameters() if isinstance(p, DTensor)), None)


def is_first() -> bool:
    """Whether this is the process that gets what is gathered; the only one where there is no group."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def largest_over_ranks(numbers: Sequence[int], device: torch.device | str) -> list[int]:
    """The largest of each of these numbers in any process; a collective."""
    largest = torch.tensor(list(numbers), dtype=torch.int64, device=device)
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return [int(number) for number in largest.tolist()]


@contextmanager
def together(device: torch.device | str | None) -> Iterator[None]:
    """Around what one process does and may fail at, as writing: where it fails, all raise, and none waits for another.

    Args:
        device: Where the processes exchange whether they are through; None where there is nobody to wait.

    Raises:
        OSError: Another process failed.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001, of any class: it is raised again
        failure = error
    others_failed = device is not None and any(largest_over_ranks([failure is not None], device))
    if failure is not None:
        raise failure
    if others_failed:
        raise OSError("another learner that shares the model could not do its part")


def device_of_shares(module: torch.nn.Module) -> torch.device | None:
    """Where the shares of a module are; None where it is whole."""
    return next(module.parameters()).device if is_sharded(module) else None


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor | None:
    """A tensor in the first process's memory, gathered where it is sharded; None in the others. A collective."""
    if isinstance(tensor, DTensor):
        gathered: Tensor = tensor.full_tensor()
        return gathered.cpu() if is_first() else None
    return tensor.detach().cpu() if is_first() else None


def whole_state(module: torch.nn.Module, named: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The ``state_dict`` of a module; of a sharded one in the first process's memory, and nothing in the others.

    Tensors are gathered one after the other. A tensor under two names is one tensor under both.

    Args:
        module: A module.
        named: Other tensors than its ``state_dict``, such as a part of it.
    """
    state = module.state_dict() if named is None else named
    if not is_sharded(module):
        return dict(state)
    owners = {name: id(parameter) for name, parameter in module.named_parameters(remove_duplicate=False)}
    gathered: dict[int, Tensor | None] = {}
    for name, tensor in state.items():
        key = owners.get(name, id(tensor))
        if key not in gathered:
            gathered[key] = whole(tensor)
    found = {name: gathered[owners.get(name, id(tensor))] for name, tensor in state.items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def share_of(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's share of a whole tensor, cut as another one is; a whole one where that is whole. No collective."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    return cut(tensor.detach(), like.device_mesh, like.placements)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its share, or all of it; the same memory. No collective."""
    held = tensor.detach()
    return held.to_local() if isinstance(held, DTensor) else held


def moment_of(held: Tensor, parameter: Tensor) -> Tensor:
    """A copy of what an optimiser held here for a parameter, on its device; a share, if the parameter is one."""
    own = held.to(parameter.device, copy=True)
    if not isinstance(parameter, DTensor) or own.shape != local(parameter).shape:
        return own
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(own, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride())


def shares_of(module: torch.nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole ``state_dict`` as ``module.load_state_dict`` takes it: cut as the module's own tensors are."""
    own = module.state_dict()
    return {name: share_of(tensor, own[name]) if name in own else tensor for name, tensor in state.items()}
