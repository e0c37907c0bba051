"""Where a result came from: versions, the code in the current folder, the machine. No environment variable is written.

Nothing here imports a framework: versions are read off what is installed, and GPUs are asked for by ``nvidia-smi``,
which leaves none of their memory taken.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib import __version__
from gspo_rllib.secret_texts import without_secrets as without_secrets

if TYPE_CHECKING:
    from gspo_rllib.configs import Run

_TIMEOUT_S = 10.0


def run_record(run: Run, *, resumed_from: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What ``run.json`` holds.

    Args:
        run: The run that is about to start.
        resumed_from: The checkpoint and iteration it continues from; None for a new one.
    """
    from gspo_rllib.configs.declared import given, resolved
    from gspo_rllib.env_runners.engine_spec import chosen_engine

    config: dict[str, Any] = {}
    for name, value in resolved(run).items():
        *sections, key = name.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = without_secrets(value, is_secret="environs" in key)
    return {
        "name": run.name,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "resumed_from": resumed_from,
        "algorithm": run.config.algo_class.__name__,
        "engine": chosen_engine(run.config).name,
        "seed": run.config.seed,
        "config": config,
        "given": given(run),
        "versions": versions(),
        "git": git_state(),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it may use, as far as it is installed."""
    found = {"python": platform.python_version(), "gspo-rllib": __version__}
    try:
        required = importlib.metadata.requires("gspo-rllib") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return found
    for name in sorted({re.split(r"[^\w.-]", requirement)[0] for requirement in required}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_state(folder: str | Path = ".") -> dict[str, Any] | None:
    """The commit of the code in a folder and whether it was changed since; None where there is no git.

    Args:
        folder: Any folder of a working tree. Results are often written into it, so of what git does not track only
            Python files count as a change.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    unknown = _git(folder, "ls-files", "--others", "--exclude-standard", "--", ":/*.py")
    if commit is None or changed is None:
        return None
    return {"commit": commit, "dirty": bool(changed or unknown)}


def _git(folder: str | Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> dict[str, Any]:
    """System, processor, memory, and the GPUs with theirs."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return str(names[0]) if names else platform.machine()
    return platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if done.returncode == 0]
    return [
        {"name": name, "memory_gib": round(float(mib) / 1024, 1), "driver": driver}
        for name, mib, driver in (row for row in rows if len(row) == 3)
        if mib.replace(".", "").isdigit()
    ]
