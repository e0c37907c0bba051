"""What can be looked at: a run's folder, a file of kept trajectories, or a file of recorded groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gspo_rllib.errors import RecordError
from gspo_rllib.run_results import flatten, read_results
from gspo_rllib.trajectory_table import Row, files_of, read_table
from gspo_rllib.view.recorded import read_recorded


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to look at.

    Attributes:
        name: What it is called on the page.
        rows: The trajectories (``gspo_rllib.trajectory_table``).
        results: One flat result for each iteration (keys joined by ``/``), oldest first; none of a file.
        tokenizer: ``tokenizer.json`` of its model; None where ids stay ids.
    """

    name: str
    rows: list[Row]
    results: list[Mapping[str, Any]] = field(default_factory=list)
    tokenizer: Path | None = None


def is_run(path: Path) -> bool:
    """Whether a folder is one that a run, or a trial of Tune's, left its results in."""
    return (path / "result.json").is_file()


def read_source(path: Path, *, tokenizer: Path | None = None) -> Source:
    """Reads a run or a file.

    Args:
        path: Where it is.
        tokenizer: A model folder, or a ``tokenizer.json``, in place of the run's own.

    Raises:
        RecordError: There is nothing of the kind, or it is not what it should be.
    """
    if path.is_dir():
        if not is_run(path):
            raise RecordError(
                f"{str(path)!r} is neither a run's folder, with a result.json, nor a checkpoint, nor a file."
            )
        return Source(
            path.resolve().name,
            rows_of_run(path),
            [flatten(result) for result in read_results(path)],
            _of_model(tokenizer or _model_of(path)),
        )
    if not path.is_file():
        raise RecordError(f"{str(path)!r}: no such file or folder; it must be a run, a checkpoint, .jsonl or .parquet.")
    if path.suffix not in (".jsonl", ".parquet"):
        raise RecordError(f"{str(path)!r} must end in .jsonl (recorded groups) or .parquet (kept trajectories).")
    rows = read_recorded(path) if path.suffix == ".jsonl" else read_table(path)
    run = path.parent if path.suffix == ".jsonl" else path.parent.parent
    return Source(path.name, rows, [], _of_model(tokenizer or _model_of(run)))


def rows_of_run(run: Path) -> list[Row]:
    """The trajectories that a run kept; where it kept none, those it recorded.

    Raises:
        RecordError: A file cannot be read.
    """
    rows = [row for file in files_of(run) for row in read_table(file)]
    return rows or recorded_of_run(run)


def recorded_of_run(run: Path) -> list[Row]:
    """The trajectories that a run recorded to train on; none of them says in which iteration.

    Raises:
        RecordError: A file cannot be read.
    """
    return [row for file in sorted(run.glob("groups*.jsonl")) for row in read_recorded(file)]


def _model_of(run: Path) -> Path | None:
    """The folder of a run's model, as its config names it; its checkpoints have the same tokenizer."""
    found = sorted((run / "checkpoints").glob("*/**/tokenizer.json"))
    if found:
        return found[0]
    config = run / "config.yaml"
    if not config.is_file():
        return None
    import yaml

    try:
        model = yaml.safe_load(config.read_text(encoding="utf-8"))["rl_module"]["model_config"]["path"]
    except (KeyError, TypeError, ValueError, yaml.YAMLError):
        return None
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(str(model), "tokenizer.json")
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _of_model(place: Path | None) -> Path | None:
    file = place / "tokenizer.json" if place is not None and place.is_dir() else place
    return file if file is not None and file.is_file() else None
