"""CPython confined by ``bwrap``: namespaces of its own, an empty read-only root, no network, no second process.

Needs unprivileged user namespaces, which many container set-ups forbid.
"""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import sys

from gspo_rllib.envs.sandbox.cpython import CPythonSandbox, Process, interpreter, readable_paths
from gspo_rllib.envs.sandbox.protocol import SandboxLimits
from gspo_rllib.envs.sandbox.system_calls import is_supported
from gspo_rllib.errors import EnvError

_NAMESPACES = ["--unshare-all", "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
_NAMESPACES += ["--die-with-parent"]


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot be used here, or None."""
    if sys.platform != "linux":
        return f"bubblewrap needs Linux, this is {sys.platform}"
    if not is_supported(platform.machine()):
        return f"bubblewrap is supported on x86_64 and aarch64, this is {platform.machine()}"
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bwrap is not on the PATH (package bubblewrap)"
    done = subprocess.run([bwrap, *_NAMESPACES, "--ro-bind", "/", "/", "true"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"bwrap is not allowed to run here: {done.stderr.strip()[:200]}"


def _launch(limits: SandboxLimits) -> Process:
    bwrap = shutil.which("bwrap")
    assert bwrap is not None
    binds = [part for path in readable_paths() for part in ("--ro-bind", path, path)]
    command = [bwrap, *_NAMESPACES, "--new-session", "--clearenv", "--setenv", "PYTHONHASHSEED", "0", *binds]
    return subprocess.Popen(
        [*command, "--remount-ro", "/", "--chdir", "/", *interpreter(limits)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )


def open_bubblewrap(limits: SandboxLimits) -> CPythonSandbox:
    """A session of full CPython; about 0.1 s to start, 0.1 ms a run.

    Raises:
        EnvError: ``bwrap`` is missing or not allowed, or the process does not start.
    """
    if reason := unavailable():
        raise EnvError(f"{reason}. Install or allow it, or choose backend='monty': pip install 'gspo-rllib[sandbox]'")
    return CPythonSandbox("bwrap", limits, _launch)
