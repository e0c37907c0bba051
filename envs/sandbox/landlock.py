"""CPython confined by Landlock and seccomp through the ``sandlock`` package: no root, no namespaces needed.

The process reads the interpreter's own library and nothing else, writes nowhere, has no network, and cannot start
another process or signal one.
"""

from __future__ import annotations

import functools
import resource
import sys
from importlib.util import find_spec

from gspo_rllib.envs.sandbox.cpython import CPythonSandbox, Process, interpreter, readable_paths
from gspo_rllib.envs.sandbox.protocol import MEBIBYTE, SandboxLimits
from gspo_rllib.errors import EnvError

# Landlock governs neither a file's mode, owner, times and attributes, nor other processes' limits and priorities, nor
# the machine's name and clock: harmless for most users, but a container's root would pass every check. Nor does it
# govern who is told of changes to a file, and how full a disk is. A file's size and whether it exists can be asked for
# all the same: Python's own import asks for them, and seccomp cannot look at a path.
_DENIED_SYSCALLS = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utime", "utimes", "utimensat", "futimesat"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
    *("prlimit64", "setrlimit", "setpriority", "ioprio_set"),
    *("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"),
    *("inotify_init", "inotify_init1", "inotify_add_watch", "fanotify_init", "fanotify_mark"),
    *("statfs", "fstatfs", "name_to_handle_at", "open_by_handle_at", "ustat", "quotactl", "swapon"),
    *("sethostname", "setdomainname", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
)


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot be used here, or None."""
    if sys.platform != "linux":
        return f"sandlock needs Linux, this is {sys.platform}"
    if find_spec("sandlock") is None:
        return "sandlock is not installed"
    import sandlock

    have, need = sandlock.landlock_abi_version(), sandlock.min_landlock_abi()
    return None if have >= need else f"sandlock needs Landlock ABI {need} (Linux 6.12), this kernel has {have}"


def _limit_resources(process: Process, limits: SandboxLimits) -> None:
    # From outside, as the process itself may not, and once it runs: before, it is still the size of its parent. A
    # program sees these limits as MemoryError; sandlock's own limit on memory would kill it.
    # 64 MiB are for the interpreter and its libraries.
    memory = (limits.memory_mib + 64) * MEBIBYTE
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 32)):
        assert process.pid is not None
        resource.prlimit(process.pid, kind, (most, most))


def _launch(limits: SandboxLimits) -> Process:
    import sandlock
    from sandlock.sandbox import StdioMode

    policy = sandlock.Sandbox(
        fs_readable=readable_paths(),
        extra_deny_syscalls=list(_DENIED_SYSCALLS),
        max_processes=1,
        no_coredump=True,
        clean_env=True,
        env={"PYTHONHASHSEED": "0"},
        cwd="/",
    )
    try:
        process: Process = policy.popen(
            interpreter(limits, own_memory_limit=False),
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
    return CPythonSandbox("sandlock", limits, _launch, _limit_resources)
