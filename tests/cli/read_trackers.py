"""Prints as JSON what W&B's offline files and MLflow's local store below a folder hold: run to name to [step, value]s.

python -m tests.cli.read_trackers FOLDER; needs the packages of requirements/trackers.txt.
"""

from __future__ import annotations

import json
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Points = dict[str, dict[str, list[list[float]]]]


def of_wandb(folder: Path) -> Points:
    """The history in W&B's own files."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: Points = {}
    for file in folder.rglob("*.wandb"):
        name, kind, points = "", None, defaultdict(list)
        for data in _logged(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            name = record.run.display_name or name
            kind = record.WhichOneof("record_type")
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for key, value in row.items():
                points[key].append([row["_step"], value])
        assert kind in ("exit", "final", "footer"), f"{file} ends with {kind}: W&B was killed before it had written all"
        found[name] = points
    return found


def _logged(data: bytes) -> Iterator[bytes]:
    """The records of a file in the form of LevelDB's log: blocks of 32 KiB, in which a record may be several parts."""
    place, record = 7, b""  # behind the file's own head
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no room for a part's head
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def of_mlflow(folder: Path) -> Points:
    """The metrics of every run of a store of files."""
    from mlflow.tracking import MlflowClient

    client: Any = MlflowClient(tracking_uri=folder.as_uri())
    runs = [run for experiment in client.search_experiments() for run in client.search_runs([experiment.experiment_id])]
    return {
        run.info.run_name: {
            key: [[point.step, point.value] for point in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        for run in runs
    }


if __name__ == "__main__":
    print(json.dumps({"wandb": of_wandb(Path(sys.argv[1])), "mlflow": of_mlflow(Path(sys.argv[1], "ml"))}))
