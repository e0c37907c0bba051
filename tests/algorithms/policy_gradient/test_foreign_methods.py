"""Every method of RLlib's ``Algorithm`` does what it says or is refused with what to use."""

from __future__ import annotations

from types import FunctionType

import numpy as np
import pytest
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.algorithms.policy_gradient.foreign_methods import RefusesOldCalls
from gspo_rllib.errors import SettingError

REFUSED = {
    "get_policy": "get_module()",
    "compute_actions": "generate([...])",
    "add_module": "There is one policy",
    "remove_module": "There is one policy",
    "add_policy": "There is one policy",
    "remove_policy": "There is one policy",
    "export_policy_model": "gspo-rllib export",
    "export_policy_checkpoint": "gspo-rllib export",
    "export_model": "gspo-rllib export",
    "evaluate_offline": "algo.train_on(groups)",
}
WORK = {
    *("from_checkpoint", "from_state", "get_default_config", "get_module", "compute_single_action", "evaluate"),
    *("get_weights", "set_weights", "save_checkpoint", "load_checkpoint", "get_state", "set_state"),
    *("get_checkpointable_components", "get_ctor_args_and_kwargs", "restore_from_path", "log_result", "cleanup"),
    *("default_resource_request", "resource_help", "step", "setup", "training_step", "restore_env_runners"),
    *("env_runner", "eval_env_runner"),
}
RLLIBS_OWN = {
    # Nothing of a run calls these, or RLlib itself says that they are gone.
    *("get_default_policy_class", "restore_offline_eval_runners", "get_auto_filled_metrics", "merge_algorithm_configs"),
    *("validate_env", "restore_workers", "workers", "evaluation_workers"),
}


def test_every_public_method_of_the_installed_rllib_is_judged() -> None:
    kinds = (FunctionType, classmethod, staticmethod, property)
    public = {name for name, value in vars(Algorithm).items() if isinstance(value, kinds) and name[0] != "_"}
    assert public == (WORK | RLLIBS_OWN | REFUSED.keys()) - {"export_model"}  # which is Ray Tune's


@pytest.mark.parametrize(("name", "says"), REFUSED.items())
def test_a_method_of_the_older_ways_says_what_to_use(name: str, says: str) -> None:
    assert getattr(GSPO, name) is vars(RefusesOldCalls)[name]
    with pytest.raises(SettingError) as refused:
        getattr(GSPO, name)(None, "x")
    assert str(refused.value).startswith(f"{name}: ") and says in str(refused.value)


def test_weights_that_are_set_are_those_that_answer_and_a_curriculum_goes_on(tiny_dense: str, ray_local: None) -> None:
    config = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 2})
        .rl_module(model_config={"path": tiny_dense})
        .generation(engine="transformers", max_tokens_per_turn=6)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .learners(num_learners=0)
        .training(group_size=2, groups_per_iteration=2, num_minibatches=1, curriculum=[{"operations": 1}])
    )
    algorithm = config.build_algo()
    try:
        algorithm._curriculum.restore(1)
        before = algorithm.generate("1 + 1?", temperature=0.0, max_tokens=12)
        weights = algorithm.get_weights()
        (name,) = weights
        assert name == DEFAULT_MODULE_ID
        noise = np.random.default_rng(0)
        other = {
            key: value + noise.normal(0, 0.5, value.shape).astype(value.dtype) for key, value in weights[name].items()
        }
        algorithm.set_weights({name: other})
        assert algorithm.generate("1 + 1?", temperature=0.0, max_tokens=12) != before
        assert algorithm._curriculum.stage == 1
        algorithm.set_weights(weights)
        assert algorithm.generate("1 + 1?", temperature=0.0, max_tokens=12) == before
    finally:
        algorithm.stop()
