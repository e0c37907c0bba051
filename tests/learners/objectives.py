"""A learner for any objective on a tiny model, and what it makes of scripted episodes."""

from __future__ import annotations

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import columns
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.envs import UnicodeText
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.types import TURN_REWARDS, group_episodes
from tests.episodes import make_episode, make_group

SPACES = {DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))}


def objective_config(path, config=None, *, model=None, **training):
    return (
        (config or GSPOConfig())
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(model_config={"path": str(path), **(model or {})})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .learners(num_learners=0)
        .training(**{"group_size": 4, "groups_per_iteration": 4, "num_minibatches": 1, "grad_clip": None, **training})
        .debugging(seed=0)
    )


def even_groups(count=4):
    return group_episodes([episode for i in range(count) for episode in make_group(f"g{i}", 4)])


def update(config, groups=None, *, num_minibatches=1):
    """A learner after one update, and what it measured."""
    learner = config.build_learner(spaces=SPACES)
    data = GroupTrainingData.from_groups(groups or even_groups(), num_minibatches=num_minibatches, seed=0)
    results = learner.update(training_data=data, num_epochs=1)
    return learner, {name: s.peek() for name, s in results[DEFAULT_MODULE_ID].items() if hasattr(s, "peek")}


def scored_trajectories(config, episodes):
    """What the learner connectors hand to the learner."""
    learner = config.build_learner(spaces=SPACES)
    batch = learner._learner_connector(
        rl_module=learner.module, batch={}, episodes=episodes, shared_data={}, metrics=learner.metrics
    )
    return batch[DEFAULT_MODULE_ID][columns.TRAJECTORIES]


def per_turn(trajectory):
    """The advantage of each turn; all of a turn's tokens must have the same one."""
    turns = [trajectory.advantages[trajectory.turn_index == n] for n in range(trajectory.num_turns)]
    assert all((turn == turn[0]).all() for turn in turns)
    return [float(turn[0]) for turn in turns]


def scored(group_id, index, rewards, *, parts=None):
    episode = make_episode(group_id, index, [(3, 2)] * len(rewards), 0.0)
    episode.custom_data[TURN_REWARDS] = np.array(rewards)
    for info, part in zip(episode.infos.data[1:], parts or [], strict=False):
        info["reward_parts"] = part
    return episode
