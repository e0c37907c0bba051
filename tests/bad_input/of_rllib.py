"""Bad values of RLlib's settings, and bad calls of its builders."""

from __future__ import annotations

from gspo_rllib.algorithms import GSPOConfig
from tests.bad_input.case import CALCULATOR, Case, built, settings
from tests.bad_input.of_settings import HEX, HUGE, INF, NAMED, NAN, PAIR

ACTORS = "a whole number, >= 0, <= 100000."
SWITCH = "True, False."
SEED = "a whole number, >= 0, <= 4290000000."
DURATION = "a whole number, >= 1, <= 2147483647, or 'all'."
AMOUNTS = "a mapping of resources' names to numbers >= 0, e.g. {'accelerator': 1}."
UNITS = "'episodes', 'timesteps'."
MAPPING = f"{NAMED}."

VALUES: list[Case] = [
    *settings(ACTORS, env_runners__num_env_runners=[1.5, -1, "2", True, None, [1], HEX, NAN, INF, 1e300, PAIR, {}]),
    *settings(ACTORS, learners__num_learners=[1.5, -1, "two", True, None, [1], HUGE, NAN]),
    *settings(ACTORS, evaluation__evaluation_num_env_runners=[0.5, -1, "1", True, None, [0]]),
    *settings(
        "a whole number, >= 1, <= 1048576.",
        env_runners__num_envs_per_env_runner=[0, -3, 1.5, "8", True, None, [8], HEX, NAN, INF, PAIR],
    ),
    *settings("a number, >= 0.", env_runners__num_cpus_per_env_runner=[-1, NAN, INF, "1", True, None, [1], PAIR]),
    *settings("a number, a whole one above 1, >= 0.", learners__num_gpus_per_learner=[1.5, -1, NAN, "1", True, None]),
    *settings("a number, >= 0, or 'auto'.", learners__num_cpus_per_learner=[-1, "all", NAN, True, None, [1]]),
    *settings(SEED, debugging__seed=[-1, 2**70, 1.5, "1", True, [1], NAN, HEX, 2**32, PAIR, {}]),
    *settings(DURATION, evaluation__evaluation_duration=[0, -1, 1.5, "auto", "All", "ten", True, None, [1], NAN, HEX]),
    *settings(UNITS, evaluation__evaluation_duration_unit=[None, 1, ["episodes"], PAIR]),
    *settings(f"{UNITS} Did you mean 'episodes'?", evaluation__evaluation_duration_unit=["episode", "Episodes"]),
    *settings(f"{UNITS} Allowed: episodes, timesteps.", evaluation__evaluation_duration_unit=["days"]),
    *settings(SWITCH, env_runners__explore=[1, "no", None, [True], 0.5], env_runners__create_local_env_runner=["x", 0]),
    *settings(SWITCH, fault_tolerance__restart_failed_env_runners=["yes", 2, None, [], PAIR]),
    *settings(MAPPING, environment__env_config=[None, [1], "operations=1", 5, True, {1: 2}, {"": 1}, PAIR]),
    *settings(
        MAPPING, rl_module__model_config=[[1], "models/seed", 5, {1: 2}], learners__learner_config_dict=["x", [1]]
    ),
    *settings(MAPPING, framework__torch_ddp_kwargs=["x", [1], {1: 2}, 5]),
    *settings(AMOUNTS, learners__custom_resources_per_learner=["tpu", [1], {"tpu": -1}, {1: 1}, {"tpu": "1"}, 5]),
    *settings(AMOUNTS, env_runners__custom_resources_per_env_runner=[{"tpu": NAN}, {"tpu": True}, None]),
    *settings(
        "LanguageEnvRunner, or a subclass of it.", env_runners__env_runner_cls=["Runner", int, 5, [1], print, PAIR]
    ),
    *settings("LanguageLearner, or a subclass of it.", learners__learner_class=["Learner", int, 5, print]),
    *settings("a function or class, or a list of them.", callbacks__on_train_result=["print", 5, [1], {}, PAIR]),
    *settings("RLlibCallback, or a subclass of it.", callbacks__callbacks_class=[int, dict]),
    *settings(
        "a mapping of settings and their values, or a config.", evaluation__evaluation_config=[[1], "x", 5, True]
    ),
    *settings(
        "'torch'. Models are torch's: framework('torch').", framework__framework=["tf2", "tf", None, 5, ["torch"]]
    ),
    *settings(
        "0. Whole groups go straight to the learners, one update at a time. Leave it out.",
        learners__num_aggregator_actors_per_learner=[1, 2, -1, "x", [1]],
    ),
    *settings(
        "a number, >= 0, <= 31536000.", fault_tolerance__delay_between_env_runner_restarts_s=[-1, NAN, "x", HUGE]
    ),
    *settings("an RLModuleSpec. There is one policy, 'default_policy'.", rl_module__rl_module_spec=["x", 5, [1], int]),
    *settings("'DEBUG', 'INFO', 'WARN', 'WARNING', 'ERROR', 'CRITICAL'. …", debugging__log_level=["loud"]),
]


def _frozen(config: GSPOConfig) -> None:
    config.freeze()
    config.lr = 1e-5


def _attribute(name: str, value: object) -> Case:
    return built(f"config.{name}={value!r}", lambda c: setattr(c, name, value), f"{_PLACES[name]} is …; allowed: …")


_PLACES = {
    "num_env_runners": "env_runners.num_env_runners",
    "lr": "training.lr",
    "temperature": "generation.temperature",
    "env_config": "environment.env_config",
    "seed": "debugging.seed",
    "evaluation_config": "evaluation.evaluation_config",
    "_model_config": "rl_module.model_config",
}

CALLS: list[Case] = [
    built(
        "a frozen config",
        _frozen,
        "config.lr cannot be set to 1e-05: an algorithm has been built with this config. Change a copy: "
        "config.copy(copy_frozen=False), then build another algorithm with it.",
    ),
    built(
        "a computed attribute",
        lambda c: setattr(c, "model_config", {"path": "x"}),
        "config.model_config cannot be set to {'path': 'x'}: it follows from what its builder sets, e.g. "
        "rl_module(model_config={...}).",
    ),
    built(
        "training(1e-5)",
        lambda c: c.training(1e-5),
        "training: too many positional arguments, got 1e-05. Give settings by name, e.g. training(group_size=...).",
    ),
    built(
        "generation(1.0)",
        lambda c: c.generation(1.0),
        "generation: too many positional arguments, got 1.0. Give settings by name, e.g. generation(engine=...).",
    ),
    built(
        "env_runners(2)",
        lambda c: c.env_runners(2),
        "env_runners: too many positional arguments: 2. Give settings by name, e.g. env_runners(env_runner_cls=...).",
    ),
    built(
        "env_runners(num_env_runers=2)",
        lambda c: c.env_runners(num_env_runers=2),
        "env_runners.num_env_runers is unknown. Did you mean 'num_env_runners'?",
    ),
    built(
        "learners(num_lerners=2)",
        lambda c: c.learners(num_lerners=2),
        "learners.num_lerners is unknown. Did you mean 'num_learners'?",
    ),
    built("debugging(sed=2)", lambda c: c.debugging(sed=2), "debugging.sed is unknown. Did you mean 'seed'?"),
    built("training(lrr=1)", lambda c: c.training(lrr=1), "training.lrr is unknown. Did you mean 'lr'?"),
    built(
        "overrides(temprature=1)",
        lambda c: c.overrides(temprature=1),
        "overrides['temprature'] is no setting. Did you mean 'temperature'?",
    ),
    built(
        "evaluation_config key",
        lambda c: c.evaluation(evaluation_config={"explor": False}),
        "evaluation.evaluation_config['explor'] is no setting. Did you mean 'explore'?",
    ),
    built(
        "evaluation_config value",
        lambda c: c.evaluation(evaluation_config={"temperature": "hot"}),
        "evaluation.evaluation_config: generation.temperature is 'hot'; allowed: float, >= 0.01, <= 100, or 0.0; it "
        "was given as text",
    ),
    built(
        "evaluation_config greedy and at a temperature",
        lambda c: c.evaluation(evaluation_config={"explore": False, "temperature": 0.5}),
        "evaluation.evaluation_config['temperature'] is 0.5, which has no effect with explore=False: that takes the "
        "likeliest token. Leave one of the two out.",
    ),
    built(
        "max_summary_tokens",
        lambda c: c.generation(max_summary_tokens=9),
        "generation.max_summary_tokens is 9, which has no effect without context_overflow='summarize'. Set that, or "
        "leave max_summary_tokens out.",
    ),
    built(
        "evaluation_config count",
        lambda c: c.evaluation(evaluation_config={"group_size": -1}),
        "evaluation.evaluation_config: training.group_size is -1; allowed: int, >= 1, <= 65536",
    ),
    built(
        "evaluation in parallel",
        lambda c: c.evaluation(evaluation_parallel_to_training=True),
        "evaluation.evaluation_parallel_to_training is True; allowed: False. …",
    ),
    built(
        "update_from_dict([1])",
        lambda c: c.update_from_dict([1]),
        "update_from_dict got [1]; allowed: a dict of settings, or a config",
    ),
    built(
        "update_from_dict(None)",
        lambda c: c.update_from_dict(None),
        "update_from_dict got None; allowed: a dict of settings, or a config",
    ),
    *[
        built(
            f"from_dict({given!r})",
            lambda c, given=given: type(c).from_dict(given),
            f"from_dict got {given!r}; allowed: a dict of settings",
        )
        for given in ([1], None, "lr")
    ],
    built("from_dict key", lambda c: type(c).from_dict({"lrr": 1}), "config['lrr'] is no setting. Did you mean 'lr'?"),
    built(
        "update_from_dict key",
        lambda c: c.update_from_dict({"group_sise": 5}),
        "config['group_sise'] is no setting. Did you mean 'group_size'?",
    ),
    built(
        "update_from_dict key 5",
        lambda c: c.update_from_dict({5: 5}),
        "config[5] is no setting. docs/settings.md lists them.",
    ),
    built("update_from_dict value", lambda c: c.update_from_dict({"lr": [[1]]}), "training.lr is [[1]]; allowed: …"),
    built(
        "an attribute of no setting",
        lambda c: setattr(c, "group_sise", 5),
        "config.group_sise is no setting. Did you mean 'group_size'? …",
    ),
    _attribute("num_env_runners", 1.5),
    _attribute("lr", PAIR),
    _attribute("temperature", "hot"),
    _attribute("env_config", None),
    _attribute("seed", -1),
    _attribute("evaluation_config", [1]),
    _attribute("_model_config", None),
    built(
        "a config without a model",
        lambda c: c.update_from_dict({"_model_config": {}}),
        "rl_module.model_config['path'] is None; give a local Hugging Face folder or a hub name, …",
    ),
    built(
        "model_config key",
        lambda c: c.rl_module(model_config={"path": "x", "autocst_dtype": None}),
        "rl_module.model_config['autocst_dtype'] is unknown. Did you mean 'autocast_dtype'?",
    ),
    *[
        built(
            f"model path {path!r}",
            lambda c, path=path: c.rl_module(model_config={"path": path}),
            f"rl_module.model_config['path'] is {path!r}; give a local Hugging Face folder or a hub name, …",
        )
        for path in (5, [1], True, {"a": 1}, 1.5, None, "", 10**30)
    ],
    *[
        built(
            f"environment {env!r}",
            lambda c, env=env: c.environment(env),
            f"environment: got {env!r}; set config.environment(env=...) to a Gymnasium id such as '{CALCULATOR}', a "
            "name registered with ray.tune.register_env, or a class.",
        )
        for env in (5, ["a"], None, True, "", {"a": 1})
    ],
    *[
        built(
            f"environment {env!r}",
            lambda c, env=env: c.environment(env),
            f"environment {env!r} is no Gymnasium id; allowed: 'name-v0', 'namespace/name-v0', or either with the "
            f"module that registers it, as in '{CALCULATOR}'.",
        )
        for env in ("a:b:c", ":", "..:x", "x\0y", "a b", "os;rm", "a/", "é:")
    ],
    built(
        "a misspelt environment",
        lambda c: c.environment("gspo_rllib.envs:gspo_rllib/Calculater-v0"),
        "environment 'gspo_rllib.envs:gspo_rllib/Calculater-v0' is not registered with Gymnasium. Did you mean "
        "'gspo_rllib/Calculator-v0'?",
    ),
]

RLLIBS = [*VALUES, *CALLS]
