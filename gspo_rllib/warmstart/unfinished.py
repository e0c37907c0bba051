"""The folder of a warm start that is not finished: the best model so far, and what it takes to go on.

It stands beside the folder that was asked for, with ``.partial`` behind its name, and takes its place only once it is
finished, or out of time. Every file in it is replaced in one move, so it can be read, copied or gone on from at any
time. One that ran out of time before its target keeps its state where it was asked for, and is gone on from as well.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gspo_rllib.errors import SettingError, described
from gspo_rllib.places import written_whole

REPORT_NAME = "warmstart.json"
STATE_NAME = "warmstart_state.pt"
STATE_FORMAT = 2
"""Counts up whenever what is saved changes its form, `Progress` included."""


class Unfinished:
    """Reads and writes the folder of a warm start that is not finished.

    Args:
        out: The folder that was asked for.
        settings: What a warm start must have in common with the one that began, to go on with its state.

    Attributes:
        folder: Where the model is built and kept.
        state: What one that was interrupted, or ended short of its target, left to go on from; None for nothing.

    Raises:
        SettingError: ``out`` holds something else than a warm start, or the interrupted one had other settings, was
            begun by another version, or left a state that cannot be read.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.folder = out.with_name(out.name + ".partial")
        self._out = out
        self._settings = json.loads(json.dumps(settings, default=str))
        _check_replaceable(out)
        self.state = self._load()
        if self.state is None:
            # What an earlier one left without a state was never begun in earnest.
            shutil.rmtree(self.folder, ignore_errors=True)
            self.state = self._go_on_from_short()

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Writes what it takes to go on: tensors, numbers and strings, in dicts and lists."""
        with written_whole(self.folder / STATE_NAME) as new:
            torch.save({"format": STATE_FORMAT, "settings": self._settings, **state}, new)

    def publish(self, report: Mapping[str, Any], *, reached: bool) -> None:
        """Writes the report and puts the folder where it was asked for.

        Args:
            report: What to write.
            reached: Whether the target was; if not, the state stays.
        """
        if reached:
            (self.folder / STATE_NAME).unlink(missing_ok=True)
        (self.folder / REPORT_NAME).write_text(json.dumps(report, indent=2, default=str) + "\n")
        replaced = self._out.with_name(self._out.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if self._out.exists():
            self._out.rename(replaced)
        self.folder.rename(self._out)
        shutil.rmtree(replaced, ignore_errors=True)

    def _go_on_from_short(self) -> dict[str, Any] | None:
        """The state, copied, of one that ended short of its target with these settings; None: others begin anew."""
        if not (self._out / STATE_NAME).is_file() or self._read(self._out)[1]:
            return None
        shutil.copytree(self._out, self.folder)
        return self._load()

    def _load(self) -> dict[str, Any] | None:
        if not (self.folder / STATE_NAME).is_file():
            return None
        state, unfit = self._read(self.folder)
        if unfit:
            raise SettingError(
                f"{str(self.folder)!r} holds an interrupted warm start {unfit} to go on with it, remove that folder to "
                "start anew, or choose another `out`."
            )
        return state

    def _read(self, folder: Path) -> tuple[dict[str, Any], str]:
        """A state; and, where it cannot be gone on with, why not and what to do."""
        try:
            state: dict[str, Any] = torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True)
            form, begun = state.pop("format", 1), state.pop("settings")
        except Exception as error:  # noqa: BLE001  # what torch raises for any other file has no class in common
            return {}, f"whose state cannot be read ({described(error, 100)}). Put back {STATE_NAME} as it was"
        if form != STATE_FORMAT:
            return {}, f"of another version (format {form}, here {STATE_FORMAT}). Use that version"
        changed = [
            f"{name}={begun.get(name)!r} -> {new!r}" for name, new in self._settings.items() if begun.get(name) != new
        ]
        return state, f"with other settings ({', '.join(changed)}). Give the same ones" if changed else ""


def _check_replaceable(folder: Path) -> None:
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not (folder / REPORT_NAME).is_file():
        raise SettingError(
            f"out={str(folder)!r} exists and is not an earlier warm start (it has no {REPORT_NAME}), so it is not "
            "replaced. Choose a new folder, or remove it."
        )
