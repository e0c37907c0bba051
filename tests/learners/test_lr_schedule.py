"""A schedule in updates: exact numbers, over checkpoints too, and every bad one is a sentence."""

from __future__ import annotations

import math

import pytest

from gspo_rllib.cli.main import main
from gspo_rllib.errors import SettingError
from gspo_rllib.learners.lr_schedule import LRSchedule
from gspo_rllib.learners.training_data import GroupTrainingData
from tests.learners.small_learner import SPACES, even_groups, learner_config

COSINE = {"unit": "updates", "warmup": 2, "decay": "cosine", "total": 6, "min": 1e-4}


def test_warm_up_and_cosine_are_those_numbers():
    schedule = LRSchedule.of(COSINE, lr=1e-3)
    quarter = 0.1 + 0.9 * (2 + math.sqrt(2)) / 4
    wanted = [0.5, 1.0, 1.0, quarter, 0.55, 0.1 + 0.9 - (quarter - 0.1), 0.1, 0.1]
    assert [schedule.share(updates) for updates in range(8)] == pytest.approx(wanted, rel=1e-12)
    constant = LRSchedule.of({"warmup": 4}, lr=1e-3)
    assert [constant.share(updates) for updates in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    straight = LRSchedule.of({"decay": "linear", "total": 4}, lr=1e-3)
    assert [straight.share(updates) for updates in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def _learner(path, **training):
    config = learner_config(path, **{"lr": 1e-3, "lr_schedule": COSINE, "num_minibatches": 2, **training})
    return config.build_learner(spaces=SPACES)


def _update(learner):
    """One update; returns the learning rate that its results show."""
    # Turns sampled are not what counts here.
    data = GroupTrainingData.from_groups(even_groups(), num_minibatches=2, seed=0)
    results = learner.update(training_data=data, timesteps={"num_env_steps_sampled_lifetime": 10_000}, num_epochs=1)
    return results["default_policy"]["default_optimizer_learning_rate"].peek()


def test_each_update_has_its_rate_and_shows_it(tiny_dense):
    learner = _learner(tiny_dense)
    schedule = LRSchedule.of(COSINE, lr=1e-3)
    shown = [_update(learner) for _ in range(4)]
    assert shown == pytest.approx([1e-3 * schedule.share(n) for n in range(4)], rel=1e-6)


def test_a_restored_learner_goes_on_at_the_very_rate_and_a_rollback_goes_back(tiny_dense):
    learner = _learner(tiny_dense)
    start = learner.get_state()
    for _ in range(3):
        _update(learner)
    saved = learner.get_state()
    expected = learner._all_optimizers[0].param_groups[0]["lr"]
    _update(learner)
    other = _learner(tiny_dense)
    other.set_state(saved)
    assert other._all_optimizers[0].param_groups[0]["lr"] == expected
    assert _update(other) == pytest.approx(expected, rel=1e-6)
    # Another whole rate, as after a sweep's or a user's change, keeps the place on the schedule.
    halved = _learner(tiny_dense, lr=5e-4, lr_schedule={**COSINE, "min": 5e-5})
    halved.set_state(saved)
    assert halved._all_optimizers[0].param_groups[0]["lr"] == pytest.approx(expected / 2, rel=1e-12)
    other.set_state(start)
    assert other._all_optimizers[0].param_groups[0]["lr"] == 5e-4


def test_a_state_that_was_saved_without_a_schedule_takes_it_up_where_it_is(tiny_dense):
    saved = _learner(tiny_dense, lr_schedule=None)
    for _ in range(2):
        _update(saved)
    other = _learner(tiny_dense)
    other.set_state(saved.get_state())
    assert other._all_optimizers[0].param_groups[0]["lr"] == 1e-3
    saved.set_state(other.get_state())
    assert saved._all_optimizers[0].param_groups[0]["lr"] == 1e-3
    _update(saved)
    assert saved._all_optimizers[0].param_groups[0]["lr"] == 1e-3


def test_a_critic_moves_in_proportion(tiny_dense):
    learner = _learner(tiny_dense, advantage_estimator="gae", vf_lr=4e-3)
    policy, critic = (optimizer.param_groups[0]["lr"] for optimizer in learner._all_optimizers)
    assert (policy, critic) == (5e-4, 2e-3)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"lr_schedule": {"decay": "cosin", "total": 9}}, r"'cosin'; allowed: 'constant', 'linear', 'cosine'"),
        ({"lr_schedule": {"decay": ["cosine"], "total": 9}}, r"\['cosine'\]; allowed: 'constant', 'linear', 'cosine'"),
        ({"lr_schedule": {"unit": ["updates"], "warmup": 3}}, r"\['updates'\]; allowed: 'updates'\."),
        ({"lr_schedule": {"decay": "cosine"}}, r"\['total'\] is missing"),
        ({"lr_schedule": {"warm_up": 3}}, r"\['warm_up'\] is unknown. Did you mean 'warmup'\?"),
        ({"lr_schedule": {"unit": "steps", "warmup": 3}}, r"'steps'; allowed: 'updates': an update makes num_mini"),
        ({"lr_schedule": {"unit": "turns", "warmup": 3}}, r"allowed: 'updates': an RLlib schedule counts turns"),
        ({"lr_schedule": {"warmup": 2.5}}, r"\['warmup'\] is 2.5; allowed: int, >= 0"),
        ({"lr_schedule": {"warmup": True}}, r"\['warmup'\] is True; allowed: int"),
        ({"lr_schedule": {"warmup": 5, "decay": "linear", "total": 5}}, r"counts the warm-up, too, so it must be > 5"),
        (
            {"lr_schedule": {"decay": "linear", "total": 5, "min": 1.0}},
            r"\['min'\] is 1.0; allowed: float, >= 0, <= tr",
        ),
        ({"lr_schedule": {"warmup": 5, "min": 1e-5}}, r"\['min'\] has no effect with a constant rate"),
        ({"lr_schedule": {}}, r"changes nothing. For example \{'unit': 'updates'"),
        ({"lr_schedule": "cosine"}, r"lr_schedule is 'cosine'; allowed: dict or None"),
        ({"lr": [[0, 1e-3], [9, 1e-4]], "lr_schedule": {"warmup": 5}}, r"are both set; keep one"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_sentence(training, message, tiny_dense):
    with pytest.raises(SettingError, match=message) as refused:
        learner_config(tiny_dense, **{"lr": 1e-3, **training}).validate()
    assert "\n" not in str(refused.value)


def test_the_command_takes_it(tiny_dense, capsys):
    schedule = "training.lr_schedule={unit: updates, warmup: 3, decay: cosine, total: 20, min: 1.0e-6}"
    arguments = ["calculator", f"rl_module.model_config.path={tiny_dense}", "generation.engine=transformers"]
    assert main(["validate", *arguments, schedule]) == 0
    assert main(["validate", *arguments, schedule, "training.lr_schedule.total=2"]) == 1
    assert "it counts the warm-up, too" in capsys.readouterr().err
