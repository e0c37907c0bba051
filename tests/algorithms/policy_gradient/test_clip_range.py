"""A clip range that the run measures: what it follows, what it does not, and that it is the same after a restore."""

from __future__ import annotations

import math

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from benchmarks.clip_range import simulate
from gspo_rllib.algorithms.policy_gradient.clip_range import NOISE, STEP, MeasuredClipRange
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.learners.statistics import LOG_RATIO_MOMENTS, UpdateStatistics
from gspo_rllib.learners.training_data import GroupTrainingData
from tests.learners.objectives import SPACES, even_groups, objective_config, update

MEASURED = {"clip_scaling": "deviations", "old_log_probs": "learner", "num_minibatches": 2, "lr": 1e-2}
MASK_BT = torch.ones(2, 100, dtype=torch.bool)
TURNS_BT = torch.arange(100).expand(2, 100) // 25
"""Two trajectories of 100 tokens in four turns."""


def _range(**training):
    return MeasuredClipRange(TrainingSettings(importance_sampling_level="sequence", **training))


def _update(measured, log_s, *, kind=STEP):
    """An update in which every trajectory's log-ratio was ``log_s`` after one step."""
    statistics = UpdateStatistics()
    if log_s is not None:
        logp_BT = torch.full(MASK_BT.shape, log_s)
        measured.measure(kind, logp_BT, torch.zeros_like(logp_BT), MASK_BT, TURNS_BT, statistics)
    values = statistics.compute(distributed=False, device="cpu")
    measured.follow(values)
    assert not {name for names in LOG_RATIO_MOMENTS.values() for name in names} & set(values)


def _room(measured, *, has_noise=False):
    """Half the width of the range, in log s, of a trajectory of 100 tokens."""
    low_BT, high_BT = measured.bounds(MASK_BT, TURNS_BT, has_noise=has_noise)
    assert float(high_BT.log1p()[0, 0]) == pytest.approx(-float((-low_BT).log1p()[0, 0]), rel=1e-3)
    return float(high_BT.log1p()[0, 0])


def test_the_range_is_so_many_deviations_of_one_step_and_an_optimisers_first_is_not_counted():
    measured = _range(clip_deviations=2.0)
    assert measured.typical() is None
    # 0.2 / sqrt(100), the widest there is.
    assert _room(measured) == pytest.approx(0.02, rel=1e-3)
    _update(measured, 0.015)
    assert _room(measured) == pytest.approx(0.02, rel=1e-3)
    _update(measured, 1e-3)
    assert _room(measured) == pytest.approx(2e-3, rel=1e-3) == pytest.approx(measured.typical(), rel=1e-3)
    # Two measurements weigh alike: (1 + 9) / 2.
    _update(measured, 3e-3)
    assert _room(measured) == pytest.approx(2e-3 * math.sqrt(5), rel=1e-3)


def test_one_update_that_explodes_is_bounded_and_forgotten():
    measured = _range()
    for _ in range(8):
        _update(measured, 1e-3)
    _update(measured, math.inf)
    assert _room(measured) <= 0.02 * 1.001
    for _ in range(20):
        _update(measured, 1e-3)
    assert _room(measured) == pytest.approx(2e-3, rel=0.5)


@pytest.mark.parametrize("nothing", [None, math.nan], ids=["no second minibatch", "not a number"])
def test_an_update_that_measures_nothing_leaves_the_range(nothing):
    measured = _range()
    for _ in range(3):
        _update(measured, 1e-3)
    before = measured.get_state()
    _update(measured, nothing)
    assert measured.get_state() == before


def test_noise_widens_the_range_only_where_it_is_in_the_ratio():
    measured = _range(clip_deviations=3.0)
    for _ in range(2):
        _update(measured, 1e-4)
    _update(measured, 4e-3, kind=NOISE)
    assert _room(measured) == pytest.approx(3e-4, rel=1e-2)
    assert _room(measured, has_noise=True) == pytest.approx(1.2e-2, rel=1e-2)


def test_turns_have_a_range_of_their_own():
    """Equal token noise: a turn of 25 tokens gets twice the range of a trajectory of 100."""
    rooms = []
    for level in ("sequence", "turn"):
        measured = MeasuredClipRange(TrainingSettings(importance_sampling_level=level))
        torch.manual_seed(0)
        for _ in range(2):
            statistics = UpdateStatistics()
            mask_BT = torch.ones(400, 100, dtype=torch.bool)
            turns_BT = TURNS_BT[:1].expand(400, 100)
            noise_BT = 0.01 * torch.randn(400, 100)
            measured.measure(STEP, noise_BT, torch.zeros(400, 100), mask_BT, turns_BT, statistics)
            measured.follow(statistics.compute(distributed=False, device="cpu"))
        rooms.append(_room(measured))
    assert rooms[0] == pytest.approx(2 * 0.01 / 10, rel=0.1)
    assert rooms[1] == pytest.approx(2 * 0.01 / 5, rel=0.1)


@pytest.mark.parametrize("lr", [0.02, 0.1])
@pytest.mark.parametrize("length", [43, 400, 1000])
def test_it_binds_at_every_length_and_step_and_learns(length, lr):
    done = list(simulate("deviations", length=length, lr=lr, updates=15))
    clipped = sum(update.clipped for update in done[5:]) / 10
    assert 0.02 < clipped < 0.4
    assert done[-1].reward > 3 * done[0].reward


def test_a_range_that_follows_its_own_effect_runs_away_and_this_one_does_not():
    """Steps that overshoot: what the last step of an update spreads, the next update permits twice."""
    ratio = {}
    for rule in ("deviations", "last"):
        done = list(simulate(rule, length=400, lr=0.1, updates=14))[4:]
        ratio[rule] = sum(update.room for update in done) / sum(update.spread[0] for update in done)
    assert ratio["deviations"] < 4
    assert ratio["last"] > 3 * ratio["deviations"]


# -- in the learner


def _train(learner, seed, *, groups=None):
    data = GroupTrainingData.from_groups(groups or even_groups(), num_minibatches=2, seed=seed)
    results = learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]
    return {name: value.peek() for name, value in results.items() if hasattr(value, "peek")}


def test_a_restored_learner_has_the_range_and_takes_the_same_steps_bit_by_bit(tiny_dense):
    config = objective_config(tiny_dense, **MEASURED)
    learner = config.build_learner(spaces=SPACES)
    for seed in range(3):
        _train(learner, seed)
    other = config.build_learner(spaces=SPACES)
    other.set_state(learner.get_state())
    assert other.clip_range.get_state() == learner.clip_range.get_state()
    assert all(_train(learner, seed) == _train(other, seed) for seed in (3, 4))
    assert other.clip_range.get_state() == learner.clip_range.get_state()
    modules = [each.module[DEFAULT_MODULE_ID].unwrapped() for each in (learner, other)]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in modules), strict=True))
    # A state without a range, and a range without a use for it.
    other.set_state({name: value for name, value in learner.get_state().items() if name != "clip_range"})
    assert other.clip_range.typical() is None
    fixed = objective_config(tiny_dense, old_log_probs="learner").build_learner(spaces=SPACES)
    fixed.set_state(learner.get_state())
    assert fixed.clip_range is None


def test_micro_batches_measure_what_one_row_does_and_the_range_is_reported(tiny_dense):
    states, ranges = [], []
    for more in ({}, {"max_tokens_per_micro_batch": 80}):
        learner = objective_config(tiny_dense, **MEASURED, **more).build_learner(spaces=SPACES)
        measured = [_train(learner, seed) for seed in range(3)]
        states.append(learner.clip_range.get_state())
        ranges.append([values["clip_range_mean"] for values in measured])
    assert states[0][STEP] == pytest.approx(states[1][STEP], rel=1e-2)
    assert ranges[0] == pytest.approx(ranges[1], rel=1e-2)
    # A step of this size moves further than the widest range; groups are tiny, so is what is measured of them.
    assert ranges[0][0] == pytest.approx(ranges[0][1], rel=0.2)


@pytest.mark.parametrize("level", ["sequence", "sequence_token", "turn"])
@pytest.mark.parametrize("surrogate", ["clip", "dual_clip"])
def test_every_ratio_and_surrogate_with_a_range_of_its_own_takes_it(level, surrogate, tiny_dense):
    config = objective_config(tiny_dense, **MEASURED, importance_sampling_level=level, surrogate=surrogate)
    learner, measured = update(config, num_minibatches=2)
    assert measured["clip_fraction"] > 0.0
    assert learner.clip_range.get_state()[STEP] is None and learner.clip_range.get_state()[NOISE] is not None


def test_noisy_engines_are_left_out_of_the_ratio_by_the_measured_range(tiny_dense):
    """Made-up log-probs are nats away from the learner's: far beyond a tenth of any range."""
    learner = objective_config(tiny_dense, **{**MEASURED, "old_log_probs": "auto"}).build_learner(spaces=SPACES)
    assert not learner.recomputes_old_log_probs
    _train(learner, 0)
    assert learner.engine_noise > 0.1 and learner.recomputes_old_log_probs
    learner.engine_noise = 1e-9
    assert not learner.recomputes_old_log_probs


@pytest.mark.slow
def test_two_ranks_measure_what_one_does_and_have_one_range(tiny_dense, ray_local):
    config = objective_config(tiny_dense, **MEASURED)
    alone = config.build_learner(spaces=SPACES)
    for seed in range(3):
        _train(alone, seed)
    ranks = config.copy().learners(num_learners=2)
    group = ranks.build_learner_group(rl_module_spec=ranks.get_multi_rl_module_spec(spaces=SPACES))
    try:
        for seed in range(3):
            data = GroupTrainingData.from_groups(even_groups(), num_minibatches=2, seed=seed)
            group.update(training_data=data, num_epochs=1)
        first, second = (r.get() for r in group.foreach_learner(lambda learner: learner.clip_range.get_state()))
    finally:
        group.shutdown()
    assert first == second
    assert first[STEP] == pytest.approx(alone.clip_range.get_state()[STEP], rel=2e-2)
    assert first[NOISE] == pytest.approx(alone.clip_range.get_state()[NOISE], rel=2e-2)
