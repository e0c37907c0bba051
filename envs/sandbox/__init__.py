"""Running Python that a model wrote, where it can harm nothing.

``open_sandbox()`` gives a session. Where no sandbox can be had it refuses: there is no way from here to ``exec`` or to
an unconfined process.
"""

from __future__ import annotations

from collections.abc import Callable

from gspo_rllib.envs.sandbox import bubblewrap, landlock, monty
from gspo_rllib.envs.sandbox.protocol import Sandbox as Sandbox
from gspo_rllib.envs.sandbox.protocol import SandboxLimits as SandboxLimits
from gspo_rllib.envs.sandbox.protocol import SandboxResult as SandboxResult
from gspo_rllib.errors import EnvError, SettingError, did_you_mean

# In order of preference: why it is unavailable (or None), and how it opens.
_BACKENDS: dict[str, tuple[Callable[[], str | None], Callable[[SandboxLimits], Sandbox]]] = {
    "monty": (monty.unavailable, monty.MontySandbox),
    "bwrap": (bubblewrap.unavailable, bubblewrap.open_bubblewrap),
    "sandlock": (landlock.unavailable, landlock.open_landlock),
}
BACKENDS = ("auto", *_BACKENDS)


def unavailable_backends() -> dict[str, str | None]:
    """Every backend, with the reason why it cannot be used on this machine, or None where it can."""
    return {name: unavailable() for name, (unavailable, _) in _BACKENDS.items()}


def find_backend(backend: str = "auto") -> str:
    """The backend that ``open_sandbox`` will use.

    Args:
        backend: A name, or ``"auto"`` for the first one that this machine has.

    Raises:
        SettingError: There is no such backend.
        EnvError: It, or with ``"auto"`` every one, is unavailable here.
    """
    if backend not in BACKENDS:
        raise SettingError(f"backend={backend!r}: no such sandbox. {did_you_mean(str(backend), BACKENDS)}")
    wanted = unavailable_backends() if backend == "auto" else {backend: _BACKENDS[backend][0]()}
    for name, reason in wanted.items():
        if reason is None:
            return name
    reasons = "; ".join(f"{name}: {reason}" for name, reason in wanted.items())
    raise EnvError(
        f"no sandbox for model-written Python on this machine ({reasons}). Install one: "
        "pip install 'gspo-rllib[sandbox]'. Running it without one is not offered."
    )


def open_sandbox(backend: str = "auto", limits: SandboxLimits | None = None) -> Sandbox:
    """Opens a session.

    Args:
        backend: ``"monty"`` (a Python subset, fastest), ``"bwrap"`` or ``"sandlock"`` (full CPython), or ``"auto"``:
            the first of them that this machine has.
        limits: What each run may use; the defaults if None.

    Raises:
        SettingError: There is no such backend.
        EnvError: The backend, or with ``"auto"`` every backend, is unavailable here.

    Example:
        >>> sandbox = open_sandbox("monty", SandboxLimits(seconds=0.2))
        >>> sandbox.run("print(sum(range(10)))").output
        '45\\n'
        >>> sandbox.run("while True: pass").error
        'stopped after 0.2 s; its variables are lost'
        >>> sandbox.close()
    """
    return _BACKENDS[find_backend(backend)][1](limits or SandboxLimits())
