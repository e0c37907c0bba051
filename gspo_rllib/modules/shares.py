"""Loading a model as shares: each process keeps its part of every tensor, and has one whole tensor at a time.

transformers builds a model without storage and fills in one tensor after the other. Here each is cut as soon as it is
there, before the next one is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from gspo_rllib.errors import ModelError
from gspo_rllib.freed_memory import return_large_blocks

_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"
"""transformers' variable; without it threads read ahead, until the whole model is in memory."""

_mesh: ContextVar[DeviceMesh | None] = ContextVar("mesh", default=None)


def mesh_of_all(device: torch.device | str) -> DeviceMesh:
    """All processes of torch's group, which compute on this kind of device."""
    return init_device_mesh(torch.device(device).type, (distributed.get_world_size(),))


@contextmanager
def loaded_as_shares(mesh: DeviceMesh | None) -> Iterator[None]:
    """Models that are loaded inside the block (``cut_on_arrival``) are shares; whole ones with None."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def loads_shares() -> bool:
    """Whether models are loaded as shares here."""
    return _mesh.get() is not None


@contextmanager
def cut_on_arrival() -> Iterator[list[str]]:
    """Around what loads a model; does nothing where models are loaded whole.

    Yields:
        What arrived with a number that is not finite, in words. What the folder lacks is among it, if it had some
        before transformers made it up.
    """
    mesh, not_finite = _mesh.get(), list[str]()
    if mesh is None:
        yield not_finite
        return

    def arrive(_: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta or isinstance(parameter, DTensor):
            return None
        # A sum, which takes no memory of the tensor's size; float64 has room for any number of float32's largest.
        if not bool(parameter.detach().sum(dtype=torch.float64).isfinite()):
            not_finite.append(f"a {name} of shape {tuple(parameter.shape)}")
        own = torch.nn.Parameter(cut(parameter.detach(), mesh), requires_grad=parameter.requires_grad)
        # transformers notes there what it need not make up.
        own.__dict__.update(parameter.__dict__)
        return own

    # Here and in every pass, which gathers layers one after the other.
    return_large_blocks()
    before = os.environ.get(_ONE_BY_ONE)
    os.environ[_ONE_BY_ONE] = "1"
    handle = register_module_parameter_registration_hook(arrive)
    try:
        yield not_finite
    finally:
        handle.remove()
        if before is None:
            del os.environ[_ONE_BY_ONE]
        else:
            os.environ[_ONE_BY_ONE] = before


def check_arrived(not_finite: Sequence[str], source: object) -> None:
    """Refuses what ``cut_on_arrival`` told of, once it is known that the folder lacks nothing.

    Args:
        not_finite: What it told of.
        source: What was loaded, for the error.

    Raises:
        ModelError: There is any.
    """
    if not_finite:
        raise ModelError(
            f"model path {str(source)!r}: {not_finite[0]} holds numbers that are not finite, so there is no policy to "
            "train. Download or save the model again."
        )


def cut(tensor: Tensor, mesh: DeviceMesh, placements: Sequence[Placement] = (Shard(0),)) -> Tensor:
    """This process's share of a tensor that is the same in all, cut as ``fully_shard`` would. No collective."""
    placed = distribute_tensor(tensor, mesh, placements, src_data_rank=None)
    is_part = placed.to_local().untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    # Where it is, a copy, so that the whole one can go.
    return placed.clone() if is_part else placed
