"""Finished episodes with made-up tokens, for tests that need no engine."""

from __future__ import annotations

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.types import GROUP, TURN, GroupMember, Turn

VOCABULARY = 256


def make_episode(
    group_id: str, index: int, turn_lengths: list[tuple[int, int]], reward: float, *, version: int = 0
) -> SingleAgentEpisode:
    """An episode whose turns have the given numbers of prompt and sampled tokens; the reward comes last."""
    rng = np.random.default_rng([index, *group_id.encode()])
    episode = SingleAgentEpisode()
    episode.add_env_reset("start")
    for i, (num_prompt, num_sampled) in enumerate(turn_lengths):
        last = i == len(turn_lengths) - 1
        turn = Turn(
            prompt_token_ids=rng.integers(0, VOCABULARY, num_prompt).astype(np.int32),
            action_token_ids=rng.integers(0, VOCABULARY, num_sampled).astype(np.int32),
            action_logp=-rng.random(num_sampled).astype(np.float32),
            policy_version=version,
            finish_reason="stop",
        )
        episode.add_env_step(
            observation="next", action="say", reward=reward if last else 0.0, infos={}, terminated=last,
            extra_model_outputs={TURN: turn},
        )  # fmt: skip
    episode.custom_data[GROUP] = GroupMember(group_id, index, task_seed=0)
    return episode


def make_group(group_id: str, size: int, *, version: int = 0, seed: int = 0) -> list[SingleAgentEpisode]:
    """``size`` trajectories of 1 to 3 turns and uneven lengths, alternately rewarded."""
    rng = np.random.default_rng([seed, *group_id.encode()])
    return [
        make_episode(
            group_id,
            i,
            [(int(rng.integers(3, 12)), int(rng.integers(1, 9))) for _ in range(int(rng.integers(1, 4)))],
            float(i % 2),
            version=version,
        )
        for i in range(size)
    ]
