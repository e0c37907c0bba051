"""What a run leaves behind: ``config.yaml``, ``result.json``, ``progress.csv``, TensorBoard events.

Names and layout are those of Ray Tune's loggers (one JSON object per line; nested keys joined by ``/``), so whatever
reads a Tune trial's folder reads these. Unlike Tune's, the table grows a column when a metric first appears later.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

Result = Mapping[str, Any]


def new_run_folder(storage: str, name: str) -> Path:
    """Makes ``storage/name-YYYYMMDD-HHMMSS``, with a counter when that exists.

    Args:
        storage: Where results are kept.
        name: The run's name; characters that folders dislike are replaced.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    base = Path(storage).expanduser().resolve()
    for attempt in range(1000):
        folder = base / (f"{safe}-{stamp}" if not attempt else f"{safe}-{stamp}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{base} holds 1000 runs of this second")


class RunRecorder:
    """Writes every result of a run as it comes.

    Args:
        folder: The run's folder.
        sections: The config document, written beside the results.
    """

    def __init__(self, folder: Path, sections: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        self.folder = folder
        self.history: list[dict[str, Any]] = []
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(sections), sort_keys=False, allow_unicode=True))
        self._json = (folder / "result.json").open("a", encoding="utf-8")
        self._columns: list[str] = []
        self._events = SummaryWriter(str(folder), flush_secs=30)

    def record(self, result: Result) -> None:
        """Appends one iteration to every file."""
        from ray.tune.utils.util import SafeFallbackEncoder

        kept = {key: value for key, value in result.items() if key != "config"}
        json.dump(kept, self._json, cls=SafeFallbackEncoder)
        self._json.write("\n")
        self._json.flush()
        row = flatten(kept)
        self.history.append(row)
        self._append_row(row)
        for key, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                self._events.add_scalar(f"ray/tune/{key}", value, global_step=int(row["training_iteration"]))

    def _append_row(self, row: dict[str, Any]) -> None:
        new = [key for key in row if key not in self._columns]
        self._columns += new
        rows = self.history if new else [row]
        with (self.folder / "progress.csv").open("w" if new else "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            if new:
                writer.writeheader()
            writer.writerows(rows)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._json.close()
        self._events.close()


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins nested keys with ``/`` and turns numpy scalars into Python's.

    Example:
        >>> flatten({"env_runners": {"episode_return_mean": 0.5}, "done": False})
        {'env_runners/episode_return_mean': 0.5, 'done': False}
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}/")
        else:
            flat[name] = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    return flat
