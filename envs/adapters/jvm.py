"""Games that run in Java: one virtual machine per process and jar serves all of its environments.

A machine takes 150 to 450 MB, a game in it next to nothing, and a call from several threads at once is fine. Machines
end with the process.
"""

from __future__ import annotations

import os
import shutil
import threading
from typing import Any

from gspo_rllib.envs.adapters.suite import load_suite
from gspo_rllib.errors import EnvError

_lock = threading.Lock()
_machines: dict[tuple[int, str], Any] = {}


def java_program() -> str:
    """The path of Java: ``$JAVA_HOME/bin/java`` if that exists, else the one on the ``PATH``.

    Raises:
        EnvError: There is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = (home and shutil.which(os.path.join(home, "bin", "java"))) or shutil.which("java")
    if not found:
        raise EnvError(
            "Java was not found, and this environment runs in it. Install a Java runtime, 8 or newer (Debian: "
            "apt-get install default-jre-headless; conda: conda install openjdk), and put it on the PATH or set "
            "JAVA_HOME."
        )
    return found


def java_machine(jar: str, *, heap_mb: int, extra: str) -> Any:
    """The ``jvm`` view of this process's machine for a jar; starts one at the first call.

    Args:
        jar: Path of the suite's jar.
        heap_mb: Largest heap in MiB, for the machine that this call starts; a running one keeps its own.
        extra: The extra of this project that installs the suite.

    Raises:
        EnvError: Java or py4j is missing, or the machine does not start.
    """
    gateways = load_suite("py4j.java_gateway", extra)
    java = java_program()
    # By process, since a forked child must not write into its parent's sockets.
    key = (os.getpid(), jar)
    with _lock:
        if key not in _machines:
            try:
                port, process = gateways.launch_gateway(
                    classpath=jar,
                    die_on_exit=True,
                    cwd=os.path.dirname(jar),
                    javaopts=[f"-Xmx{heap_mb}m"],
                    java_path=java,
                    return_proc=True,
                )
            except (OSError, ValueError, gateways.Py4JError) as error:
                raise EnvError(
                    f"Java ({java}) did not start with {jar} and {heap_mb} MiB of heap ({error}). Does `java -version` "
                    "work, and is there that much memory?"
                ) from error
            parameters = gateways.GatewayParameters(auto_field=True, port=port)
            _machines[key] = gateways.JavaGateway(gateway_parameters=parameters, java_process=process)
        return _machines[key].jvm
