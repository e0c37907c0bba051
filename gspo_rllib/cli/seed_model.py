"""A config whose model is not made yet: which command makes it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from gspo_rllib.errors import SettingError

if TYPE_CHECKING:
    from gspo_rllib.configs import Run

_COMMAND = "gspo-rllib warmstart"


def check_model_is_there(run: Run, source: str | Path) -> None:
    """Refuses a run whose model is a folder that is not there, before anything is imported or asked for.

    Args:
        run: What is to be trained.
        source: Name or path of its config; a comment in it may hold the command that makes the model.

    Raises:
        SettingError: With that command, or one that is made from the run's environment.
    """
    from gspo_rllib.model_folder import is_missing_folder

    given = run.config._model_config
    path = given.get("path") if isinstance(given, dict) else None
    if path is None or not is_missing_folder(str(path)):
        return
    command = _written(source, str(path)) or _made(run, str(path))
    raise SettingError(f"model path {str(path)!r} is not there yet; make it with `{command}`, then run this again.")


def _written(source: str | Path, path: str) -> str | None:
    from gspo_rllib.configs.runs import find_config

    written = find_config(source).read_text("utf-8").splitlines()
    lines = [line.lstrip("# ").rstrip() for line in written if line.startswith("#")]
    return next((line for line in lines if line.startswith(_COMMAND) and path in line.split()), None)


def _made(run: Run, path: str) -> str:
    env = run.config.env if isinstance(run.config.env, str) else "ENV"
    settings = [shlex.quote(f"{key}={value}") for key, value in (run.config.env_config or {}).items()]
    return " ".join([_COMMAND, env, shlex.quote(path), *(["--env-config", *settings] if settings else [])])
