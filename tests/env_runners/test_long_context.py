"""Conversations that outgrow the context go on in segments: exact token accounting, one ratio over all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import columns
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.long_context import SUMMARY_HEADER, SUMMARY_REQUEST
from gspo_rllib.packing import TokenTable, pack
from gspo_rllib.types import TRUNCATED_BY, turns
from tests.env_runners.recording_engine import MAX_MODEL_LEN, RecordingEngine
from tests.toy_envs import faulty_envs
from tests.toy_envs.coin_env import CoinEnv

TURNS = 24


def _play(play: Callable, overflow: str, **settings):
    episodes, stats = play(
        lambda: faulty_envs.EchoEnv(turns=TURNS), groups=2, group_size=2, max_tokens_per_turn=8,
        context_overflow=overflow, **({"segment_share": 0.8} | settings),
    )  # fmt: skip
    assert not stats.failures
    return episodes, stats


def _contexts(episode):
    """Every context the engine was asked with, from what the turns recorded."""
    contexts, context = [], []
    for turn in turns(episode):
        context = [] if turn.starts_segment else context
        context = context + turn.prompt_token_ids.tolist()
        contexts.append(context)
        context = context + turn.action_token_ids.tolist()
    return contexts


@pytest.mark.parametrize("overflow", ["sliding_window", "summarize"])
def test_every_sampled_token_carries_loss_exactly_once_in_the_context_it_was_sampled_in(
    play: Callable,
    engine: RecordingEngine,
    overflow: str,
) -> None:
    episodes, stats = _play(play, overflow, max_summary_tokens=24)
    asked = {name.rpartition("/")[0]: [] for name in engine.requests}
    for name, request in engine.requests.items():
        assert len(request.prompt_token_ids) + request.max_tokens <= MAX_MODEL_LEN
        asked[name.rpartition("/")[0]].append(request.prompt_token_ids)
    assert sorted(map(str, asked.values())) == sorted(str(_contexts(episode)) for episode in episodes)
    num_segments = 0
    for episode in episodes:
        assert TRUNCATED_BY not in episode.custom_data
        assert sum(not turn.is_summary for turn in turns(episode)) == TURNS
        trajectory = token_trajectory(episode)
        num_segments += len(trajectory.segments) - 1
        sampled = [ids[mask] for ids, mask in zip(trajectory.segments, trajectory.loss_masks, strict=True)]
        expected = np.concatenate([turn.action_token_ids for turn in turns(episode)])
        np.testing.assert_array_equal(np.concatenate(sampled), expected)
        assert trajectory.num_loss_tokens == len(expected) == len(trajectory.turn_index)
        assert max(len(segment) for segment in trajectory.segments) <= MAX_MODEL_LEN
    assert num_segments == stats.num_segments > 4


def test_a_window_repeats_the_task_and_the_latest_turns_as_they_were_sampled(
    play: Callable,
    renderer: ChatRenderer,
) -> None:
    episodes, _ = _play(play, "sliding_window", segment_share=0.6)
    for episode in episodes:
        taken = list(turns(episode))
        start = next(i for i, turn in enumerate(taken) if turn.starts_segment)
        ids = taken[start].prompt_token_ids.tolist()
        assert len(ids) <= 0.6 * MAX_MODEL_LEN
        first = taken[0].prompt_token_ids.tolist() + taken[0].action_token_ids.tolist()
        assert ids[: len(first)] == first
        # What follows are the frames and replies of the latest turns, the latest one last.
        ended = taken[start - 1].action_token_ids[-1] in renderer.stop_token_ids
        tail = renderer.next_prompt(episode.get_observations(start), reply_ended=ended)
        latest = taken[start - 1].action_token_ids.tolist() + tail
        assert ids[-len(latest) :] == latest
        assert not any(turn.is_summary for turn in taken)


def test_a_summary_is_a_turn_the_policy_is_trained_on_and_starts_the_next_segment(
    play: Callable,
    renderer: ChatRenderer,
) -> None:
    episodes, _ = _play(play, "summarize", max_summary_tokens=24)
    for episode in episodes:
        taken = list(turns(episode))
        number = next(i for i, turn in enumerate(taken) if turn.is_summary)
        summary, after = taken[number], taken[number + 1]
        assert SUMMARY_REQUEST in renderer.decode(summary.prompt_token_ids.tolist())
        assert after.starts_segment
        text = renderer.decode(after.prompt_token_ids.tolist())
        assert f"{SUMMARY_HEADER}\n{episode.get_actions(number)}" in text
        assert episode.get_observations(0) in text
        assert text.count(episode.get_observations(number + 1)) >= 1
        # The environment was not asked: the observation is the one that waited, and there is no reward.
        assert episode.get_observations(number) == episode.get_observations(number + 1)
        assert episode.get_rewards(number) == 0.0


def test_by_default_the_trajectory_ends_where_the_context_does(play: Callable) -> None:
    episodes, stats = _play(play, "truncate")
    assert {episode.custom_data[TRUNCATED_BY] for episode in episodes} == {"context"}
    assert stats.num_segments == 0


def test_a_window_too_small_for_the_task_ends_the_trajectory(play: Callable) -> None:
    episodes, stats = _play(play, "sliding_window", segment_share=0.05)
    assert {episode.custom_data[TRUNCATED_BY] for episode in episodes} == {"context"}
    assert stats.num_segments == 0


def test_results_do_not_depend_on_how_many_trajectories_run_at_a_time(play: Callable) -> None:
    def sampled(slots: int) -> list[list[int]]:
        episodes, _ = _play(play, "summarize", slots=slots, max_summary_tokens=24)
        return [[i for turn in turns(episode) for i in turn.action_token_ids.tolist()] for episode in episodes]

    assert sampled(1) == sampled(4)


@pytest.mark.parametrize("overflow", ["sliding_window", "summarize"])
def test_the_learner_scores_every_segment_as_the_engine_did_and_takes_one_ratio_over_all(
    tiny_dense, overflow, ray_local
) -> None:
    config = (
        GSPOConfig()
        .environment(CoinEnv, env_config={"turns": 24})
        .rl_module(model_config={"path": tiny_dense})
        .generation(
            engine="transformers", max_tokens_per_turn=6, max_model_len=256, context_overflow=overflow,
            segment_share=0.8, **({"max_summary_tokens": 16} if overflow == "summarize" else {}),
        )
        .training(group_size=2, groups_per_iteration=2, num_minibatches=2, lr=1e-3)
        .debugging(seed=0)
    )  # fmt: skip
    algo = config.build_algo()
    try:
        result = algo.train()
        learner = result["learners"][DEFAULT_MODULE_ID]
        assert result["env_runners"]["num_new_segments"] >= 4
        assert learner["logp_gap_max"] < 1e-4
        assert learner["num_trajectories"] == 4
        episodes = algo.env_runner.sample(num_episodes=2)
    finally:
        algo.stop()
    row = pack([token_trajectory(episode, advantage=1.0) for episode in episodes])
    table = TokenTable(row)
    assert table.mask_BT.shape[0] == 2 < len(row[columns.SEGMENT_LENGTHS])
    assert table.mask_BT.sum(dim=1).tolist() == [
        sum(len(turn.action_token_ids) for turn in turns(episode)) for episode in episodes
    ]
