"""An evaluation is the same tasks and the same samples, whoever plays them and whatever happens to single runners."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import ray

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.driver.evaluation import evaluate
from gspo_rllib.engines import registry
from gspo_rllib.errors import SettingError
from gspo_rllib.types import turns

ROWS = [{"question": f"{n} + 0?", "answer": str(n)} for n in range(7)]


def _algorithm(path, **changes):
    return _config(path, **changes).build_algo()


def _config(path, *, training=0, evaluation=0, max_staleness=0, duration=7, unit="episodes", **overrides):
    return (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Dataset-v0", env_config={"rows": ROWS})
        .rl_module(model_config={"path": str(path)})
        .generation(engine="transformers", max_tokens_per_turn=6)
        .env_runners(num_env_runners=training, num_envs_per_env_runner=4)
        .training(group_size=2, groups_per_iteration=2, num_minibatches=1, lr=1e-3, max_staleness=max_staleness)
        .evaluation(
            evaluation_num_env_runners=evaluation,
            evaluation_interval=1,
            evaluation_duration=duration,
            evaluation_duration_unit=unit,
            evaluation_config=GSPOConfig.overrides(**overrides),
        )
        .debugging(seed=1)
    )


def _played(algo, unit="episodes", duration=7):
    algo._before_evaluate()
    runners = algo.eval_env_runner_group or algo.env_runner_group
    groups, _ = evaluate(runners, algo._weights, algo.evaluation_config, duration=duration, unit=unit)
    return [
        (episode.get_observations(0), np.concatenate([turn.action_token_ids for turn in turns(episode)]).tolist())
        for group in groups
        for episode in group.episodes
    ]


@pytest.mark.slow
def test_every_row_once_whoever_plays_and_after_a_runner_was_lost(tiny_dense, ray_local):
    played = {}
    for training, evaluation in ((0, 0), (0, 2)):
        algo = _algorithm(tiny_dense, training=training, evaluation=evaluation)
        try:
            played[training, evaluation] = _played(algo)
            if evaluation:
                runner = next(iter(algo.eval_env_runner_group._worker_manager.actors().values()))
                ray.kill(runner, no_restart=True)
                played["one was killed"] = _played(algo)
        finally:
            algo.stop()
    (first, *others) = played.values()
    assert [question for question, _ in first] == [row["question"] for row in ROWS]
    assert all(other == first for other in others)


@pytest.mark.parametrize(("training", "max_staleness"), [(0, 0), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_training_runners_play_it_on_the_engines_they_have(training, max_staleness, tiny_dense, ray_local):
    algo = _algorithm(tiny_dense, training=training, max_staleness=max_staleness, explore=False)
    try:
        scores = []
        for _ in range(2):
            result = algo.train()
            assert result["evaluation"]["env_runners"]["num_episodes"] == 7
            assert result["evaluation"]["env_runners"]["weights_seq_no"] == algo._weights.version
            scores.append(algo.evaluate()["env_runners"]["episode_return_mean"])
            assert scores[-1] == result["evaluation"]["env_runners"]["episode_return_mean"]
        assert algo.eval_env_runner_group is None
        engines = algo.env_runner_group.foreach_env_runner(
            lambda runner: (len(registry._held), runner._evaluator._engine is runner._engine),
            local_env_runner=not training,
        )
        assert engines == [(1, True)]
        assert len(registry._held) == (0 if training else 1), "the driver of remote runners loads no model"
    finally:
        algo.stop()
    assert not registry._held


def test_all_tasks_each_as_often_as_a_group_has_members_with_estimates(tiny_dense, ray_local):
    algo = _algorithm(tiny_dense, duration="all", env_config={"rows": ROWS[:5]}, group_size=3)
    try:
        result = algo.evaluate()["env_runners"]
        assert result["num_episodes"] == 15
        assert set(result["estimates"]) == {"accuracy", "pass@2", "pass@3", "maj@3"}
        accuracy = result["estimates"]["accuracy"]
        assert accuracy["low"] <= accuracy["value"] == result["success_mean"] <= accuracy["high"]
    finally:
        algo.stop()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "gspo_rllib.envs:gspo_rllib/Quest-v0", "env_config": {}}, r"Quest-v0 does not count its tasks"),
        ({"unit": "timesteps"}, r"unit is 'timesteps', but an evaluation_duration of 'all' means every task"),
    ],
)
def test_all_of_what_cannot_be_counted_is_refused(changes, message, tiny_dense):
    with pytest.raises(SettingError, match=message):
        _config(tiny_dense, duration="all", **changes).validate()


def test_evaluating_what_is_trained_on_is_said(tiny_dense, caplog):
    _config(tiny_dense, duration="all").validate()
    assert "evaluation plays the same 7 tasks that are trained on" in caplog.text
    caplog.clear()
    _config(tiny_dense, duration="all", env_config={"rows": ROWS[:5]}).validate()
    assert "trained on" not in caplog.text


def test_an_evaluation_in_steps_has_at_least_so_many(tiny_dense, ray_local):
    algo = _algorithm(tiny_dense, env_config={"rows": ROWS, "attempts": 2})
    try:
        played = _played(algo, unit="timesteps", duration=9)
        assert len(played) == 8, "two rounds of four slots, of two turns each"
        assert [question for question, _ in played] == [row["question"] for row in itertools.chain(ROWS, ROWS[:1])]
    finally:
        algo.stop()


def test_a_user_s_own_evaluation_is_given_runners_and_told_what_to_return(tiny_dense, ray_local):
    counted = itertools.count()

    def scored(algorithm, env_runners):
        (episodes,) = env_runners.foreach_env_runner(lambda runner: runner.sample(num_episodes=4, explore=False))
        measured = {"num_episodes": len(episodes)}
        return (measured, sum(map(len, episodes)), 4) if next(counted) else measured

    algo = _config(tiny_dense).evaluation(custom_evaluation_function=scored).build_algo()
    try:
        with pytest.raises(ValueError, match=r"returned \{'num_episodes': 4\}\. Return a tuple: a dict of metrics"):
            algo.evaluate()
        assert algo.evaluate()["num_episodes"] == 4
    finally:
        algo.stop()


def test_evaluation_with_an_engine_of_its_own_keeps_up_with_the_weights(tiny_dense, ray_local):
    algo = _algorithm(tiny_dense, max_model_len=128)
    try:
        for _ in range(2):
            assert algo.train()["evaluation"]["env_runners"]["weights_seq_no"] == algo._weights.version
        assert algo.env_runner._evaluator._engine is not algo.env_runner._engine
    finally:
        algo.stop()
    assert not registry._held
