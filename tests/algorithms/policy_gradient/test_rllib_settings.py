"""No setting of RLlib's is accepted and ignored: every attribute is in one table, and what the table says holds."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.tune.utils.serialization import TuneFunctionDecoder, TuneFunctionEncoder

from gspo_rllib.algorithms import ALGORITHMS, GSPO, GSPOConfig
from gspo_rllib.algorithms.policy_gradient import rllib_checks
from gspo_rllib.algorithms.policy_gradient.rllib_settings import RLLIB_SETTINGS
from gspo_rllib.algorithms.policy_gradient.settings_page import settings_page
from gspo_rllib.env_runners.agent_env_runner import AgentEnvRunner
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.errors import SettingError
from tests.toy_envs.coin_env import CoinEnv

PLAY = "gspo_rllib.agents.env_agent:play"
TWO_MODULES = MultiRLModuleSpec(rl_module_specs={"a": RLModuleSpec(), "b": RLModuleSpec()})


def _config(path):
    return (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": str(path)})
        .generation(engine="transformers", max_tokens_per_turn=6)
        .env_runners(num_envs_per_env_runner=8)
        .training(group_size=4, groups_per_iteration=2, num_minibatches=2, lr=1e-3)
        .debugging(seed=1)
    )


def _named(fate):
    return [name for name, setting in RLLIB_SETTINGS.items() if setting.fate == fate]


# -- the table and the installed RLlib


def test_the_table_has_every_attribute_of_rllibs_config_and_no_other():
    there = set(vars(AlgorithmConfig()))
    assert not there - set(RLLIB_SETTINGS), "new in RLlib: find out what reads it, and give it a row"
    assert not set(RLLIB_SETTINGS) - there, "gone from RLlib: take the row out"


def test_every_builder_that_a_message_names_takes_the_argument_it_names():
    for name in RLLIB_SETTINGS:
        builder, _, argument = rllib_checks.argument(name).partition(".")
        if builder != "config":
            assert argument in inspect.signature(getattr(AlgorithmConfig, builder)).parameters


def test_a_setting_that_is_called_used_or_forwarded_is_read_by_what_runs_here(tmp_path):
    """Its name occurs as an attribute in this package, or in a file of RLlib's or Tune's that runs here."""
    import ray

    import gspo_rllib

    package, rllib = Path(gspo_rllib.__file__).parent, Path(ray.__file__).parent / "rllib"
    running = (
        *("algorithms/algorithm.py", "algorithms/utils.py", "env/env_runner.py", "env/env_runner_group.py"),
        *("core/learner/learner.py", "core/learner/learner_group.py", "core/learner/torch/torch_learner.py"),
        *("utils/framework.py", "utils/actor_manager.py", "../tune/trainable/trainable.py"),
    )
    sources = [path for top in package.iterdir() if top.is_dir() for path in top.resolve().rglob("*.py")]
    own = "\n".join(path.read_text() for path in sources if "rllib_" not in path.name)
    text = own + "\n".join((rllib / name).read_text() for name in running)
    text += inspect.getsource(AlgorithmConfig.build_learner_connector) + inspect.getsource(AlgorithmConfig.validate)
    text += inspect.getsource(AlgorithmConfig.rl_module_spec.fget) + inspect.getsource(
        AlgorithmConfig.learner_class.fget
    )
    # Read by name, built from the event, or by code of the user's own.
    elsewhere = {"learner_config_dict", *(name for name in RLLIB_SETTINGS if name.startswith("callbacks_on_"))}
    for name in [*_named("used"), *_named("forwarded")]:
        assert name in elsewhere or f".{name}" in text or f'"{name}"' in text, name


# -- whatever is refused is refused, however it is set

FLAGS = {False: True, True: False}


def _another(default):
    if isinstance(default, bool):
        return FLAGS[default]
    if isinstance(default, (int, float)) and default != -1:
        return default + 1
    return {"something": 1} if isinstance(default, dict) else "something else"


def _changed(name):
    default = vars(GSPOConfig())[name]
    return {"_is_atari": True, "simple_optimizer": True}.get(name, _another(default))


@pytest.mark.parametrize("name", _named("refused"))
def test_another_value_than_the_default_is_refused_with_the_remedy(name, tiny_dense):
    config = _config(tiny_dense)
    setattr(config, name, _changed(name))
    with pytest.raises(SettingError) as caught:
        config.validate()
    for part in (rllib_checks.argument(name), "; allowed: ", RLLIB_SETTINGS[name].note):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c.offline_data(input_=["/data"]), ["offline_data.input_", "algo.train_on(groups)"]),
        (lambda c: c.offline_data(output="/data"), ["offline_data.output is '/data'", "on_sample_end"]),
        (lambda c: c.multi_agent(policies={"a", "b"}, policy_mapping_fn=lambda *_: "a"), ["multi_agent.polic"]),
        (lambda c: c.api_stack(False, False), ["api_stack.enable_"]),
        (lambda c: c.env_runners(explore=False), ["env_runners.explore is False", "evaluation_config"]),
        (lambda c: c.env_runners(batch_mode="truncate_episodes"), ["batch_mode", "max_turns"]),
        (lambda c: c.env_runners(env_to_module_connector=lambda *_: []), ["env_to_module_connector", "wrapper"]),
        (lambda c: c.env_runners(observation_filter="MeanStdFilter"), ["observation_filter is 'MeanStdFilter'"]),
        (lambda c: c.framework("tf2"), ["framework.framework is 'tf2'; allowed: 'torch'"]),
        (lambda c: setattr(c, "train_batch_size", 4000), ["training.train_batch_size is 4000", "num_minibatches"]),
        (lambda c: setattr(c, "train_batch_size_per_learner", 5), ["training.train_batch_size_per_learner is 5"]),
        (lambda c: c.update_from_dict({"model": {"fcnet_hiddens": [8]}}), ["{'fcnet_hiddens': [8]}", "rl_module"]),
        (lambda c: c.update_from_dict({"optimizer": {"type": "sgd"}}), ["training.optimizer", "adam_betas"]),
        (lambda c: c.update_from_dict({"grad_clip_by": "value"}), ["training.grad_clip_by is 'value'", "grad_clip"]),
        (lambda c: c.__setitem__("shuffle_batch_per_epoch", True), ["training.shuffle_batch_per_epoch is True"]),
        (lambda c: c.env_runners(num_env_runners=-1), ["num_env_runners is -1; allowed: a whole number, >= 0"]),
        (lambda c: c.learners(num_learners=1.5), ["learners.num_learners is 1.5"]),
        (lambda c: c.resources(placement_strategy="PAK"), ["Did you mean 'PACK'?"]),
        (lambda c: setattr(c, "evaluation_duration_unit", "episode"), ["Did you mean 'episodes'?"]),
        (lambda c: c.learners(learner_class=TorchLearner), ["learner_class", "allowed: LanguageLearner"]),
        (lambda c: c.env_runners(env_runner_cls=SingleAgentEnvRunner), ["allowed: LanguageEnvRunner"]),
        (lambda c: c.rl_module(rl_module_spec=TWO_MODULES), ["rl_module_spec", "one policy"]),
        (lambda c: c.rl_module(rl_module_spec=RLModuleSpec(model_config={"x": 1})), ["rl_module_spec.model_config"]),
        (lambda c: setattr(c, "group_sise", 4), ["config.group_sise is no setting", "Did you mean 'group_size'?"]),
        (lambda c: setattr(c, "warp_factor", 4), ["config.warp_factor is no setting", "learner_config_dict"]),
    ],
)  # fmt: skip
def test_what_would_be_ignored_is_refused_whichever_way_it_is_set(change, parts, tiny_dense):
    config = _config(tiny_dense)
    change(config)
    with pytest.raises(SettingError) as caught:
        config.build_algo()
    for part in parts:
        assert part in str(caught.value)


def test_a_config_of_another_algorithm_is_refused_when_it_is_trained_with(tiny_dense):
    with pytest.raises(SettingError, match=r"docs/settings\.md"):
        GSPO(config=PPOConfig().environment(CoinEnv))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.fault_tolerance(restart_failed_sub_environments=True, max_num_env_runner_restarts=3),
        lambda c: c.framework(torch_skip_nan_gradients=True),
        lambda c: c.env_runners(episodes_to_numpy=False, num_cpus_per_env_runner=0.5),
        lambda c: c.learners(learner_config_dict={"mine": 1}, num_cpus_per_learner="auto"),
        lambda c: c.debugging(log_level="INFO", log_sys_usage=False),
        lambda c: c.checkpointing(export_native_model_files=True),
        lambda c: c.reporting(min_time_s_per_iteration=1),
        lambda c: c.callbacks(on_train_result=lambda **_: None),
        lambda c: c.multi_agent(policies={"default_policy"}),
        lambda c: c.environment(is_atari=False),
    ],
)
def test_what_works_or_is_done_anyway_is_accepted(change, tiny_dense):
    config = _config(tiny_dense)
    change(config)
    config.validate()


def test_a_config_may_go_through_a_dict_a_state_and_a_copy(tiny_dense):
    config = _config(tiny_dense).evaluation(evaluation_interval=1, evaluation_config={"explore": False})
    config.validate()
    for again in (
        GSPOConfig().update_from_dict(config.to_dict()),
        GSPOConfig.from_state(config.get_state()),
        config.copy(),
    ):
        again.validate()
        again.get_evaluation_config_object().validate()


def test_a_users_own_config_class_may_have_settings_of_its_own(tiny_dense):
    class Own(GSPOConfig):
        def __init__(self, algo_class=None):
            super().__init__(algo_class)
            self.my_rate = 0.5

    config = Own().update_from_dict({**_config(tiny_dense).to_dict(), "my_rate": 0.1})
    config.validate()
    assert config.my_rate == 0.1


# -- names in dicts


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c.update_from_dict({"group_sise": 4}), ["config['group_sise']", "Did you mean 'group_size'?"]),
        (lambda c: c.update_from_dict({"evaluation_intervall": 1}), ["Did you mean 'evaluation_interval'?"]),
        (lambda c: c.update_from_dict({"evaluation_config": {"exlore": 0}}), ["Did you mean 'explore'?"]),
        (lambda c: c.update_from_dict({"model_config": {"pth": "x"}}).validate(), ["'pth'", "Did you mean 'path'?"]),
        (lambda c: c.evaluation(evaluation_config={"temprature": 0}), ["evaluation.evaluation_config['temprature']"]),
        (lambda c: setattr(c, "evaluation_config", {"exlore": 0}) or c.validate(), ["Did you mean 'explore'?"]),
        (lambda c: c.evaluation(evaluation_config={"lr": 1}).validate(), ["['lr'] is 1", "no effect on an evaluation"]),
        (lambda c: c.evaluation(evaluation_config={"num_learners": 2}).validate(), ["no effect on an evaluation"]),
        (lambda c: c.evaluation(evaluation_config={"num_env_runners": 2}).validate(), ["evaluation_num_env_runners"]),
        (lambda c: c.evaluation(evaluation_config={"batch_mode": "truncate_episodes"}).validate(), ["batch_mode"]),
        (lambda c: c.evaluation(evaluation_config={"model_config": {"path": "y"}}).validate(), ["no effect on"]),
    ],
)  # fmt: skip
def test_a_misspelt_or_idle_key_of_a_dict_is_refused(change, parts, tiny_dense):
    with pytest.raises(SettingError) as caught:
        change(_config(tiny_dense))
    for part in parts:
        assert part in str(caught.value)


def test_a_tune_space_is_refused_before_the_first_trial(tiny_dense):
    space = {**_config(tiny_dense).to_dict(), "group_sise": 4}
    with pytest.raises(SettingError, match="Did you mean 'group_size'"):
        GSPO.default_resource_request(space)
    with pytest.raises(SettingError, match="Did you mean 'group_size'"):
        GSPO(config=space)


def test_what_ray_tune_puts_into_a_trials_config_is_no_misspelt_setting(tiny_dense):
    own = {"__trial_info__": 1, "__stdout_file__": None, "__stderr_file__": None}
    GSPOConfig().update_from_dict({**_config(tiny_dense).to_dict(), **own}).validate()


def test_overrides_that_do_not_exist_are_rllibs_error_with_the_nearest_setting():
    with pytest.raises(KeyError, match="Did you mean 'explore'"):
        GSPOConfig.overrides(exlore=False)
    assert GSPOConfig.overrides(explore=False, callbacks=None) == {"explore": False, "callbacks_class": None}


def test_an_agent_that_is_set_by_attribute_or_dict_gets_the_runner_that_plays_it(tiny_dense):
    config = _config(tiny_dense).environment(None).update_from_dict({"play": PLAY})
    config.validate()
    assert config.env_runner_cls is AgentEnvRunner
    config.play, config.env = None, CoinEnv
    config.validate()
    assert config.env_runner_cls is LanguageEnvRunner


# -- what is used has an effect


class _Seen(ConnectorV2):
    """Notes how many episodes the learner's pipeline was called with."""

    episodes: list[int] = []

    def __call__(self, *, batch, episodes, **kwargs):
        self.episodes.append(len(episodes))
        return batch


class _Callbacks(RLlibCallback):
    def on_environment_created(self, **kwargs):
        raise AssertionError("never called")


def test_a_callback_that_is_never_called_is_said_to_be_none(tiny_dense, caplog):
    _config(tiny_dense).callbacks(_Callbacks).validate()
    assert "_Callbacks.on_environment_created is never called" in caplog.text


def test_what_the_table_calls_used_or_forwarded_has_its_effect(tiny_dense, ray_local):
    events = []

    def note(event):
        return lambda **kwargs: events.append(event)

    named = [name for name in RLLIB_SETTINGS if name.startswith("callbacks_on_")]
    fired = [name for name in named if RLLIB_SETTINGS[name].fate == "forwarded"]
    happens = set(fired) - {"callbacks_on_env_runners_recreated", "callbacks_on_checkpoint_loaded"}
    config = _config(tiny_dense).learners(learner_connector=lambda *_: _Seen())
    config.evaluation(evaluation_interval=1, evaluation_duration=2, evaluation_config={"explore": False})
    config.reporting(min_sample_timesteps_per_iteration=20)
    for name in fired:
        setattr(config, name, note(name))
    algo = config.build_algo()
    try:
        result = algo.train()
    finally:
        algo.stop()
    assert set(events) == happens
    assert _Seen.episodes and set(_Seen.episodes) == {8}
    assert result["num_training_step_calls_per_iteration"] == 2  # 8 trajectories of 2 turns each are 16 turns
    assert result["evaluation"]["env_runners"]["num_episodes"] == 2


# -- iterations that learn nothing


class _NothingToLearn(CoinEnv):
    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 0.0, terminated, truncated, info


@pytest.mark.parametrize("zero_variance_groups", ["keep", "drop"])
def test_an_iteration_with_nothing_to_learn_from_ends_and_says_so(zero_variance_groups, tiny_dense, ray_local, caplog):
    config = _config(tiny_dense).environment(_NothingToLearn)
    config.training(zero_variance_groups=zero_variance_groups)
    algo = config.reporting(min_train_timesteps_per_iteration=10).build_algo()
    try:
        result = algo.train()
        assert algo.config.min_train_timesteps_per_iteration == 10
    finally:
        algo.stop()
    assert result["num_training_step_calls_per_iteration"] == 3
    assert "min_train_timesteps_per_iteration is 10, but 3 training steps in a row" in caplog.text


# -- the page


def test_the_page_of_settings_is_what_the_tables_say():
    page = Path(__file__).parents[3] / "docs" / "settings.md"
    assert page.read_text() == settings_page(), (
        "python -m gspo_rllib.algorithms.policy_gradient.settings_page writes it"
    )


def test_the_page_has_a_row_for_every_attribute():
    rows = [line for line in settings_page().splitlines() if line.startswith("| `")]
    assert len(rows) >= len(vars(GSPOConfig())) >= 60


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_config_that_tune_wrote_down_is_the_same_one(name: str, tiny_dense: str) -> None:
    """Where an experiment goes on, Tune reads its trials' configs from JSON; one that is refused begins all anew."""
    algorithm = ALGORITHMS[name]
    config = algorithm.get_default_config().environment(CoinEnv).rl_module(model_config={"path": tiny_dense})
    written = json.dumps(config.to_dict(), cls=TuneFunctionEncoder)
    read = algorithm.get_default_config()
    read.update_from_dict(TuneFunctionDecoder(allow_cloudpickle=True).decode(written))
    before, after = config.to_dict(), read.to_dict()
    assert not [key for key in before if type(before[key]) is not type(after[key]) or before[key] != after[key]]
    read.validate()
