"""``gspo-rllib replay``: plays a recorded trajectory again and says whether every id agrees, or which first does not.

Everything random is a function of names, so what a run sampled follows from its seed, the name of the group and the
weights. Those are a checkpoint's; the first ones are the model's that the run began with.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.policy_source import TRUST_NOTE, add_trust_pickle
from gspo_rllib.errors import CheckpointError, RecordError, SettingError
from gspo_rllib.places import named_path

if TYPE_CHECKING:
    from gspo_rllib.algorithms import GSPOConfig
    from gspo_rllib.trajectory_table import Row


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser(
        "replay", help="play a recorded trajectory again and compare every id", description=__doc__
    )
    parser.add_argument(
        "folder", metavar="RUN", help="a run's folder, with what it kept or recorded and its checkpoints"
    )
    parser.add_argument("trajectory", metavar="GROUP/INDEX", help="as `gspo-rllib view` names it, e.g. 17/3")
    parser.add_argument("--iteration", type=int, metavar="N", help="where several have a group of that name")
    parser.add_argument(
        "--trust", metavar="NAME", action="append", default=[], help="as for rollout: code that the checkpoint may name"
    )
    add_trust_pickle(parser)
    parser.epilog = TRUST_NOTE
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plays and compares: 0 where all agrees, 1 where something does not."""
    from gspo_rllib.view.agreement import compare

    folder = named_path(arguments.folder)
    recorded = find(folder, arguments.trajectory, iteration=arguments.iteration)
    version = version_of(recorded, arguments.trajectory)
    place, config = _policy(folder, version, arguments)
    replayed = play_again(config, recorded, version=version)
    found = compare(recorded, replayed)
    at = f" of iteration {recorded['iteration']}" if recorded["iteration"] else ""
    print(f"{arguments.trajectory}{at}, weights version {version} of {place}")
    if found.difference is not None:
        print(f"differs: {found.difference}")
        return 1
    gap = "not recorded" if found.gap is None else f"the same to {found.gap:.2g} nats" if found.gap else "the same"
    print(f"every id agrees: {found.num_turns} turns, {found.num_ids} sampled ids; log-probabilities {gap}")
    return 0


def find(folder: Path, name: str, *, iteration: int | None) -> Row:
    """The trajectory of a name among those that a run kept or recorded.

    Args:
        folder: The run's folder.
        name: ``GROUP/INDEX``.
        iteration: The iteration it was sampled for; None where the name is enough.

    Raises:
        SettingError: The name is none.
        RecordError: There is no such trajectory, or more than one.
    """
    from gspo_rllib.view.sources import is_run, recorded_of_run, rows_of_run

    group, slash, index = name.rpartition("/")
    if not slash or not group or not (index.isascii() and index.isdigit()):
        raise SettingError(f"GROUP/INDEX is {name!r}; it must be a group and a number, e.g. 17/3.")
    if not is_run(folder):
        raise RecordError(f"{str(folder)!r} is no run's folder: it has no result.json.")

    def named(rows: list[Row]) -> list[Row]:
        same = [row for row in rows if row["group_id"] == group and row["index"] == int(index)]
        return [row for row in same if iteration is None or row["iteration"] == iteration]

    rows = rows_of_run(folder)
    same = named(rows)
    if not same:
        recorded = recorded_of_run(folder)  # all that it sampled, of which it keeps a few
        rows, same = [*rows, *recorded], named(recorded)
    if not same:
        kept = list(dict.fromkeys(row["group_id"] for row in rows))
        names = ", ".join(kept[:12]) + (", …" if len(kept) > 12 else "")
        where = "" if iteration is None else f" of iteration {iteration}"
        raise RecordError(
            f"{folder} has no trajectory {name}{where}; its groups are {names or 'none'}. Every one is recorded with "
            "run.record_groups=true, a few with reporting.keep_trajectories."
        )
    if len(same) > 1:
        iterations = ", ".join(str(row["iteration"]) for row in same)
        raise RecordError(f"{folder} has {name} {len(same)} times, in iterations {iterations}; say which: --iteration.")
    return same[0]


def version_of(row: Row, name: str) -> int:
    """The one weights version that sampled a trajectory.

    Raises:
        RecordError: It was several, or nobody knows.
    """
    versions = {version for turn in row["turns"] for version in (turn["token_versions"] or [turn["version"]])}
    if len(versions) > 1:
        raise RecordError(
            f"{name} was sampled by weights versions {', '.join(map(str, sorted(versions)))}, which changed while it "
            "was played (training.max_staleness): no one checkpoint plays it again."
        )
    if versions <= {None}:
        raise RecordError(f"{name} does not say which weights version sampled it.")
    return int(versions.pop())


def play_again(config: GSPOConfig, recorded: Row, *, version: int) -> Row:
    """Plays the group of a recorded trajectory as the run did; returns the same member of it.

    Args:
        config: The run's, with the path of the weights that sampled it.
        recorded: The trajectory.
        version: What to call the weights.

    Raises:
        SettingError: What plays it is no function of names.
        RecordError: The group could not be completed.
    """
    from gspo_rllib.algorithms.policy_gradient.resources import main_process_cpus
    from gspo_rllib.cli.policy_source import made_runner
    from gspo_rllib.cli.quiet import hush
    from gspo_rllib.trajectory_table import row_of
    from gspo_rllib.types import GROUP

    if config.seed is None:
        raise SettingError("the run had no seed (debugging.seed), so nothing says what it would sample again.")
    if config.play is None and config.env is None:
        raise SettingError("the run's trajectories were played by a harness outside, which cannot be asked again.")
    hush(config)
    # Those of whoever played it.
    num_cpus = config.num_cpus_per_env_runner if config.num_env_runners else main_process_cpus(config)
    config.adapter_sync = None  # the engine gets the whole model from here
    config.evaluation(evaluation_interval=None, evaluation_num_env_runners=0)
    config.env_runners(num_env_runners=0).learners(num_learners=0, num_gpus_per_learner=0, sharding="none")
    config.validate()
    with made_runner(config, num_cpus=num_cpus, version=version) as runner:
        episodes = runner.sample(group_ids=[recorded["group_id"]])
        errors = runner.last_errors()
    member = next((e for e in episodes if e.custom_data[GROUP].index == recorded["index"]), None)
    if member is None:
        raise RecordError(
            f"group {recorded['group_id']} could not be played to its end: {'; '.join(errors) or 'no errors'}"
        )
    return row_of(member, iteration=recorded["iteration"])


def _policy(folder: Path, version: int, arguments: argparse.Namespace) -> tuple[str, GSPOConfig]:
    """Where the weights of a version are, in words, and the config to play with them."""
    from gspo_rllib import checkpoints
    from gspo_rllib.algorithms import GSPOConfig
    from gspo_rllib.cli.policy_source import saved_state
    from gspo_rllib.configs import load_run

    record = _record(folder)
    found: dict[int, Path] = {}
    resumed = (record.get("resumed_from") or {}).get("checkpoint")
    own = [*sorted((folder / "checkpoints").glob("[!.]*")), *sorted(folder.glob("checkpoint_*"))]  # a trial's, of Tune
    for checkpoint in [*own, *([Path(resumed)] if resumed else [])]:
        try:
            whole = checkpoints.verify(checkpoint)
        except CheckpointError:
            continue
        found.setdefault(checkpoints.weights_version(whole), whole)
    if version in found:
        config: GSPOConfig = GSPOConfig.from_state(saved_state(arguments, found[version]))
        where = f"checkpoint {found[version].name}"
    elif version == 0 and not resumed and (folder / "config.yaml").is_file():
        config, where = load_run(folder / "config.yaml").config, "the model that the run began with"
    else:
        there = ", ".join(map(str, sorted(found))) or "none"
        raise CheckpointError(
            f"{folder} has no checkpoint of weights version {version}, but of {there}. A run with "
            "run.checkpoint_every=1 keeps every version."
        )
    if config.engine is None and record.get("engine"):
        config.generation(engine=record["engine"])
    return where, config


def _record(folder: Path) -> dict[str, Any]:
    """How a run was started; of a trial, its sweep."""
    file = next((file for file in (folder / "run.json", folder.parent / "run.json") if file.is_file()), None)
    if file is None:
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
