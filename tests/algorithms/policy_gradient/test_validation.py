"""Every mistake a user can make in a config is one clear error that names the remedy, before any actor starts."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import pathlib
import shutil

import gymnasium as gym
import pytest
import ray

from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.errors import CheckpointError, EngineError, EnvError, ModelError, SettingError
from gspo_rllib.warmstart.models import CHAT_TEMPLATE, build_model, train_tokenizer


def _config(path, env="gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config=None):
    return (
        GSPOConfig()
        .environment(env, env_config={"operations": 1} if env_config is None else env_config)
        .rl_module(model_config={"path": str(path)})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .env_runners(num_env_runners=2)
        .training(group_size=2, groups_per_iteration=4)
    )


def _refused(config, error, *parts):
    with pytest.raises(error) as caught:
        config.build_algo()
    for part in parts:
        assert part in str(caught.value)
    assert not ray.is_initialized() or not ray.util.list_named_actors()


@pytest.mark.parametrize(
    ("knobs", "parts"),
    [
        ({"group_size": 1}, ["group_size is 1", ">= 2"]),
        ({"lr": "1e-6x"}, ["training.lr", "given as text"]),
        ({"lr": float("nan")}, ["training.lr", "nan"]),
        ({"clip_low": -0.1}, ["training.clip_low", ">= 0"]),
        ({"importance_sampling_level": "sequense"}, ["Did you mean 'sequence'?"]),
        ({"importance_sampling_level": "trajectory"}, ["'sequence'", "'turn'", "'token'"]),
        ({"old_log_probs": "vllm"}, ["'auto', 'engine', 'learner'"]),
        ({"num_minibatches": 8}, ["num_minibatches is 8", "4 groups_per_iteration"]),
        ({"num_epochs": 1.5}, ["training.num_epochs", "int"]),
        ({"grad_clip": 0.0}, ["training.grad_clip", "> 0"]),
        ({"adam_betas": [0.9, 1.0]}, ["adam_betas", "two numbers"]),
        ({"minibatch_size": 32}, ["minibatch_size", "num_minibatches"]),
        ({"target_kl": 0}, ["training.target_kl is 0", "> 0"]),
        ({"target_kl": -0.01}, ["training.target_kl is -0.01", "> 0"]),
        ({"target_kl": float("nan")}, ["training.target_kl", "nan"]),
        ({"clip_deviations": 0.0}, ["training.clip_deviations", "> 0"]),
        ({"min_informative_trajectories": -2}, ["training.min_informative_trajectories", ">= 0"]),
    ],
)
def test_an_illegal_training_setting_is_refused_at_build_time(tiny_dense, knobs, parts):
    _refused(_config(tiny_dense).training(**knobs), SettingError, *parts)


@pytest.mark.parametrize(
    ("knobs", "error", "parts"),
    [
        ({"temperature": 0.0}, SettingError, ["temperature is 0", "explore=False"]),
        ({"max_model_len": 100_000}, SettingError, ["max_model_len", "max_position_embeddings", "at most"]),
        ({"max_tokens_per_turn": 5000}, SettingError, ["max_tokens_per_turn", "no room for a prompt"]),
        ({"engine": "vlm"}, EngineError, ["Did you mean 'vllm'?"]),
        ({"engine_dtype": "float16"}, SettingError, ["'float32', 'bfloat16'"]),
        ({"step_timeout_s": 0}, SettingError, ["step_timeout_s", "> 0"]),
    ],
)
def test_an_illegal_generation_setting_is_refused_at_build_time(tiny_dense, knobs, error, parts):
    _refused(_config(tiny_dense).generation(**knobs), error, *parts)


@pytest.mark.parametrize("name", ["group_size", "min_informative_trajectories", "lr", "max_staleness", "kl_coeff"])
def test_minus_one_is_a_value_like_any_other(name, tiny_dense):
    """RLlib takes it for the mark of a deprecated setting, and would go on with the default."""
    _refused(_config(tiny_dense).training(**{name: -1}), SettingError, f"training.{name} is -1; allowed: ")


def test_a_state_keeps_what_rllib_leaves_out_and_nothing_that_is_its_own_mark(tiny_dense):
    config = _config(tiny_dense).env_runners(num_env_runners=-1)
    state = config.get_state()
    assert state["num_env_runners"] == -1
    assert [name for name, value in state.items() if isinstance(value, int) and value == -1] == ["num_env_runners"]


def test_a_misspelt_setting_is_refused_with_a_suggestion(tiny_dense):
    with pytest.raises(SettingError, match="Did you mean 'group_size'"):
        _config(tiny_dense).training(group_sise=4)
    with pytest.raises(SettingError, match="Did you mean 'temperature'"):
        _config(tiny_dense).generation(temprature=1.0)
    _refused(_config(tiny_dense).rl_module(model_config={"path": str(tiny_dense), "pth": 1}), SettingError, "'path'")


def test_an_unknown_environment_names_the_nearest_one(tiny_dense):
    _refused(_config(tiny_dense, "gspo_rllib.envs:gspo_rllib/Calculater-v0"), EnvError, "gspo_rllib/Calculator-v0")
    _refused(_config(tiny_dense, "no_such_package:Env-v0"), EnvError, "no_such_package")
    _refused(_config(tiny_dense, None), EnvError, "config.environment")


PLAY = "gspo_rllib.agents.env_agent:play"


def _made_here():
    async def play(task, session):
        return 0.0

    return play


_local_play = _made_here()


@pytest.mark.parametrize(
    ("knobs", "parts"),
    [
        ({"play": "my_package.bot.play"}, ["agent.play='my_package.bot.play': must be 'module:name'"]),
        ({"play": "lambda task, session: 0"}, ["must be 'module:name'"]),
        ({"play": "no_such_package:play"}, ["no_such_package cannot be imported"]),
        ({"play": "gspo_rllib.agents.env_agent:plan"}, ["Did you mean 'play'?"]),
        ({"play": lambda task, session: 0.0}, ["is not asynchronous"]),
        ({"play": 7}, ["agent.play is 7; allowed: str or Callable or None"]),
        ({"play": None, "tasks": [{}]}, ["agent.tasks is set, but agent.play is not"]),
        ({"tasks": "nowhere.jsonl"}, ["agent.tasks='nowhere.jsonl': no such file"]),
        ({"tasks": []}, ["agent.tasks is an empty list"]),
        ({"history": "sent"}, ["agent.history is 'sent'; allowed: 'sampled', 'as_sent'"]),
        ({"trajectory_timeout_s": 0}, ["agent.trajectory_timeout_s is 0", "> 0"]),
        ({"call_timeout_s": 0}, ["agent.call_timeout_s is 0", "> 0"]),
        ({"idle_timeout_s": "5"}, ["agent.idle_timeout_s is '5'", "given as text"]),
        ({"workers": "threads"}, ["agent.workers is 'threads'; allowed: 'thread', 'process', 'external'. Did you"]),
        ({"workers": "external"}, [f"agent.play='{PLAY}' and agent.workers='external' are both set; a harness"]),
        ({"workers": "external", "play": None}, ["nobody could learn the admin token. Name a folder for the add"]),
        (
            {"workers": "external", "play": None, "addresses": "a", "tasks": [{"t": (1, 2)}]},
            ["agent.tasks: task 0 is {'t': (1, 2)}, which is no plain JSON; it must be"],
        ),
        ({"workers": "external", "play": None, "addresses": ""}, ["agent.addresses='' is no folder; name one, for"]),
        ({"workers": "external", "play": None, "host": "me"}, ["agent.host='me' is no IP address"]),
        ({"addresses": "a"}, ["agent.addresses is set, but has no effect unless agent.workers='external'"]),
        ({"host": "0.0.0.0"}, ["agent.host is set, but has no effect unless agent.workers='external'"]),
        ({"workers": "process", "play": _local_play}, ["cannot be found by a name in another process, which agent.wo"]),
        ({"workers": "process", "tasks": [{1: 2}]}, ["agent.tasks: task 0 is {1: 2}, which is no plain JSON"]),
        ({"play": None, "workers": "process"}, ["agent.workers='process' is set, but agent.play is not"]),
    ],
)
def test_an_agent_that_cannot_play_is_refused_at_build_time(tiny_dense, knobs, parts):
    _refused(_config(tiny_dense, None).agent(**{"play": PLAY, **knobs}), SettingError, *parts)


def test_an_agent_plays_in_place_of_an_environment(tiny_dense):
    _refused(_config(tiny_dense).agent(PLAY), SettingError, "are both set; an agent plays in place of an environment")
    external = _config(tiny_dense).agent(workers="external", addresses="a")
    _refused(external, SettingError, "agent.workers='external' and environment.env=", "are both set")
    summarising = _config(tiny_dense, None).agent(PLAY).generation(context_overflow="summarize")
    _refused(summarising, SettingError, "context_overflow is 'summarize', which has no effect on an agent")
    with pytest.raises(SettingError, match="Did you mean 'tasks'"):
        GSPOConfig().agent(PLAY, task=[])
    with pytest.raises(TypeError, match="too many positional arguments"):
        GSPOConfig().agent(PLAY, [])
    with pytest.raises(TypeError, match="multiple values for argument 'play'"):
        GSPOConfig().agent(PLAY, play=PLAY)


def test_a_file_of_tasks_is_found_wherever_the_run_moves(tmp_path, monkeypatch):
    (tmp_path / "tasks.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    assert GSPOConfig().agent(PLAY, tasks="tasks.jsonl").tasks == str(tmp_path / "tasks.jsonl")


def test_an_environment_that_does_not_speak_text_is_refused(tiny_dense):
    _refused(_config(tiny_dense, "CartPole-v1", {}), EnvError, "observation_space", "UnicodeText")


def test_wrong_keyword_arguments_of_an_environment_are_reported(tiny_dense):
    _refused(_config(tiny_dense, env_config={"operation": 1}), EnvError, "operation")
    _refused(_config(tiny_dense, env_config={"operations": 99}), EnvError, "operations", "30")


def test_a_path_without_a_model_is_refused(tmp_path):
    _refused(_config(tmp_path / "nothing"), ModelError, "gspo-rllib warmstart")
    config = GSPOConfig().environment("gspo_rllib.envs:gspo_rllib/Calculator-v0")
    _refused(config, SettingError, "model_config['path']", "gspo-rllib warmstart")


def test_a_model_without_tokenizer_or_chat_template_is_refused(tiny_dense, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(pathlib.Path(tiny_dense) / name, bare)
    _refused(_config(bare), ModelError, "tokenizer")
    silent = shutil.copytree(tiny_dense, tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    config = json.loads((silent / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (silent / "tokenizer_config.json").write_text(json.dumps(config))
    _refused(_config(silent), ModelError, "chat template")


def test_vllm_where_it_is_not_installed_says_how_to_get_it(tiny_dense, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else real(name, *a))
    _refused(_config(tiny_dense).generation(engine="vllm"), EngineError, ".[vllm]", "transformers")


def test_a_missing_foreign_or_corrupt_checkpoint_is_refused(tiny_dense, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        GSPO.from_checkpoint(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="not written by GSPO"):
        GSPO.from_checkpoint(str(tiny_dense))


def test_settings_that_silently_are_not_gspo_are_warned_about(tiny_dense, caplog):
    _config(tiny_dense).training(num_minibatches=1).validate()
    assert "ratio is always 1" in caplog.text
    caplog.clear()
    _config(tiny_dense).training(clip_low=0.2, clip_high=0.2).validate()
    assert "token-level range" in caplog.text
    caplog.clear()
    _config(tiny_dense).validate()
    assert not caplog.text


@pytest.fixture
def templated(tmp_path):
    """A tiny model with a chat template of one's choice."""

    def make(template):
        tokenizer = train_tokenizer(["What is 1 + 2?"], vocab_size=270)
        tokenizer.chat_template = template
        return build_model(tmp_path / "model", tokenizer=tokenizer, num_layers=1)

    return make


CHATML = CHAT_TEMPLATE.replace(', "tool"]', "]")  # knows no tools


def test_a_chat_template_that_cannot_frame_the_environments_conversations_is_refused(templated):
    single = CHATML + "{%- if messages | length > 2 -%}{{ raise_exception('one question only') }}{%- endif -%}"
    arithmetic = "gspo_rllib.envs:gspo_rllib/Arithmetic-v0"
    _config(templated(single), env=arithmetic, env_config={}).validate()  # every episode has one turn
    _config(templated(single)).generation(max_turns=1).validate()
    _refused(_config(templated(single)), ModelError, "one question only", "generation(max_turns=1)")
    _refused(_config(templated("{{ messages[0].content | upper }}")), ModelError, "a message's content as it is")


def test_what_is_made_right_in_a_chat_template_is_told_before_the_first_actor(templated, caplog):
    _config(templated(CHATML)).generation(template_kwargs={"enable_thinking": False}).validate()
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "template_kwargs: the model's chat template never reads 'enable_thinking', so it has no effect. It reads none.",
        "it takes no message of the role 'tool' (unknown role tool; use system, user, assistant or tool): what tools "
        "return is shown as a user message. With obs_role='user' the environment asks for that itself.",
    ]


def test_arguments_of_the_chat_template_are_checked(tiny_dense):
    _refused(_config(tiny_dense).generation(template_kwargs="x"), SettingError, "template_kwargs is 'x'", "dict")
    config = _config(tiny_dense).generation(template_kwargs={"tools": []})
    _refused(config, SettingError, "may not hold 'tools'", "ChatSpec.tools")


def test_every_knob_is_documented_with_default_and_source():
    for method in (GSPOConfig.training, GSPOConfig.generation):
        text = method.__doc__ or ""
        for name, parameter in list(inspect.signature(method).parameters.items())[1:]:
            if name in vars(GSPOConfig()) and f"    {name}: " in text:
                line = next(line for line in text.splitlines() if line.startswith(f"    {name}: "))
                assert f"Default: {parameter.default!r} (" in line
    assert "clip_low: How far below 1" in (GSPOConfig.training.__doc__ or "")


def test_settings_are_read_as_one_frozen_object_that_follows_the_config():
    config = GSPOConfig().training(group_size=4, kl_coeff=0.1)
    settings = config.settings(TrainingSettings)
    assert (settings.group_size, settings.penalises_in_loss) == (4, True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.group_size = 8
    config.group_size = 8
    assert config.settings(TrainingSettings).group_size == 8


@pytest.mark.parametrize("name", [name for name, kind in vars(TrainingSettings).items() if isinstance(kind, property)])
def test_what_follows_from_settings_is_an_attribute_of_a_config_as_type_checkers_take_it_for(name):
    config = GSPOConfig().training(zero_variance_groups="resample", kl_coeff=0.1)
    assert getattr(config, name) == getattr(config.settings(TrainingSettings), name)


def test_the_tune_registry_knows_gspo():
    from ray.tune.registry import get_trainable_cls

    assert get_trainable_cls("GSPO") is GSPO
    assert isinstance(gym.spec("gspo_rllib/Calculator-v0"), gym.envs.registration.EnvSpec)


@pytest.mark.parametrize(
    ("learner_gpus", "runners", "runner_gpus", "named"),
    [
        (0, 0, 0, ["num_gpus_per_learner"]),
        (1, 0, 0, []),
        (0.5, 2, 0, ["num_gpus_per_env_runner"]),
        (0, 2, 0, ["num_gpus_per_learner", "num_gpus_per_env_runner"]),
        (0.5, 1, 0.5, []),
    ],
)
def test_a_gpu_that_nobody_asked_for_is_said_to_stay_idle(
    tiny_dense, caplog, monkeypatch, learner_gpus, runners, runner_gpus, named
):
    config = _config(tiny_dense).learners(num_gpus_per_learner=learner_gpus)
    config.env_runners(num_env_runners=runners, num_gpus_per_env_runner=runner_gpus)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    config.validate()

    found = [name for name in ("num_gpus_per_learner", "num_gpus_per_env_runner") if f"{name} is 0" in caplog.text]
    assert found == named


def test_where_there_is_no_gpu_none_is_missed(tiny_dense, caplog, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    _config(tiny_dense).validate()

    assert "num_gpus" not in caplog.text


def test_a_space_that_the_checker_refuses_is_told_in_training_with_the_same_words(tiny_dense, caplog, monkeypatch):
    """RLlib's users write Text(max_length=200): nothing is compared with it here, and whoever checks is told no."""
    from gspo_rllib import check_language_env
    from gspo_rllib.algorithms.policy_gradient import validation
    from tests.toy_envs.coin_env import CoinEnv

    class Narrow(CoinEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = gym.spaces.Text(max_length=200)

    monkeypatch.setattr(validation, "log_once", lambda key: True)
    with caplog.at_level("WARNING", logger="gspo_rllib"):
        GSPOConfig().environment(Narrow).rl_module(model_config={"path": tiny_dense}).validate()
    (told,) = [message for message in caplog.messages if "action_space" in message]
    with pytest.raises(EnvError) as refused:
        check_language_env(Narrow)
    for words in ("does not contain every text", "gspo_rllib.envs.UnicodeText()"):
        assert words in told and words in str(refused.value)
