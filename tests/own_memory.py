"""How much memory a process takes for itself while something runs, and a model that is large enough to see it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

WIDE: dict[str, Any] = {
    "hidden_size": 1536, "intermediate_size": 4096, "num_layers": 3, "num_heads": 24, "num_kv_heads": 8, "head_dim": 64
}  # fmt: skip
"""76 M parameters, most of them in matrices so large that freed ones go back to the machine at once."""


class OwnMemory:
    """Memory of this process alone, without pages of files or of the object store; looked at every few milliseconds.

    Attributes:
        of: Most of it in each stage, in MB.
    """

    def __init__(self) -> None:
        self.of: dict[str, float] = {}

    def __enter__(self) -> OwnMemory:
        self._start = _own_megabytes()
        self._ended = False
        self.enter("start")
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()

    def enter(self, stage: str) -> None:
        """From now on it is another stage."""
        self._stage = stage
        self._note()

    def _note(self) -> None:
        self.of[self._stage] = max(self.of.get(self._stage, 0.0), _own_megabytes())

    def _look(self) -> None:
        while not self._ended:
            self._note()
            time.sleep(0.002)

    @property
    def grown(self) -> float:
        """By how much, at most, since the start."""
        return max(self.of.values()) - self._start


def _own_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024 / 1e6
