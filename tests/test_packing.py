"""Trajectories in rows of bounded length."""

from __future__ import annotations

from gspo_rllib import columns
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.packing import pack
from tests.episodes import make_group


def test_packing_loses_and_repeats_nothing():
    trajectories = [token_trajectory(e, advantage=float(i)) for i, e in enumerate(make_group("g", 5))]
    row = pack(trajectories)
    assert row[columns.TOKEN_IDS].tolist() == [i for t in trajectories for i in t.segments[0].tolist()]
    assert row[columns.POSITION_IDS].tolist() == [p for t in trajectories for p in range(t.num_tokens)]
    assert sum(row[columns.SEGMENT_LENGTHS]) == len(row[columns.TOKEN_IDS])
    assert row[columns.TOKEN_IDS][row[columns.LOSS_POSITIONS] + 1].tolist() == row[columns.LOSS_TOKEN_IDS].tolist()
    sampled = [i for t in trajectories for i in t.segments[0][t.loss_masks[0]].tolist()]
    assert row[columns.LOSS_TOKEN_IDS].tolist() == sampled
    assert row[columns.TRAJECTORY_INDEX].bincount().tolist() == [t.num_loss_tokens for t in trajectories]
