"""An agent on vLLM samples what an environment does, over HTTP too."""

from __future__ import annotations

from typing import Any

import pytest

from gspo_rllib.engines import registry
from gspo_rllib.env_runners.agent_env_runner import AgentEnvRunner
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.types import turns
from tests.env_runners.small_runner import logp, runner_config

if "vllm" not in registry.available_engines():
    pytest.skip("vllm is not installed", allow_module_level=True)

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CALCULATOR: dict[str, Any] = {"env": "gspo_rllib.envs:gspo_rllib/Calculator-v0", "env_config": {"operations": 2}}
AGENT = {"tasks": [CALCULATOR], "history": "sampled", "trajectory_timeout_s": 120.0, "idle_timeout_s": 120.0}
OPTIONS = {"engine": "vllm", "max_model_len": 400, "group_size": 8}


def test_tokens_and_log_probabilities_are_those_of_the_environment(tiny_dense: str) -> None:
    config = runner_config(tiny_dense, CALCULATOR["env"], env_config=CALCULATOR["env_config"], **OPTIONS)
    env_runner = LanguageEnvRunner(config=config, worker_index=0, num_workers=0)
    plays = [f"gspo_rllib.agents.env_agent:{name}" for name in ("play", "play_over_http")]
    runners = [
        AgentEnvRunner(
            config=runner_config(tiny_dense, None, play=play, **AGENT, **OPTIONS), worker_index=0, num_workers=0
        )
        for play in plays
    ]
    try:
        from transformers import AutoModelForCausalLM

        state = AutoModelForCausalLM.from_pretrained(tiny_dense, dtype="float32").state_dict()
        env_runner.set_weights({name: tensor.numpy() for name, tensor in state.items()}, 1)
        expected = env_runner.sample(group_ids=["0", "1", "2"])
        for runner in runners:
            # One engine for all of this process.
            runner.set_weights({}, 1)
            episodes = runner.sample(group_ids=["0", "1", "2"])
            assert _ids(episodes) == _ids(expected)
            assert abs(logp(episodes) - logp(expected)).max() <= 1e-4
    finally:
        for one in (env_runner, *runners):
            one.stop()


def _ids(episodes: list[Any]) -> list[list[list[int]]]:
    return [[ids.tolist() for t in turns(e) for ids in (t.prompt_token_ids, t.action_token_ids)] for e in episodes]
