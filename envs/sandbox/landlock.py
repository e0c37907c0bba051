"""CPython confined by Landlock and seccomp through the ``sandlock`` package: no root, no namespaces needed.

The process reads the interpreter's own library and nothing else, writes nowhere, has no network, and cannot start
another process or signal one. It can ask for a file's size, and whether it exists: Python's own import asks for them,
Landlock does not govern it, and a filter of system calls cannot look at a path.
"""

from __future__ import annotations

import functools
import platform
import sys
from importlib.util import find_spec

from gspo_rllib.envs.sandbox.cpython import CPythonSandbox, Process, interpreter, readable_paths
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


def _launch(limits: SandboxLimits) -> Process:
    import sandlock
    from sandlock.sandbox import StdioMode

    policy = sandlock.Sandbox(
        fs_readable=readable_paths(),
        max_processes=1,
        no_coredump=True,
        clean_env=True,
        env={"PYTHONHASHSEED": "0"},
        cwd="/",
    )
    try:
        process: Process = policy.popen(
            interpreter(limits),
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
