"""The same numbers whoever does the work: weights do not depend on how many runners play, nor on their slots."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.learners.language_learner import LanguageLearner
from gspo_rllib.learners.minibatch import Minibatch
from gspo_rllib.learners.training_data import GroupTrainingData
from tests.toy_envs.coin_env import CoinEnv

ITERATIONS = 12


@functools.cache
def _trained(
    path: str,
    num_env_runners: int,
    slots: int,
    num_learners: int = 0,
    again: int = 0,
    chatter: int = 0,
    smoothly: bool = False,
) -> dict[str, Any]:
    """Weights, optimiser's numbers and the learner's metrics after ``ITERATIONS``, of long contexts after two.

    Smoothly: steps are in proportion to the gradient, where AdamW's are otherwise as large for the smallest.
    """
    step = {"lr": 0.1, "adam_epsilon": 1.0} if smoothly else {"lr": 1e-3}
    config = (
        GSPOConfig()
        .environment(CoinEnv, env_config={"turns": 3, "chatter": chatter} if chatter else {})
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", temperature=0.7, max_tokens_per_turn=6)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=slots)
        .learners(num_learners=num_learners)
        .training(group_size=4, groups_per_iteration=4, num_minibatches=2, **step)
        .debugging(seed=1)
    )
    algo = config.build_algo()
    try:
        results = [algo.train() for _ in range(2 if chatter else ITERATIONS)]
        weights = algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"]
    finally:
        algo.stop()
    found = {name: np.array(value) for name, value in weights[DEFAULT_MODULE_ID].items()}
    numbers = [result["learners"][DEFAULT_MODULE_ID] for result in results]
    return found | {
        name: np.array([n[name] for n in numbers]) for name in ("loss", "grad_norm", "logp_gap_max", "ratio_mean")
    }


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not np.array_equal(one[name], other[name], equal_nan=True)]


@pytest.mark.parametrize(
    ("num_env_runners", "slots"),
    [(0, 5), *[pytest.param(*where, marks=pytest.mark.slow) for where in ((0, 3), (1, 8), (2, 5), (2, 8), (3, 8))]],
)
def test_weights_are_bit_equal_for_any_number_of_runners_and_slots(num_env_runners, slots, tiny_dense, ray_local):
    assert _differing(_trained(tiny_dense, num_env_runners, slots), _trained(tiny_dense, 0, 8)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("num_env_runners", "slots"), [(0, 3), (1, 6), (2, 8)])
def test_so_they_are_where_contexts_have_hundreds_of_tokens(num_env_runners, slots, tiny_dense, ray_local):
    """Sums over keys are cut into parts, by how many there are beside a token's own."""
    assert (
        _differing(_trained(tiny_dense, num_env_runners, slots, chatter=50), _trained(tiny_dense, 0, 8, chatter=50))
        == []
    )


@pytest.mark.slow
def test_two_learners_are_equal_to_themselves(tiny_dense, ray_local):
    assert _differing(*[_trained(tiny_dense, 0, 8, num_learners=2, again=again) for again in range(2)]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("step", "within"), [({}, 1e-5), ({"smoothly": True}, 1e-6)])
def test_two_learners_are_one_within_rounding(step, within, tiny_dense, ray_local):
    """Halves of a gradient are summed apart; AdamW makes whole steps of entries that are rounding themselves."""
    two, one = _trained(tiny_dense, 0, 8, num_learners=2, again=0, **step), _trained(tiny_dense, 0, 8, **step)
    apart = np.concatenate([np.abs(one[name] - two[name]).ravel() for name in one if name.startswith("model.")])
    print(f"{step}: {apart.max():.1e} apart, {(apart > 1e-6).sum()} of {apart.size} numbers by more than 1e-6")
    assert apart.max() <= within


@pytest.mark.slow
def test_one_learner_that_sums_the_halves_of_two_is_equal_to_them(tiny_dense, ray_local, monkeypatch):
    """Nothing but the order of a sum sets them apart."""
    iterate, pack = LanguageLearner._create_iterator_if_necessary, LanguageLearner._minibatch

    def iterate_halves(self, *, training_data, **kwargs):
        halves = [half.groups for half, _ in training_data.shard(2)]
        self.halves = [{group.group_id for group in half} for half in halves]
        both = GroupTrainingData(groups=[*halves[0], *halves[1]], minibatches=training_data.minibatches)
        yield from iterate(self, training_data=both, **kwargs)

    def pack_apart(self, plan, trajectories):
        parts = [pack(self, plan, [t for t in trajectories if t.group_id in half]) for half in self.halves]
        rows = [part.policy_batches[DEFAULT_MODULE_ID]["micro_batches"] for part in parts]
        assert max(map(len, rows)) == 1
        return Minibatch([*rows[0], *rows[1]], plan, sum(part.env_steps() for part in parts))

    monkeypatch.setattr(LanguageLearner, "_create_iterator_if_necessary", iterate_halves)
    monkeypatch.setattr(LanguageLearner, "_minibatch", pack_apart)
    one = _trained.__wrapped__(tiny_dense, 0, 8)
    monkeypatch.undo()
    two = _trained(tiny_dense, 0, 8, num_learners=2, again=0)
    assert [name for name in _differing(one, two) if name.startswith("model.")] == []
