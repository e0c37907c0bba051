"""Weights in Ray's object store, tensor by tensor."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import ray

from gspo_rllib.sent_weights import SentWeights, fetched


def test_weights_are_fetched_wherever_they_are(ray_local: None) -> None:
    head, norm = np.ones((2, 3), np.float32), np.zeros(3, np.float32)
    plain = {"lm_head.weight": head, "model.embed_tokens.weight": head, "model.norm.weight": norm}
    sent = SentWeights(
        {"lm_head.weight": 0, "model.embed_tokens.weight": 0, "model.norm.weight": 1}, [ray.put(head), ray.put(norm)]
    )
    assert fetched(plain) is plain
    for there in (ray.put(plain), sent):
        found = fetched(there)
        assert list(found) == list(plain)
        assert all(np.array_equal(found[name], array) for name, array in plain.items())
    # A tied head is one array, as it was sent.
    once = sent.fetch()
    assert once["lm_head.weight"] is once["model.embed_tokens.weight"]


WITHOUT_ROOM = """
import numpy as np, ray
from gspo_rllib.errors import WeightSyncError
from gspo_rllib.sent_weights import fetched, sent
large = 100 * 2**20
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
answer = ray.remote(lambda: np.zeros(large, np.uint8)).remote()
for there in (lambda: sent(np.zeros(large, np.uint8)), lambda: fetched(answer)):
    try:
        there()
    except WeightSyncError as error:
        print(error)
"""


@pytest.mark.slow
def test_an_object_store_without_room_is_said() -> None:
    """Ray spills to a disk until it is full up to a share, here a tiny one."""
    full = {"RAY_local_fs_capacity_threshold": "0.0001", "RAY_oom_grace_period_s": "1"}
    command = [sys.executable, "-c", WITHOUT_ROOM]
    done = subprocess.run(command, env=os.environ | full, capture_output=True, text=True, timeout=300)
    said = done.stdout.splitlines()
    assert len(said) == 2, done.stderr
    assert all(line.startswith("Ray's object store has no room for the weights, and the disk") for line in said)
