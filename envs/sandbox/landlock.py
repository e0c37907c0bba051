"""CPython confined by Landlock and seccomp through the ``sandlock`` package: no root, no namespaces needed.

The process reads the interpreter's own library and nothing else, writes nowhere, has no network, and cannot start
another process or signal one. Landlock does not govern who asks for a file's size, or whether it exists. Sandlock
answers that itself for a process with a root folder of its own, so it gets one, in which there is what it may read.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gspo_rllib.envs.sandbox.cpython import CPythonSandbox, Process, executable, interpreter, readable_paths
from gspo_rllib.envs.sandbox.protocol import SandboxLimits
from gspo_rllib.envs.sandbox.system_calls import is_supported
from gspo_rllib.errors import EnvError


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot be used here, or None."""
    if sys.platform != "linux":
        return f"sandlock needs Linux, this is {sys.platform}"
    if not is_supported(platform.machine()):
        return f"sandlock is supported on x86_64 and aarch64, this is {platform.machine()}"
    if find_spec("sandlock") is None:
        return "sandlock is not installed"
    import sandlock

    have, need = sandlock.landlock_abi_version(), sandlock.min_landlock_abi()
    return None if have >= need else f"sandlock needs Landlock ABI {need} (Linux 6.12), this kernel has {have}"


@functools.cache
def _view() -> dict[str, Any]:
    """What a process sees of the file system, as sandlock's settings: the folder of the dynamic linker is its root.

    Sandlock starts nothing but what lies in the root itself. The folders that it shows there are seen from then on, so
    the linker is what starts the interpreter.

    Raises:
        EnvError: This process has no dynamic linker.
    """
    mapped = (line.split()[-1] for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())
    linker = next((path for path in mapped if os.path.basename(path).startswith("ld-")), None)
    if linker is None:
        raise EnvError(
            f"sandlock needs a dynamically linked interpreter, {executable()} is none. Choose backend='monty'."
        )
    folders = [*filter(os.path.isdir, readable_paths()), os.path.dirname(executable())]
    return {
        "chroot": os.path.dirname(linker),
        "fs_mount_ro": {folder: os.path.realpath(folder) for folder in folders},
        "fs_readable": [f"/{os.path.basename(linker)}", executable(), *folders],
    }


def _launch(limits: SandboxLimits) -> Process:
    import sandlock
    from sandlock.sandbox import StdioMode

    seen = _view()
    policy = sandlock.Sandbox(
        **seen, max_processes=1, no_coredump=True, clean_env=True, env={"PYTHONHASHSEED": "0"}, cwd="/"
    )
    try:
        process: Process = policy.popen(
            [seen["fs_readable"][0], *interpreter(limits)],
            stdin=StdioMode.PIPED,
            stdout=StdioMode.PIPED,
            stderr=StdioMode.NULL,
        )
    except (RuntimeError, OSError, sandlock.SandlockError) as error:
        raise EnvError(f"sandlock could not start a confined process: {error}. Choose backend='monty'.") from error
    return process


def open_landlock(limits: SandboxLimits) -> CPythonSandbox:
    """A session of full CPython; 30 to 150 ms to start, 0.1 ms a run.

    Raises:
        EnvError: The package is missing, the kernel is too old, or the process does not start.
    """
    if reason := unavailable():
        raise EnvError(f"{reason}. Install it (pip install 'gspo-rllib[sandbox]'), or choose backend='monty'.")
    return CPythonSandbox("sandlock", limits, _launch)
