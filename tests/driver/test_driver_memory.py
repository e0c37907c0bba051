"""What a driver holds does not grow with the model where learners and env runners are in actors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gspo_rllib.warmstart.models import build_model
from tests.raylets import Cluster

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BOUND_MB = 50.0
WIDE = {"num_layers": 13, "head_dim": 64, "max_position_embeddings": 512}
SIZES = {
    "21 M": {**WIDE, "hidden_size": 384, "intermediate_size": 1024, "num_heads": 6, "num_kv_heads": 2},
    "82 M": {**WIDE, "hidden_size": 768, "intermediate_size": 2048, "num_heads": 12, "num_kv_heads": 4},
}


@pytest.mark.parametrize(("num_learners", "is_elsewhere"), [(1, False), (2, False), (2, True)])
def test_a_driver_holds_as_much_of_a_model_four_times_as_large(
    num_learners: int, is_elsewhere: bool, make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """One learner, and two that share the model, here or on another node, whose commits are brought here.

    From the first actor to a run that goes on from its checkpoint.
    """
    address = "local"
    if is_elsewhere:
        cluster = make_cluster(0)
        cluster.add(cpus=4)
        address = cluster.address
    peaks = {}
    for name, sizes in SIZES.items():
        model = str(build_model(tmp_path / name, **sizes))
        command = [sys.executable, "-m", "tests.driver.measured_driver", model, str(num_learners), address]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]
        peaks[name] = json.loads(ended.stdout.splitlines()[-1])
    small, large = peaks.values()
    print(f"{num_learners} learners {'elsewhere' if is_elsewhere else 'here'}, MB at most: {peaks}")
    assert small.keys() == large.keys()
    assert max(large[stage] - small[stage] for stage in small) < BOUND_MB
