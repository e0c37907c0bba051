"""reasoning-gym, played for real."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys

import pytest

from gspo_rllib.envs import check_language_env
from gspo_rllib.envs.adapters.reasoning_gym import NEEDS_PYCOSAT
from gspo_rllib.errors import EnvError, SettingError
from tests.envs.adapters.suites import make, needs, play

# Datasets whose scorers would run the answer as code.
RUNNERS = [
    "binary_matrix",
    "n_queens",
    "spiral_matrix",
    "string_insertion",
    "countdown",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "intermediate_integration",
]
needs_reasoning_gym = needs("reasoning_gym")


@needs_reasoning_gym
@pytest.mark.parametrize("dataset", ["chain_sum", "countdown", "pool_matrix"])
def test_reasoning_gym_keeps_the_contract(dataset) -> None:
    check_language_env("gspo_rllib.envs:gspo_rllib/ReasoningGym-v0", dataset=dataset)


@needs_reasoning_gym
@pytest.mark.parametrize(
    "dataset",
    ["chain_sum", "maze", "spell_backward", "string_manipulation", *RUNNERS],
)
def test_the_suite_s_own_answer_scores_one(dataset) -> None:
    env = make("ReasoningGym", dataset=dataset)
    for seed in range(5):
        assert play(env, env.expert(), seed=seed)[0] == 1.0
        _, info = env.reset(seed=seed)
        assert env.step(f"Let me see. <answer> {info['answer']} </answer> It is.")[1] == 1.0
        assert pickle.loads(pickle.dumps(env)).reset(seed=seed) == env.reset(seed=seed)


@needs_reasoning_gym
@pytest.mark.parametrize(
    "dataset",
    RUNNERS,
)
def test_no_answer_is_run_as_code(dataset, tmp_path) -> None:
    env = make("ReasoningGym", dataset=dataset)
    trace = tmp_path / "ran"
    for code in (
        f"open({str(trace)!r}, 'w')",
        f"[open({str(trace)!r}, 'w')]",
        f"(lambda: open({str(trace)!r}, 'w'))()",
    ):
        env.reset(seed=0)
        assert env.step(code)[1] == 0.0
        assert not trace.exists()
    env.reset(seed=0)
    assert env.step("9**9**9**9")[1] <= 0.05, "and no number is worked out that never ends"


@needs_reasoning_gym
def test_a_scorer_that_raises_makes_the_answer_invalid() -> None:
    env = make("ReasoningGym", dataset="prime_factorization")
    env.reset(seed=0)
    assert env.step("seven")[1:] == (0.0, True, False, {"valid_action": False, "obs_role": "user", "success": False})


@needs_reasoning_gym
def test_reasoning_gym_refuses_wrong_settings_and_has_no_expert_without_answers() -> None:
    with pytest.raises(SettingError, match="Did you mean 'chain_sum'"):
        make("ReasoningGym", dataset="chainsum")
    with pytest.raises(SettingError, match="refuses them"):
        make("ReasoningGym", dataset="chain_sum", params={"terms": 3})
    with pytest.raises(SettingError, match="set by the task"):
        make("ReasoningGym", dataset="chain_sum", params={"seed": 3})
    env = make("ReasoningGym", dataset="graph_color")
    observation, _ = env.reset(seed=0)
    with pytest.raises(EnvError, match="no expert"):
        env.expert()(observation)


@needs_reasoning_gym
def test_without_pycosat_only_the_dataset_that_needs_it_is_refused(monkeypatch) -> None:
    make("ReasoningGym")
    importlib.util.find_spec("pycosat")  # raises if what stood in for it during the import was left behind
    monkeypatch.setitem(sys.modules, "pycosat", None)
    with pytest.raises(EnvError, match=r"'zebra_puzzles' needs pycosat.*pip install pycosat"):
        make("ReasoningGym", dataset="zebra_puzzles")
    datasets = importlib.import_module("reasoning_gym.factory").DATASETS
    near = {name for name, (kind, _) in datasets.items() if kind.__module__.startswith("reasoning_gym.logic.")}
    assert near > NEEDS_PYCOSAT
    for dataset in near - NEEDS_PYCOSAT:
        make("ReasoningGym", dataset=dataset).reset(seed=0)
