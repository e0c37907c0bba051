"""CPython confined by ``bwrap``: namespaces of its own, an empty read-only root, no network, no second process.

Needs unprivileged user namespaces, which many container set-ups forbid.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import struct
import subprocess
import sys

from gspo_rllib.envs.sandbox.cpython import CPythonSandbox, Process, interpreter, readable_paths
from gspo_rllib.envs.sandbox.protocol import SandboxLimits
from gspo_rllib.errors import EnvError

_NAMESPACES = ["--unshare-all", "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
_NAMESPACES += ["--die-with-parent"]

# Audit architecture, then the numbers of clone, clone3 and of what is denied altogether: fork and vfork (on x86-64),
# unshare, setns, ptrace, bpf, io_uring_setup, userfaultfd, perf_event_open, keyctl, add_key, request_key. So are those
# that change a process's share of the machine: sched_setaffinity, sched_setscheduler, sched_setparam, sched_setattr,
# setpriority, ioprio_set.
_SHARES = {"x86_64": (203, 144, 142, 314, 141, 251), "aarch64": (122, 119, 118, 274, 140, 30)}
_SYSCALLS = {
    "x86_64": (0xC000003E, 56, 435, (57, 58, 272, 308, 101, 321, 425, 323, 298, 250, 248, 249)),
    "aarch64": (0xC00000B7, 220, 435, (97, 268, 117, 280, 425, 282, 241, 219, 217, 218)),
}
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_CLONE_THREAD = 0x00010000


def no_new_process_filter(machine: str) -> bytes:
    """A seccomp program that lets a process start threads but no process.

    The limit on the number of processes does not bind root, also not root of a container behind a user namespace.
    """
    arch, clone, clone3, denied = _SYSCALLS[machine]
    # Each step: (operation, operand, jump if true, jump if false), jumps counted from the next instruction.
    program = [(_LOAD, 4, 0, 0), (_EQUAL, arch, 1, 0), (_RETURN, _KILL, 0, 0), (_LOAD, 0, 0, 0)]
    # Numbers from 2^30 on are the x32 door to the same calls.
    program += [(_AT_LEAST, 0x40000000, 0, 1), (_RETURN, _KILL, 0, 0)]
    for number in (*denied, *_SHARES[machine]):
        program += [(_EQUAL, number, 0, 1), (_RETURN, _EPERM, 0, 0)]
    # clone3 hides its flags behind a pointer; told that it does not exist, libc falls back to clone.
    program += [(_EQUAL, clone3, 0, 1), (_RETURN, _ENOSYS, 0, 0)]
    program += [(_EQUAL, clone, 0, 3), (_LOAD, 16, 0, 0), (_ANY_BIT, _CLONE_THREAD, 1, 0), (_RETURN, _EPERM, 0, 0)]
    program += [(_RETURN, _ALLOW, 0, 0)]
    return b"".join(struct.pack("HBBI", code, true, false, operand) for code, operand, true, false in program)


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot be used here, or None."""
    if sys.platform != "linux":
        return f"bubblewrap needs Linux, this is {sys.platform}"
    if platform.machine() not in _SYSCALLS:
        return f"bubblewrap is supported on {' and '.join(_SYSCALLS)}, this is {platform.machine()}"
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bwrap is not on the PATH (package bubblewrap)"
    done = subprocess.run([bwrap, *_NAMESPACES, "--ro-bind", "/", "/", "true"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"bwrap is not allowed to run here: {done.stderr.strip()[:200]}"


def _launch(limits: SandboxLimits) -> Process:
    bwrap = shutil.which("bwrap")
    assert bwrap is not None
    reader, writer = os.pipe()
    try:
        os.write(writer, no_new_process_filter(platform.machine()))
        os.close(writer)
        binds = [part for path in readable_paths() for part in ("--ro-bind", path, path)]
        command = [bwrap, *_NAMESPACES, "--new-session", "--clearenv", "--setenv", "PYTHONHASHSEED", "0", *binds]
        command += ["--remount-ro", "/", "--chdir", "/", "--seccomp", str(reader)]
        return subprocess.Popen(
            command + interpreter(limits, own_memory_limit=True),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=(reader,),
        )
    finally:
        os.close(reader)


def open_bubblewrap(limits: SandboxLimits) -> CPythonSandbox:
    """A session of full CPython; about 0.1 s to start, 0.1 ms a run.

    Raises:
        EnvError: ``bwrap`` is missing or not allowed, or the process does not start.
    """
    if reason := unavailable():
        raise EnvError(f"{reason}. Install or allow it, or choose backend='monty': pip install 'gspo-rllib[sandbox]'")
    return CPythonSandbox("bwrap", limits, _launch)
