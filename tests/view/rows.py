"""Made-up rows of trajectories."""

from __future__ import annotations

from typing import Any

import numpy as np

from gspo_rllib.trajectory_table import Row
from gspo_rllib.view.sources import Source


def make_turn(number: int = 0, *, sampled: int = 3, prompt: int = 4, **changes: Any) -> Row:
    """A turn with ids 10, 11, … and numbers that no two tokens share."""
    rng = np.random.default_rng([number, sampled])
    logp = -rng.random(sampled).astype(np.float32)
    turn = {
        "observation": f"observation {number}",
        "reply": f"reply {number}",
        "reward": 0.0,
        "finish_reason": "stop",
        "version": 3,
        "token_versions": None,
        "starts_segment": False,
        "is_summary": False,
        "prompt_ids": list(range(10, 10 + prompt)),
        "sampled_ids": list(range(20, 20 + sampled)),
        "logp": logp.tolist(),
        "updated_logp": (logp + 0.25 * rng.standard_normal(sampled).astype(np.float32)).tolist(),
        "advantage": [0.5] * sampled,
    }
    assert not changes.keys() - turn.keys()
    return {**turn, **changes}


def make_row(group: str = "0", index: int = 0, *, turns: list[Row] | None = None, **changes: Any) -> Row:
    """A trajectory, successful unless something else is said."""
    played = [make_turn(number) for number in range(2)] if turns is None else turns
    row = {
        "iteration": 1,
        "group_id": group,
        "index": index,
        "task_seed": 7,
        "return": 1.0,
        "success": True,
        "truncated_by": None,
        "trained": True,
        "last_observation": "",
        "turns": played,
    }
    return {**row, **changes}


def make_source(*rows: Row, name: str = "run", results: list[dict[str, Any]] | None = None) -> Source:
    """A source without a tokenizer."""
    return Source(name, list(rows), list(results or []))
