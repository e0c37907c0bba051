"""What people name where a policy is asked for: a checkpoint, or a model or an adapter on its own.

A run is none of these, but has checkpoints to choose from. All of it is told before any framework is imported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gspo_rllib.cli.resume import BEST, is_run
from gspo_rllib.errors import CheckpointError, ModelError, SettingError, shown
from gspo_rllib.model_files import ADAPTER_BASE, ADAPTER_CONFIG
from gspo_rllib.model_folder import is_missing_folder
from gspo_rllib.places import named_path


def model_alone(text: str, *, env: str | None) -> dict[str, Any] | None:
    """The model settings that play a model or an adapter that is no checkpoint; None for a checkpoint.

    Args:
        text: What was named: a Hugging Face folder, the folder of an adapter, or a hub name.
        env: The environment that was named, which a checkpoint would bring.

    Raises:
        SettingError: There is no environment to play it in.
        CheckpointError: It is a run.
        ModelError: An adapter does not say on which model it was trained.
    """
    folder = named_path(text)
    if (folder / "config.json").is_file():
        model: dict[str, Any] = {"path": str(folder)}
    elif (folder / ADAPTER_CONFIG).is_file():
        model = {"path": _base(folder), "lora": {"adapter": str(folder)}}
    elif folder.exists() or is_missing_folder(text):
        refuse_run(text)
        return None
    elif env is None:
        raise SettingError(
            f"{shown(text)}: there is no such folder. A checkpoint is what training wrote, e.g. "
            "results/RUN/checkpoints/best; a model of the hub is played by its name, with --env ID."
        )
    else:
        model = {"path": text}
    if env is None:
        raise SettingError(f"{shown(text)} is a model without an environment; name one with --env.")
    return model


def refuse_run(text: str) -> None:
    """Names the checkpoints of a run where one of them is asked for.

    Raises:
        CheckpointError: The folder is a run.
    """
    if not is_run(text):
        return
    folder = named_path(text) / "checkpoints"
    there = sorted(path.name for path in folder.glob("iteration_*"))[-1:]
    there = [name for name in (BEST, *there) if (folder / name).is_dir()]
    which = " or ".join(str(folder / name) for name in there)
    raise CheckpointError(
        f"{shown(text)} is a run, which has several policies. "
        + (f"Name a checkpoint of it: {which}." if which else "It has no checkpoint yet.")
    )


def _base(adapter: Path) -> str:
    said = [(ADAPTER_BASE, "path"), (ADAPTER_CONFIG, "base_model_name_or_path")]
    for file, key in said:
        if (adapter / file).is_file() and (base := json.loads((adapter / file).read_text("utf-8")).get(key)):
            return str(base)
    raise ModelError(
        f"adapter {str(adapter)!r}: it does not say on which model it was trained (base_model_name_or_path in its "
        f"{ADAPTER_CONFIG}). Write it there, or merge the two (peft: merge_and_unload) and name that folder."
    )
