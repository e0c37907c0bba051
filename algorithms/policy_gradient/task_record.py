"""What a checkpoint says of the tasks of its run, and what of that is otherwise where it goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.agents.tasks import Tasks
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.env_pool.task_set import TaskSet, task_set
from gspo_rllib.env_runners.settings import GroupSettings

if TYPE_CHECKING:
    from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig

FILE = "tasks.json"
"""Name of the file in a checkpoint's folder."""


def task_sets(config: PolicyGradientConfig, *, counted: Sequence[Any] | None = None) -> dict[str, TaskSet]:
    """The tasks of a run, as far as they are counted: of training, of each stage of its curriculum, of evaluation.

    Args:
        config: The run's config.
        counted: The env runners of this process: where they know that nothing is counted, no environment is made.
    """
    found = dict(_recorded_groups(config))
    if counted is not None and not any(getattr(runner, "num_tasks", None) for runner in counted):
        return found
    evaluation = config.get_evaluation_config_object() if config.evaluation_interval else None
    for name, tasks in [*_played("training", config), *(_played("evaluation", evaluation) if evaluation else ())]:
        if tasks is not None:
            found[name] = tasks
    return found


def _played(name: str, config: Any) -> Iterator[tuple[str, TaskSet | None]]:
    agent = AgentSettings.of(config)
    if agent.plays:
        tasks = Tasks(agent.tasks)
        yield name, None if tasks.count is None else TaskSet(tasks.count, tasks.digest())
        return
    yield name, task_set(config.env, config.env_config)
    for stage, changes in enumerate([] if config.in_evaluation else GroupSettings.of(config).curriculum):
        yield f"curriculum[{stage}]", task_set(config.env, {**(config.env_config or {}), **changes})


def _recorded_groups(config: PolicyGradientConfig) -> Iterator[tuple[str, TaskSet]]:
    path = config.settings(TrainingSettings).recorded_groups
    if path is None:
        return
    count, state = 0, hashlib.blake2b(digest_size=16)
    with Path(path).expanduser().open("rb") as file:
        for line in file:
            count += bool(line.strip())
            state.update(line)
    yield "recorded_groups", TaskSet(count, state.hexdigest(), what="groups")


def write_tasks(checkpoint: Path, tasks: Mapping[str, TaskSet]) -> None:
    """Writes the tasks of a run into its checkpoint, before the manifest.

    Args:
        checkpoint: The checkpoint's folder.
        tasks: What ``task_sets`` returns.
    """
    told = {name: dataclasses.asdict(one) for name, one in tasks.items()}
    (checkpoint / FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def changed_tasks(checkpoint: Path, tasks: Mapping[str, TaskSet]) -> str | None:
    """How the tasks of a run differ from those of the one that a checkpoint is of; None where they are not known to.

    Args:
        checkpoint: A verified checkpoint; an older one says nothing of its tasks.
        tasks: What ``task_sets`` returns.
    """
    file = checkpoint / FILE
    if not file.is_file():
        return None
    before = {name: TaskSet(**one) for name, one in json.loads(file.read_text(encoding="utf-8")).items()}
    changes = {name: tasks[name].change(before[name]) for name in before if name in tasks}
    return "; ".join(f"{name}: {change}" for name, change in changes.items() if change) or None
