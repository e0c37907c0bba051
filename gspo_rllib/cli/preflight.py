"""Asks every node of a cluster, before the first actor, whether a run could go on there; says where not, and why."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli import node_look
from gspo_rllib.cli.node_look import Answer, Question
from gspo_rllib.errors import SettingError, described

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

NODES_S = 600.0
"""Seconds in which the nodes that a job asked for must have joined its cluster."""
ANSWER_S = 45.0
"""Seconds in which every node must have answered; a worker process that imports nothing of ours starts in a few."""
_MOST_NAMED = 6


def preflight(config: AlgorithmConfig, *, storage: str | Path | None, always: bool = False) -> None:
    """Refuses a cluster in which a node could not do its part.

    Every node must have the same versions, read the same model, and see and write the same storage. Paths in the config
    become absolute: relative ones mean something else in another node's processes.

    Args:
        config: The algorithm's config; its paths are changed.
        storage: Where results will be written; None where nothing is.
        always: Ask a single node, too.

    Raises:
        SettingError: Names each node that cannot take part, the path, and what to do; or says what resources are
            missing.
    """
    import ray

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2 and not always:
        return
    make_absolute(config)
    with _marked(storage) as (folder, marker, written):
        question = Question(tuple(model_folders(config)), folder, marker, written)
        here = node_look.look(question)
        problems = [f"this node: {text}" for text in here.problems]
        answers, silent = _ask(nodes, question)
        for node, why in silent.items():
            problems.append(f"node {_name(nodes[node])}: {why}")
        for node, answer in answers.items():
            named = f"node {_name(nodes[node])} ({answer.host})"
            problems += [f"{named}: {text}" for text in [*answer.problems, *differences(here, answer)]]
            if answer.left is not None and folder is not None and not (Path(folder) / answer.left).is_file():
                problems.append(
                    f"{named}: storage {folder} is another folder there: what it writes is not seen here. Use storage "
                    "that every node mounts at the same path (run.storage, --storage)"
                )
    if problems:
        more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise SettingError(
            f"{len(nodes)} nodes were asked, and this run cannot start on all of them: "
            f"{'; '.join(problems[:_MOST_NAMED])}{more}. Nothing was started."
        )
    _check_resources(config)


def wait_for_nodes(count: int) -> None:
    """Waits until the cluster has so many nodes.

    Raises:
        SettingError: It has not in time.
    """
    import ray

    deadline = time.monotonic() + NODES_S
    while (there := sum(node["Alive"] for node in ray.nodes())) < count:
        if time.monotonic() > deadline:
            raise SettingError(
                f"--min-nodes {count}: the cluster has {there} after {NODES_S:.0f} s. Look at what the others' "
                "`ray start` said, or ask for fewer."
            )
        time.sleep(1.0)


def make_absolute(config: AlgorithmConfig) -> None:
    """Replaces relative paths of local models in a config by absolute ones."""
    # The builder itself makes that of the policy absolute.
    if config.reference_path and os.path.isdir(config.reference_path):
        config.training(reference_path=os.path.abspath(config.reference_path))


def model_folders(config: AlgorithmConfig) -> list[str]:
    """Local folders of models that a config names; hub names are each node's own business."""
    named = [config.model_config["path"], config.reference_path]
    return [str(path) for path in dict.fromkeys(named) if path and os.path.isdir(path)]


def differences(here: Answer, there: Answer) -> list[str]:
    """What differs between two nodes that should be alike, each with a remedy.

    Example:
        >>> here = Answer("a", {"torch": "2.13", "vllm": None}, {"/m": "1"})
        >>> differences(here, Answer("b", {"torch": "2.11", "vllm": None}, {"/m": "1"}))
        ['torch is 2.11 (here 2.13). Install the same versions on every node']
        >>> differences(here, Answer("b", {"torch": "2.13", "vllm": None}, {"/m": "2"}))
        ['model /m is another one than here. Copy the model to every node anew, or put it on storage that all mount']
    """
    other = [
        f"{name} is {there.versions.get(name) or 'not installed'} (here {version or 'none'})"
        for name, version in here.versions.items()
        if there.versions.get(name) != version
    ]
    found = [f"{', '.join(other)}. Install the same versions on every node"] if other else []
    for folder, digest in there.digests.items():
        if folder in here.digests and digest != here.digests[folder]:
            found.append(
                f"model {folder} is another one than here. Copy the model to every node anew, or put it on storage "
                "that all mount"
            )
    return found


def _ask(nodes: Mapping[str, Any], question: Question) -> tuple[dict[str, Answer], dict[str, str]]:
    """The answer of every node, and why others gave none."""
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # By value, with the classes it needs: a node without this package answers, too.
    cloudpickle.register_pickle_by_value(node_look)
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(node_look.look)
        refs = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(question): node
            for node in nodes
        }
        ready, late = ray.wait(list(refs), num_returns=len(refs), timeout=ANSWER_S)
        answers, silent = {}, {}
        for ref in ready:
            try:
                answers[refs[ref]] = ray.get(ref)
            except Exception as error:  # noqa: BLE001, whatever it is, that node cannot be used
                first = described(error).splitlines()[0]
                silent[refs[ref]] = f"it could not be asked ({first}). See the logs of its raylet"
    finally:
        cloudpickle.unregister_pickle_by_value(node_look)
    for ref in late:
        ray.cancel(ref, force=True)
        silent[refs[ref]] = (
            f"it did not answer within {ANSWER_S:.0f} s. See that its Python starts and its disks and mounts answer"
        )
    return answers, silent


@contextlib.contextmanager
def _marked(storage: str | Path | None) -> Iterator[tuple[str | None, str, str]]:
    """The storage with a file in it that other nodes can look for; whatever they wrote beside it is removed."""
    if storage is None:
        yield None, "", ""
        return
    folder = Path(storage).expanduser().resolve()
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    marker, written = f"{node_look.MARKER}-{uuid.uuid4().hex}", uuid.uuid4().hex
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / marker).write_text(written, encoding="utf-8")
    except OSError as error:
        raise SettingError(
            f"storage {folder} cannot be written on this node ({error.strerror or error}). Give another with "
            "run.storage or --storage."
        ) from error
    try:
        yield str(folder), marker, written
    finally:
        for left in folder.glob(f"{marker}*"):
            left.unlink(missing_ok=True)
        _remove_empty(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    """A refused run leaves no folders behind."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']}, id {node['NodeID'][:8]}"


def _check_resources(config: AlgorithmConfig) -> None:
    from gspo_rllib.algorithms.policy_gradient.resources import check_schedulable

    check_schedulable(config, main_process=False)
