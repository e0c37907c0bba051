"""Text environments that live in a process of their own, and say in which; every process can import them."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

from tests.toy_envs.faulty_envs import EchoEnv


class ProcessEnv(EchoEnv):
    """Says in which process it lives; goes wrong once, in the first step of all that share the folder.

    Args:
        fault: ``"hang"``, ``"crash"``, ``"raise"``, or None.
        folder: Where it notes what happened, for all processes to see.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "blocking": False, "process": True}

    def __init__(self, fault: str | None = None, folder: str = "", turns: int = 2) -> None:
        super().__init__(turns)
        self.fault, self.folder = fault, Path(folder)

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        return observation, {**info, "pid": os.getpid()}

    def step(self, action: str) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.fault and self._is_first():
            if self.fault == "hang":
                time.sleep(600)
            if self.fault == "crash":
                os._exit(3)
            raise ValueError("not this time")
        return super().step(action)

    def close(self) -> None:
        if self.folder.name:
            (self.folder / f"closed {os.getpid()}").touch()

    def _is_first(self) -> bool:
        try:
            (self.folder / "failed").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Lock(int):
    """A number that no process can be sent."""

    def __reduce__(self) -> Any:
        return threading.Lock().__reduce_ex__(2)


class GlobalRandomEnv(ProcessEnv):
    """Seeds the generator of its whole process, as some game libraries do."""

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        random.seed(kwargs["seed"])
        return super().reset(**kwargs)

    def step(self, action: str) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return f"rolled {random.random()}", *super().step(action)[1:]
