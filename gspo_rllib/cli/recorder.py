"""What a run leaves behind: ``run.json``, ``config.yaml``, ``result.json``, ``progress.csv``, TensorBoard events.

Names and layout are those of Ray Tune's loggers (one JSON object per line; nested keys joined by ``/``), so whatever
reads a Tune trial's folder reads these. Unlike Tune's, the table has only what a person reads, and grows a column when
a metric first appears later; everything is in ``result.json``.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import errno
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gspo_rllib.cli.progress import LEARNER, PHASES
from gspo_rllib.places import named_path, written_whole
from gspo_rllib.run_results import flatten as flatten
from gspo_rllib.run_results import iter_results
from gspo_rllib.run_results import read_results as read_results

if TYPE_CHECKING:
    from gspo_rllib.cli.trackers import Followers

Result = Mapping[str, Any]

FLUSH_EVERY_S = 30.0
"""Between two times that TensorBoard's events are written to the disk, in seconds."""

READ_BY_PEOPLE = (
    "training_iteration",
    "time_total_s",
    "time_this_iter_s",
    "evaluation/env_runners/success_mean",
    "evaluation/env_runners/episode_return_mean",
    "evaluation/env_runners/episode_len_mean",
    "evaluation/env_runners/estimates/",
    "env_runners/success_mean",
    "env_runners/episode_return_mean",
    "env_runners/episode_len_mean",
    "env_runners/turn_tokens_mean",
    "env_runners/num_tokens_sampled",
    "env_runners/tokens_per_s",
    "env_runners/epoch",
    "env_runners/env_metrics/",
    f"{LEARNER}clip_fraction",
    f"{LEARNER}clip_fraction_low",
    f"{LEARNER}clip_fraction_high",
    f"{LEARNER}ratio_mean",
    f"{LEARNER}ratio_quantiles/",
    f"{LEARNER}abs_log_ratio_mean",
    f"{LEARNER}abs_log_ratio_quantiles/",
    f"{LEARNER}kl_to_behavior",
    f"{LEARNER}kl_to_reference",
    f"{LEARNER}kl_to_old",
    f"{LEARNER}entropy",
    f"{LEARNER}grad_norm",
    f"{LEARNER}staleness",
    f"{LEARNER}default_optimizer_learning_rate",
    f"{LEARNER}num_zero_advantage_trajectories",
    "cluster/",
    *PHASES.values(),
    "timers/synch_weights",
    "timers/evaluation_iteration_timer",
)
"""Columns of ``progress.csv`` in their order; of a name that ends in ``/`` everything below it."""


def new_run_folder(storage: str, name: str) -> Path:
    """Makes ``storage/name-YYYYMMDD-HHMMSS``, with a counter when that exists.

    Args:
        storage: Where results are kept.
        name: The run's name; characters that folders dislike are replaced.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    base = named_path(storage).resolve()
    for attempt in range(1000):
        folder = base / (f"{safe}-{stamp}" if not attempt else f"{safe}-{stamp}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{base} holds 1000 runs of this second")


def write_run_record(folder: Path, record: Mapping[str, Any]) -> int:
    """Writes ``run.json``; what it said of earlier starts of the run is kept under ``earlier``, the latest last.

    Args:
        folder: The run's folder.
        record: How the run is started now.

    Returns:
        Which start of the run this is, from 1.

    Raises:
        OSError: There is no room; the file is as it was.
    """
    file, earlier = folder / "run.json", []
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        earlier = [*before.pop("earlier", []), before]
    _put(file, json.dumps({**record, "earlier": earlier}, indent=2, ensure_ascii=False) + "\n")
    return len(earlier) + 1


def _put(file: Path, content: str) -> None:
    """Writes a file whole, or leaves it as it was."""
    with written_whole(file) as partial:
        partial.write_text(content, encoding="utf-8")


class RunRecorder:
    """Writes every result of a run as it comes.

    Args:
        folder: The run's folder.
        sections: The config document, written beside the results.
        resume_at: The iteration a run goes on from in its folder, 0 for a new one; results after it were not saved,
            and are taken out.

    Raises:
        OSError: There is no room to begin; each file is as it was.

    Attributes:
        followers: Given each result, without the config, and closed at the end.
    """

    def __init__(self, folder: Path, sections: Mapping[str, Any], *, resume_at: int = 0) -> None:
        self.folder = folder
        self.followers: list[Followers] = []
        config = folder / "config.yaml"
        _put(config, yaml.safe_dump(dict(sections), sort_keys=False, allow_unicode=True))
        self._described = {file: file.read_bytes() for file in (config, folder / "run.json") if file.is_file()}
        kept = until(read_results(folder), resume_at)
        _put(folder / "result.json", "".join(f"{json.dumps(result)}\n" for result in kept))
        self._json = _Lines(folder / "result.json")
        self._columns: list[str] = []
        self._failing = False
        self._events = _Events(folder, resume_at=resume_at)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat result per iteration (keys joined by ``/``), those from before included.

        They are read from the file: in memory a row takes 20 kB, which a run of many iterations must not keep.
        """
        yield from map(flatten, iter_results(self.folder))
        yield from (flatten(json.loads(line)) for line in self._json.waiting)

    def record(self, result: Result) -> None:
        """Appends one iteration to every file; what a full disk has no room for is said, kept and written later."""
        from ray.tune.utils.util import SafeFallbackEncoder

        kept = {key: value for key, value in result.items() if key != "config"}
        row = flatten(kept)
        self._json.add(json.dumps(kept, cls=SafeFallbackEncoder, nan_str=math.nan).encode())
        failed = None
        for write in (self._append_line, lambda: self._append_row(row), lambda: self._events.add(row)):
            try:
                write()
            except OSError as error:
                failed = error
        if failed is not None:
            self._columns = []  # the whole table is written when there is room again
            if not self._failing:
                print(f"results of {self.folder} cannot be written now: {failed}", file=sys.stderr, flush=True)
        self._failing = failed is not None
        for follower in self.followers:
            follower(kept)

    def _append_line(self) -> None:
        if not self._json.is_in_place:
            self._begin_again()
        self._json.write()

    def _begin_again(self) -> None:
        """Where somebody has removed the folder or ``result.json``, what is written next would be found by nobody.

        What the run was started with, and its results so far, are written again; a file that is open is still there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for file, content in self._described.items():
            file.write_bytes(content)
        lines = _Lines(self.folder / "result.json")
        for line in self._json.all():
            lines.add(line)
        self._json.close()
        self._json = lines
        self._events.close()
        self._columns = []
        print(
            f"{self.folder / 'result.json'} was removed while its run goes on, and is written again, with all results "
            "so far. What else was removed (checkpoints, kept trajectories, recorded groups) is gone.",
            file=sys.stderr,
            flush=True,
        )

    def _append_row(self, row: dict[str, Any]) -> None:
        columns = read_by_people([*self._columns, *row])
        is_new = columns != self._columns
        self._columns = columns
        with (self.folder / "progress.csv").open("w" if is_new else "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            if is_new:
                writer.writeheader()
            writer.writerows(self.rows() if is_new else [row])

    def close(self, *, failed: bool = False) -> None:
        """Flushes and closes the files.

        Args:
            failed: Whether the run is ended by an error, which followers are told.
        """
        with contextlib.suppress(OSError):  # was said
            self._json.write()
        self._json.close()
        self._events.close()
        for follower in self.followers:
            follower.close(failed=failed)


class _Events:
    """TensorBoard's events. Its writer's own thread would end with a traceback on a full disk, and be waited for then.

    Args:
        folder: Where the files are.
        resume_at: The iteration a run goes on from: events cannot be taken out of a file, but TensorBoard passes over
            those from a step on. 0 for a new run.
    """

    def __init__(self, folder: Path, *, resume_at: int) -> None:
        self._folder = folder
        self._num_files = 0
        self._writer: Any = None
        self._flushed_at = 0.0
        with contextlib.suppress(OSError):  # said when there is something to write
            self._open()
            if resume_at:
                from tensorboardX.proto.event_pb2 import SessionLog

                self._write(resume_at + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes the numbers of a flat result.

        Raises:
            OSError: There is no room; a new file is begun with the next result.
        """
        from tensorboardX.summary import scalar

        try:
            if self._writer is None:
                self._open()
            for key, value in row.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                    self._write(int(row["training_iteration"]), summary=scalar(f"ray/tune/{key}", value))
            if time.monotonic() - self._flushed_at >= FLUSH_EVERY_S:
                self._flushed_at = time.monotonic()
                self._writer.flush()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        suffix = f".{self._num_files}" if self._num_files else ""
        self._num_files += 1
        self._writer = EventsWriter(str(self._folder / "events"), suffix)

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))


class _Lines:
    """A file that grows by whole lines: what a write left half done is cut off before the next one.

    Attributes:
        waiting: Lines that are to be written.
    """

    def __init__(self, file: Path) -> None:
        self.waiting: list[bytes] = []
        self._path = file
        self._file = file.open("a+b", buffering=0)
        self._size = file.stat().st_size

    @property
    def is_in_place(self) -> bool:
        """Whether the file is still the one of its name."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def all(self) -> list[bytes]:
        """Every line, those that wait included; also of a file that was removed."""
        self._file.seek(0)
        with open(os.dup(self._file.fileno()), "rb") as file:
            return [*file.read(self._size).splitlines(), *self.waiting]

    def add(self, line: bytes) -> None:
        """Takes a line that is to be written, without its end."""
        self.waiting.append(line)

    def write(self) -> None:
        """Writes the lines that wait.

        Raises:
            OSError: There is no room; they go on waiting.
        """
        while self.waiting:
            line = self.waiting[0] + b"\n"
            size = os.fstat(self._file.fileno()).st_size
            if size > self._size:
                self._file.truncate(self._size)
            self._size = min(size, self._size)  # less where somebody emptied the file
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, "no room for a line", self._file.name)
            self._size += len(line)
            del self.waiting[0]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_by_people(keys: list[str]) -> list[str]:
    """Those of the keys of flat results that are columns of the table, in its order, each once.

    Example:
        >>> read_by_people(["pid", "env_runners/success_mean", "time_total_s", "env_runners/env_metrics/keys_found"])
        ['time_total_s', 'env_runners/success_mean', 'env_runners/env_metrics/keys_found']
    """
    found = []
    for name in READ_BY_PEOPLE:
        found += sorted({key for key in keys if key == name or (name.endswith("/") and key.startswith(name))})
    return found


def until(results: list[dict[str, Any]], iteration: int) -> list[dict[str, Any]]:
    """The results up to an iteration; up to the last of its number, where a run went back and trained it twice.

    Example:
        >>> [r["training_iteration"] for r in until([{"training_iteration": i} for i in (1, 2, 3, 2, 3)], 2)]
        [1, 2, 3, 2]
    """
    ends = [place for place, result in enumerate(results, 1) if result["training_iteration"] == iteration]
    return results[: ends[-1]] if ends else [r for r in results if r["training_iteration"] <= iteration]
