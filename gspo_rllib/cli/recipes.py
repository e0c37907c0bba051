"""``gspo-rllib show`` and ``gspo-rllib cp``: a shipped config or study to read, or to start one of your own from."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from gspo_rllib.errors import SettingError, shown
from gspo_rllib.places import named_path
from gspo_rllib.studies import shipped_studies, shipped_study


def add_parser(commands: Any) -> None:
    """Adds the two sub-commands."""
    text = "Prints a config as it is written, comments included."
    parser = commands.add_parser("show", help="print a shipped config", description=text)
    parser.add_argument("name", metavar="NAME", help="one of `gspo-rllib list`, or a file")
    parser.set_defaults(run=show)
    text = "Copies a config to a new file, to be changed and trained: gspo-rllib train FILE."
    parser = commands.add_parser("cp", help="copy a shipped config to a new file", description=text)
    parser.add_argument("name", metavar="NAME", help="one of `gspo-rllib list`, or a file")
    parser.add_argument("file", metavar="FILE", help="new file, or a folder to put NAME.yaml into")
    parser.set_defaults(run=copy)


def show(arguments: argparse.Namespace) -> int:
    """Prints the file."""
    file = _file(arguments.name)
    try:
        print(file.read_text(encoding="utf-8"), end="")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"show: {shown(str(file))} is no text that can be read: {error}.") from error
    return 0


def copy(arguments: argparse.Namespace) -> int:
    """Writes the new file.

    Raises:
        SettingError: There is such a file already, or no folder to put it into.
    """
    source, target = _file(arguments.name), named_path(arguments.file)
    if os.path.isdir(target):
        target /= source.name
    try:
        with target.open("x", encoding="utf-8", errors="surrogateescape") as file:
            file.write(source.read_text(encoding="utf-8", errors="surrogateescape"))
    except FileExistsError:
        raise SettingError(f"cp: {str(target)!r} exists, and is not overwritten; name a new file.") from None
    except OSError as error:
        raise SettingError(f"cp: {shown(str(target))} cannot be written: {error.strerror}.") from error
    is_study = source in shipped_studies().values()
    commands = ["study"] if is_study else ["validate", "train"]
    print(f"{target}: change it, then {' and '.join(f'`gspo-rllib {command} {target}`' for command in commands)}")
    return 0


def _file(name: str) -> Path:
    from gspo_rllib.configs.runs import find_config

    return shipped_study(name) or find_config(name)
