"""What a sweep writes down of its own command, so that it can go on after it was interrupted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from gspo_rllib.cli.sweep_points import Point
from gspo_rllib.errors import CheckpointError, SettingError

_FILE, _CONFIG = "sweep.json", "sweep.yaml"
_KEPT = ("samples", "metric", "scheduler", "trials_at_once")
_RUN = "run.json"


def write(folder: Path, arguments: argparse.Namespace) -> None:
    """Writes the command into the sweep's folder, and the config as it was.

    Args:
        folder: The sweep's folder.
        arguments: The command, parsed.
    """
    from gspo_rllib.cli.train import overrides_of
    from gspo_rllib.configs.runs import find_config

    (folder / _CONFIG).write_bytes(find_config(arguments.config).read_bytes())
    kept = {name: getattr(arguments, name) for name in _KEPT} | {"overrides": overrides_of(arguments)}
    (folder / _FILE).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def arguments_of(given: argparse.Namespace) -> argparse.Namespace:
    """The command of the sweep that ``--resume`` names, as it was given then.

    Args:
        given: The command that continues it.

    Raises:
        CheckpointError: The folder holds no sweep that could go on.
        SettingError: Something is given that would change the sweep.
    """
    folder = Path(given.resume).expanduser()
    if not all((folder / name).is_file() for name in (_FILE, _CONFIG)) or not (folder / "tuner.pkl").is_file():
        raise CheckpointError(
            f"--resume {given.resume}: no sweep that could go on is in that folder. Give what `gspo-rllib sweep` named "
            "as its results; a single run goes on with `gspo-rllib train --resume`."
        )
    from gspo_rllib.cli.train import overrides_of

    options = [
        f"--{name.replace('_', '-')}" for name in ("samples", "scheduler", "trials_at_once") if vars(given)[name]
    ]
    changed = [*([given.config] if given.config else []), *overrides_of(given), *options]
    if changed:
        raise SettingError(
            f"sweep --resume goes on with the settings it has; {changed[0]!r} would change them. Leave it out, or "
            "start a new sweep."
        )
    kept = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return argparse.Namespace(**{**vars(given), **kept, "config": str(folder / _CONFIG)})


def check_same(folder: Path, trials: Sequence[Point]) -> None:
    """Refuses a sweep whose trials are not those it began with.

    Args:
        folder: The sweep's folder.
        trials: What its command means now.

    Raises:
        CheckpointError: They differ.
    """
    before = json.loads((folder / _RUN).read_text(encoding="utf-8")).get("trials")
    now = [point.label for point in trials]
    if before != now:
        raise CheckpointError(f"--resume {folder}: it began with the trials {before}, and its command now means {now}.")
