"""The RLlib env runner: groups by name, weights by version, its own evaluation tasks, metrics since last asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO

from gspo_rllib import metrics as names
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.errors import EnvError, SettingError, WeightSyncError
from gspo_rllib.types import GROUP, group_episodes, turns
from tests.env_runners.small_runner import Weights, runner_config, same_samples, shifted
from tests.toy_envs import faulty_envs


@pytest.fixture
def make_runner(tiny_dense: str, weights: Weights) -> Iterator[Callable[..., LanguageEnvRunner]]:
    runners: list[LanguageEnvRunner] = []

    def make(env: Any = faulty_envs.EchoEnv, *, version: int | None = 1, **changes: Any) -> LanguageEnvRunner:
        kwargs = {"worker_index": changes.pop("worker_index", 0), "num_workers": changes.pop("num_workers", 0)}
        runners.append(LanguageEnvRunner(config=runner_config(tiny_dense, env, **changes), **kwargs))
        if version is not None:
            assert runners[-1].set_weights(weights, version) == version
        return runners[-1]

    yield make
    for runner in runners:
        runner.stop()


def test_the_groups_named_by_the_driver_are_sampled_whole_and_in_order(make_runner: Callable) -> None:
    runner = make_runner(version=7)
    episodes = runner.sample(group_ids=["3/1", "3/0"], weights_version=7)
    groups = group_episodes(episodes)
    assert [(group.group_id, len(group.episodes)) for group in groups] == [("3/1", 2), ("3/0", 2)]
    assert {turn.policy_version for episode in episodes for turn in turns(episode)} == {7}
    assert all(episode.is_done and not episode.is_numpy for episode in episodes)
    assert runner.last_errors() == []


def test_the_same_names_give_the_same_samples_on_another_runner(make_runner: Callable) -> None:
    one = make_runner(worker_index=1, num_workers=2).sample(group_ids=["0/4"])
    other = make_runner(worker_index=2, num_workers=2).sample(group_ids=["0/5", "0/4"])
    assert same_samples(one, other[2:])
    another_run = make_runner(seed=1).sample(group_ids=["0/4"])
    assert another_run[0].get_observations(0) != one[0].get_observations(0)


def test_it_never_samples_with_other_weights_than_asked_for(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner(version=None)
    assert runner.get_weights_version() is None
    assert runner.sample(group_ids=["a"], weights_version=0) == []
    with pytest.raises(WeightSyncError, match="set_weights"):
        runner.sample(group_ids=["a"])
    runner.set_weights(weights, 4)
    assert runner.sample(group_ids=["a"], weights_version=5) == []
    assert runner.sample(group_ids=["a"], weights_version=3) == []
    assert len(runner.sample(group_ids=["a"], weights_version=4)) == 2
    assert runner.get_metrics()[names.NUM_VERSION_REFUSALS].peek() == 3


def test_older_weights_are_taken_back_and_known_ones_are_not_loaded_again(
    make_runner: Callable, weights: Weights
) -> None:
    runner = make_runner(version=5)
    first = runner.sample(group_ids=["a"])
    assert runner.set_weights(shifted(weights), 6) == 6
    second = runner.sample(group_ids=["a"])
    assert not same_samples(first, second)
    assert runner.set_weights(weights, 6) == runner.get_weights_version() == 6
    assert same_samples(runner.sample(group_ids=["a"]), second)
    assert runner.set_weights(weights, 5) == 5
    assert same_samples(runner.sample(group_ids=["a"]), first)
    assert runner.set_weights(shifted(weights), 5, force=True) == 5
    assert same_samples(runner.sample(group_ids=["a"]), second)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_rllibs_own_weight_sync_ends_in_the_engine(make_runner: Callable, weights: Weights, prefix: str) -> None:
    runner = make_runner(version=None)
    state = {prefix + name: value for name, value in weights.items()}
    runner.set_state({COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: state}, WEIGHTS_SEQ_NO: 3})
    assert runner.get_weights_version() == 3
    first = runner.sample(group_ids=["a"], weights_version=3)
    other = {prefix + name: value for name, value in shifted(weights).items()}
    runner.set_state({COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: other}, WEIGHTS_SEQ_NO: 2})
    assert runner.get_weights_version() == 2
    assert not same_samples(runner.sample(group_ids=["a"]), first)
    runner.set_state({NUM_ENV_STEPS_SAMPLED_LIFETIME: 99})
    assert runner.get_state() == {NUM_ENV_STEPS_SAMPLED_LIFETIME: 99}


def test_a_driver_with_remote_runners_loads_no_model_until_it_samples(make_runner: Callable, weights: Weights) -> None:
    spare = make_runner(version=None, worker_index=0, num_workers=2)
    spare.set_state({COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: weights}, WEIGHTS_SEQ_NO: 3})
    assert spare.get_weights_version() is None
    assert len(spare.sample(num_episodes=1)) == 2
    assert spare.get_weights_version() == 3


def test_every_evaluation_plays_the_same_tasks_and_none_of_training(make_runner: Callable, weights: Weights) -> None:
    runner = make_runner()

    def tasks(episodes: list) -> list[str]:
        return [episode.get_observations(0) for episode in episodes]

    first = runner.sample(num_episodes=3)
    assert [e.custom_data[GROUP].group_id for e in first] == ["evaluation/0"] * 2 + ["evaluation/1"] * 2
    more = runner.sample(num_episodes=1)
    assert [e.custom_data[GROUP].group_id for e in more] == ["evaluation/2"] * 2
    runner.set_weights(weights, 2)
    again = runner.sample(num_episodes=4)
    assert tasks(again) == tasks(first)
    trained = runner.sample(group_ids=["evaluation/0"])
    assert tasks(trained)[0] != tasks(first)[0]


def test_an_evaluation_in_steps_plays_whole_groups_until_it_has_enough(make_runner: Callable) -> None:
    episodes = make_runner().sample(num_timesteps=13)
    assert sum(map(len, episodes)) >= 13
    assert all(len(group.episodes) == 2 for group in group_episodes(episodes))


def test_without_exploration_the_most_likely_tokens_are_taken(make_runner: Callable) -> None:
    runner = make_runner(explore=False)
    first, second = runner.sample(group_ids=["a"])
    assert first.get_actions() == second.get_actions()
    first, second = runner.sample(group_ids=["a"], explore=True)
    assert first.get_actions() != second.get_actions()


def test_training_and_evaluation_in_one_process_share_an_engine(make_runner: Callable) -> None:
    training = make_runner(version=1)
    evaluation = make_runner(version=None, in_evaluation=True, explore=False, group_size=1)
    assert len(evaluation.sample(num_episodes=1, weights_version=1)) == 1, "the shared engine holds them already"
    evaluation.set_state({WEIGHTS_SEQ_NO: 1, COMPONENT_RL_MODULE: {}})
    assert evaluation._engine is training._engine
    assert len(evaluation.sample(num_episodes=1)) == 1
    training.stop()
    assert len(evaluation.sample(num_episodes=1)) == 1


def test_stopping_closes_the_engine_and_a_stopped_runner_can_start_again(
    make_runner: Callable, weights: Weights
) -> None:
    runner = make_runner()
    engine = runner._engine
    runner.stop()
    assert runner.get_weights_version() is None
    with pytest.raises(Exception, match="closed"):
        engine.load_weights(weights, 2)
    runner.set_weights(weights, 2)
    assert len(runner.sample(group_ids=["a"], weights_version=2)) == 2


def test_metrics_cover_what_was_sampled_since_they_were_last_asked_for(make_runner: Callable) -> None:
    runner = make_runner(faulty_envs.ChattyEnv, env_config={"turns": 2})
    runner.sample(group_ids=["0/0", "0/1"])
    runner.get_metrics()
    episodes = runner.sample(group_ids=["1/0"])
    reduced = runner.get_metrics()
    found = {name: stats.peek() for name, stats in reduced.items() if not isinstance(stats, dict)}
    sampled = sum(len(turn.action_token_ids) for episode in episodes for turn in turns(episode))
    prompted = sum(len(turn.prompt_token_ids) for episode in episodes for turn in turns(episode))
    expected = {
        "num_episodes": 2,
        "num_env_steps_sampled": 4,
        "episode_return_mean": 2.0,
        "episode_return_min": 2.0,
        "episode_return_max": 2.0,
        "episode_len_mean": 2.0,
        "weights_seq_no": 1,
        names.NUM_GROUPS: 1,
        names.NUM_TOKENS_SAMPLED: sampled,
        names.NUM_TOKENS_PROMPTED: prompted,
        names.NUM_TOKENS_DISCARDED: 0,
        names.NUM_INVALID_ACTIONS: 4,
        names.NUM_GROUPS_GIVEN_UP: 0,
        names.NUM_TRAJECTORY_RETRIES: 0,
        names.TURN_TOKENS_MEAN: sampled / 4,
    }
    assert {name: found[name] for name in expected} == expected
    assert found[names.SUCCESS_MEAN] in (0.0, 1.0)
    assert 0 < found[names.ENGINE_BUSY_S] < found[names.SAMPLE_S]
    # The last value of a trajectory of two turns; what is no number is left out.
    assert {name: stats.peek() for name, stats in reduced[names.ENV_METRICS].items()} == {"echoes": 2.0}
    assert runner.num_env_steps_sampled_lifetime == 12


def test_failures_and_truncations_are_counted_by_kind(make_runner: Callable) -> None:
    faulty_envs.FailingEnv.failures.clear()
    runner = make_runner(faulty_envs.FailingEnv, env_config={"fault": "nan_reward", "times": 1}, max_turns=1)
    runner.sample(group_ids=["a", "b"])
    reduced = runner.get_metrics()
    kinds = {kind: stats.peek() for kind, stats in reduced[names.NUM_TRAJECTORY_FAILURES].items()}
    assert kinds == {"raised": 0, "timeout": 0, "invalid": 2, "context": 0, "engine": 0}
    assert {cause: s.peek() for cause, s in reduced[names.NUM_TRUNCATED].items()} == {
        "turns": 4,
        "context": 0,
        "tokens": 0,
        "time": 0,
        "env": 0,
    }
    assert reduced[names.NUM_TRAJECTORY_RETRIES].peek() == 2
    assert reduced[names.NUM_TOKENS_DISCARDED].peek() > 0


def test_when_no_group_can_be_completed_it_returns_nothing_and_keeps_the_reasons(make_runner: Callable) -> None:
    runner = make_runner(faulty_envs.FailingEnv, env_config={"fault": "raise_reset"})
    assert runner.sample(group_ids=["a", "b"]) == []
    [error] = runner.last_errors()
    assert "OSError: the game server is away" in error
    assert "faulty_envs.py" in error
    assert runner.get_metrics()[names.NUM_GROUPS_GIVEN_UP].peek() == 2


def test_an_evaluation_that_cannot_play_at_all_ends_with_the_reason(make_runner: Callable) -> None:
    runner = make_runner(faulty_envs.FailingEnv, env_config={"fault": "raise_reset"}, in_evaluation=True)
    with pytest.raises(EnvError, match="the game server is away"):
        runner.sample(num_episodes=2)


def test_rllib_callbacks_hear_of_every_episode(make_runner: Callable) -> None:
    heard: list[tuple[str, Any]] = []

    class Listener(RLlibCallback):
        def on_episode_start(self, *, episode, env_runner, metrics_logger, env, env_index, rl_module, **kwargs) -> None:
            heard.append(("start", type(env)))

        def on_episode_step(self, *, episode, **kwargs) -> None:
            heard.append(("step", episode.get_rewards(-1)))

        def on_episode_end(self, *, episode, metrics_logger, **kwargs) -> None:
            heard.append(("end", episode.is_done))
            metrics_logger.log_value("mine", 5, reduce="sum")

        def on_sample_end(self, *, env_runner, samples, **kwargs) -> None:
            heard.append(("sample_end", len(samples)))

    runner = make_runner(env_config={"turns": 1}, group_size=1, callbacks_class=Listener)
    runner.sample(group_ids=["a"])
    assert heard == [("start", faulty_envs.EchoEnv), ("step", 1.0), ("end", True), ("sample_end", 1)]
    assert runner.get_metrics()["mine"].peek() == 5


def test_spaces_are_reported_under_the_names_rllib_reads(make_runner: Callable) -> None:
    spaces = make_runner(version=None).get_spaces()
    assert set(spaces) == {"__env__", "__env_single__", DEFAULT_MODULE_ID}
    assert all(pair == (faulty_envs.TEXT, faulty_envs.TEXT) for pair in spaces.values())


def test_random_actions_are_refused(make_runner: Callable) -> None:
    with pytest.raises(SettingError, match="random_actions"):
        make_runner(version=None).sample(random_actions=True)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_it_works_as_a_ray_actor_and_its_episodes_travel(tiny_dense: str, weights: Weights) -> None:
    import ray

    config = runner_config(tiny_dense, faulty_envs.UnpicklableInfoEnv)
    actor = ray.remote(num_cpus=1)(LanguageEnvRunner).remote(config=config, worker_index=1, num_workers=1)
    stored = ray.put(weights)
    assert ray.get(actor.set_weights.remote(stored, 3)) == 3
    state = {COMPONENT_RL_MODULE: ray.put({DEFAULT_MODULE_ID: shifted(weights)}), WEIGHTS_SEQ_NO: 2}
    ray.get(actor.set_state.remote(state))
    episodes = ray.get(actor.sample.remote(group_ids=["a"], weights_version=2))
    assert [len(episode) for episode in episodes] == [3, 3]
    assert {turn.policy_version for episode in episodes for turn in turns(episode)} == {2}
    ray.get(actor.stop.remote())
    ray.kill(actor)
