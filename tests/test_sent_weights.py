"""Weights in Ray's object store, tensor by tensor."""

from __future__ import annotations

import numpy as np
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
