"""Writes what RLlib calls a checkpointable as data, and reads it back: one folder per component, in RLlib's layout.

RLlib's own ``save_to_path`` and ``restore_from_path`` do the same walk and pickle what they find.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.tune.utils.file_transfer import sync_dir_between_nodes

from gspo_rllib.checkpoints.codec import STATE, read_tree, write_tree
from gspo_rllib.errors import CheckpointError, described

WRITES_ITSELF = "writes_itself"
"""Attribute of a component whose own ``save_to_path`` and ``restore_from_path`` are data already."""

WRITES_TOGETHER = "writes_together"
"""Attribute of a component that is saved together with others of its kind: makes a context around each writing."""

GIVES_STATE = "gives_state"
"""Attribute of a component: False where another one of its kind has the state of all. There, all are asked at once."""


BY_TENSOR = "state_by_tensor"
"""Attribute of a component whose state is too large for one process: makes a context in which it holds shares, and
which gives what gathers one of them (None where none are held)."""


def save_component(
    component: Any, folder: pathlib.Path, *, writing: Callable[[], Any] = contextlib.nullcontext
) -> None:
    """Writes the state of a component and of all its parts.

    Args:
        component: A ``Checkpointable`` of RLlib's, or the manager of remote ones, of which the first writes.
        folder: Where to; made if missing.
        writing: Around each writing: what a component has as ``WRITES_TOGETHER``, for its parts too.

    Raises:
        CheckpointError: A state is no data.
        RayError: A remote component is lost.
    """
    if isinstance(component, FaultTolerantActorManager):
        _save_remote(component, folder)
        return
    component = _unwrapped(component)
    writing = getattr(component, WRITES_TOGETHER, writing)
    with writing():
        folder.mkdir(parents=True, exist_ok=True)
    if getattr(component, WRITES_ITSELF, False):
        component.save_to_path(folder)
        return
    parts = component.get_checkpointable_components()
    with getattr(component, BY_TENSOR, contextlib.nullcontext)() as gather:
        state = component.get_state(not_components=[name for name, _ in parts])
        with writing():
            write_tree(folder, state, gather=gather)
    for name, part in parts:
        save_component(part, folder / name, writing=writing)


def restore_component(component: Any, folder: pathlib.Path, *, only: str | None = None) -> None:
    """Reads what ``save_component`` wrote: the parts first, then what is the component's own.

    A part that has no folder keeps what it has, as in RLlib.

    Args:
        component: As there; of remote ones, all read.
        folder: The component's folder; with ``only``, that of the part.
        only: Path of the one part to restore, its names joined by ``/``.

    Raises:
        CheckpointError: There is no state, or it is damaged.
        RayError: A remote component is lost.
    """
    if isinstance(component, FaultTolerantActorManager):
        _restore_remote(component, folder, only)
        return
    component = _unwrapped(component)
    if getattr(component, WRITES_ITSELF, False):
        component.restore_from_path(folder)
        return
    parts = component.get_checkpointable_components()
    if only is not None:
        name, _, rest = only.partition("/")
        found = [part for own, part in parts if own == name]
        if not found:
            raise CheckpointError(
                f"restore: there is no component {name!r} here; there are {', '.join(own for own, _ in parts)}."
            )
        restore_component(found[0], folder, only=rest or None)
        return
    # Whoever keeps shares copies them out of the whole.
    mapped = getattr(component, "is_sharded", False)
    state = read_tree(folder, mapped=mapped) if (folder / f"{STATE}.json").is_file() or not parts else None
    if state is None:
        raise CheckpointError(f"restore: {folder} holds no {STATE}.json. Give a checkpoint, or the folder of its part.")
    for name, part in parts:
        if (folder / name).is_dir():
            restore_component(part, folder / name)
    component.set_state(state)


def _unwrapped(component: Any) -> Any:
    """A module itself: what several learners put around theirs to exchange gradients has no state of its own."""
    return component.unwrapped() if hasattr(component, "unwrapped") else component


def _save_remote(manager: Any, folder: pathlib.Path) -> None:
    here, remote = ray.util.get_node_ip_address(), manager.healthy_actor_ids()[:1]
    if not remote:
        raise CheckpointError(f"save: none of the {manager.num_actors()} remote {folder.name}s is alive to be saved.")

    def save(component: Any) -> tuple[str, str] | None:
        if not getattr(component, GIVES_STATE, True):
            # It takes part in what gathers the state; what it writes is no state.
            with tempfile.TemporaryDirectory() as nowhere:
                save_component(component, pathlib.Path(nowhere))
            return None
        there = ray.util.get_node_ip_address()
        if there == here:
            save_component(component, folder)
            return None
        elsewhere = tempfile.mkdtemp()
        save_component(component, pathlib.Path(elsewhere))
        return there, elsewhere

    (written,) = _on_actors(manager, save, remote)
    if written is not None:
        there, elsewhere = written
        sync_dir_between_nodes(there, elsewhere, here, str(folder))
        _on_actors(manager, lambda _: _remove(elsewhere), remote)


def _restore_remote(manager: Any, folder: pathlib.Path, only: str | None) -> None:
    here = ray.util.get_node_ip_address()

    def restore(component: Any) -> None:
        there = ray.util.get_node_ip_address()
        if there == here:
            restore_component(component, folder, only=only)
            return
        with tempfile.TemporaryDirectory() as copy:
            sync_dir_between_nodes(here, str(folder), there, copy)
            restore_component(component, pathlib.Path(copy), only=only)

    try:
        _on_actors(manager, restore, manager.healthy_actor_ids())
    except OSError as error:
        raise CheckpointError(f"restore: {folder} could not be restored ({described(error)}).") from error


def _on_actors(manager: Any, function: Callable[[Any], Any], actors: list[int]) -> list[Any]:
    """What each actor answers.

    RLlib does not look at the answers, so a learner with a full disk would be saved without its weights; and it takes
    an actor in which anything is raised out of service, for good. So what is raised there comes back as an answer.
    """

    def answer(component: Any) -> Any:
        try:
            return function(component)
        except Exception as error:  # noqa: BLE001, of any class: it is raised again where it can be answered for
            return _Raised(described(error, 300), isinstance(error, CheckpointError), str(error))

    answers = []
    for result in manager.foreach_actor(answer, remote_actor_ids=actors):
        found = result.get()
        if not result.ok:
            raise found
        if isinstance(found, _Raised):
            raise CheckpointError(found.message) if found.is_ours else OSError(f"in its process: {found.text}")
        answers.append(found)
    return answers


@dataclasses.dataclass(frozen=True)
class _Raised:
    """What an actor's function raised."""

    text: str
    is_ours: bool
    message: str


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
