"""A config whose model is not made yet: which command makes it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.errors import SettingError

if TYPE_CHECKING:
    from gspo_rllib.configs.runs import Run, Sections

_COMMAND = "gspo-rllib warmstart"


def load_with_model(source: str | Path, overrides: Sequence[str]) -> Run:
    """Loads a config whose model must be there.

    A missing one is told before any framework is loaded, which takes ten seconds.

    Args:
        source: Name or path of the config; a comment in it may hold the command that makes the model.
        overrides: As for ``load_run``.

    Raises:
        SettingError: The model is a folder that is not there, with the command that makes it; or as of ``load_run``.
    """
    from gspo_rllib.configs import load_run
    from gspo_rllib.configs.runs import apply_override, find_config, read_sections

    sections = read_sections(find_config(source))
    for override in overrides:
        apply_override(sections, override)
    _check_model(sections, source)
    return load_run(source, overrides)


def _check_model(sections: Sections, source: str | Path) -> None:
    from gspo_rllib.model_folder import is_missing_folder

    given = sections.get("rl_module", {}).get("model_config")
    path = given.get("path") if isinstance(given, dict) else None
    if (
        not path
        or "://" in str(path)
        or os.path.isfile(os.path.expanduser(str(path)))
        or not is_missing_folder(str(path))
    ):
        return  # what no warm start could make is refused with the rest
    command = _written(source, str(path)) or _made(sections.get("environment", {}), str(path))
    raise SettingError(f"model path {str(path)!r} is not there yet; make it with `{command}`, then run this again.")


def _written(source: str | Path, path: str) -> str | None:
    from gspo_rllib.configs.runs import find_config

    written = find_config(source).read_text("utf-8").splitlines()
    lines = [line.lstrip("# ").rstrip() for line in written if line.startswith("#")]
    return next((line for line in lines if line.startswith(_COMMAND) and path in line.split()), None)


def _made(environment: dict[str, Any], path: str) -> str:
    env, env_config = environment.get("env"), environment.get("env_config")
    settings = [
        shlex.quote(f"{key}={value}") for key, value in (env_config if isinstance(env_config, dict) else {}).items()
    ]
    words = [_COMMAND, shlex.quote(str(env)) if env else "ENV", shlex.quote(path)]
    return " ".join([*words, *(["--env-config", *settings] if settings else [])])
