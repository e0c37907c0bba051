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
    """Memory of this process alone, without the pages of files; looked at every few milliseconds."""

    def __enter__(self) -> OwnMemory:
        self._start = self._top = _own_megabytes()
        self._ended = False
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()

    def _look(self) -> None:
        while not self._ended:
            self._top = max(self._top, _own_megabytes())
            time.sleep(0.002)

    @property
    def grown(self) -> float:
        return self._top - self._start


def _own_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024 / 1e6
