"""An agent is trained as an environment is: the same weights, with any number of runners, also beside learning."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import GSPOConfig
from gspo_rllib.cli.main import main
from tests.env_runners import agents

CALCULATOR = {"env": "gspo_rllib.envs:gspo_rllib/Calculator-v0", "env_config": {"operations": 1}}
PLAY = "gspo_rllib.agents.env_agent:play"


def _trained(path: str, *, agent: Any, num_env_runners: int = 0, iterations: int = 1, **training: Any) -> Any:
    config = (
        GSPOConfig()
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", max_tokens_per_turn=4)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=8)
        .training(group_size=2, groups_per_iteration=4, num_minibatches=2, lr=1e-3, **training)
        .evaluation(evaluation_interval=iterations, evaluation_duration=2)
        .debugging(seed=1)
    )
    if isinstance(agent, dict):
        config.agent(**agent)
    elif agent:
        config.agent(agent, tasks=[CALCULATOR])
    else:
        config.environment(CALCULATOR["env"], env_config=CALCULATOR["env_config"])
    algo = config.build_algo()
    try:
        for _ in range(iterations):
            result = algo.train()
        state = algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"]
        return result, {name: np.array(value) for name, value in state[DEFAULT_MODULE_ID].items()}
    finally:
        algo.stop()


def test_an_update_on_an_agents_groups_is_the_one_on_the_environments(tiny_dense: str, ray_local: None) -> None:
    _, expected = _trained(tiny_dense, agent=None)
    result, weights = _trained(tiny_dense, agent=PLAY)
    assert max(np.abs(weights[name] - expected[name]).max() for name in expected) <= 1e-6
    assert result["learners"][DEFAULT_MODULE_ID]["logp_gap_max"] <= 1e-4
    assert result["env_runners"]["num_episodes"] == 8
    assert result["evaluation"]["env_runners"]["num_episodes"] == 2


@pytest.mark.parametrize(
    "num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_agents_play_on_while_the_learner_trains(tiny_dense: str, num_env_runners: int, ray_local: None) -> None:
    runners = {"num_env_runners": num_env_runners}
    result, _ = _trained(tiny_dense, agent=agents.two_turns, iterations=3, max_staleness=1, **runners)
    learner = result["learners"][DEFAULT_MODULE_ID]
    assert learner["num_trajectories"] == 8
    assert 0.0 < learner["staleness"] <= 1.0


@pytest.fixture(scope="module")
def checkpoint(tiny_dense: str, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run of the command line leaves."""
    sections = {
        "agent": {"play": f"{PLAY}_over_http", "tasks": [CALCULATOR]},
        "rl_module": {"model_config": {"path": tiny_dense}},
        "generation": {"engine": "transformers", "max_tokens_per_turn": 4},
        "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 8},
        "training": {"group_size": 2, "groups_per_iteration": 4},
    }
    folder = tmp_path_factory.mktemp("agent")
    (folder / "mine.yaml").write_text(yaml.safe_dump(sections))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *parts, **_: None)
        assert main(["train", str(folder / "mine.yaml"), "--iterations", "1", "--storage", str(folder)]) == 0
    (saved,) = folder.glob("*/checkpoints/*")
    return str(saved)


@pytest.mark.slow
def test_the_commands_play_an_agents_checkpoint(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", checkpoint, "--episodes", "2"]) == 0
    assert capsys.readouterr().out.count("trajectory ") == 2
    # Another environment takes the agent's place.
    assert main(["evaluate", checkpoint, "--episodes", "2", "--env", CALCULATOR["env"]]) == 0
    assert "return" in capsys.readouterr().out


PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
(HARNESS,) = [block for block in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S) if "sys.argv" in block]


@contextlib.contextmanager
def _harness(folder: Path) -> Iterator[None]:
    """The page's harness, without this package, in a process of its own."""
    (folder / "harness.py").write_text(HARNESS)
    process = subprocess.Popen([sys.executable, "-I", "harness.py", "agents"], cwd=folder, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        process.kill()
        _, errors = process.communicate()
        assert errors == b""


@pytest.mark.parametrize(
    ("num_env_runners", "max_staleness"),
    [
        (0, 0),
        pytest.param(1, 0, marks=pytest.mark.slow),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
    ],
)
def test_the_harness_of_the_page_trains_a_policy(
    tiny_dense: str, tmp_path: Path, num_env_runners: int, max_staleness: int, ray_local: None
) -> None:
    agent = {"workers": "external", "addresses": str(tmp_path / "agents")}
    agent["tasks"] = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]
    with _harness(tmp_path):
        result, _ = _trained(
            tiny_dense, agent=agent, num_env_runners=num_env_runners, max_staleness=max_staleness, iterations=2
        )
    assert result["env_runners"]["num_episodes"] >= 8
    assert result["evaluation"]["env_runners"]["num_episodes"] == 2
    assert result["learners"][DEFAULT_MODULE_ID]["num_trajectories"] == 8
    assert result["learners"][DEFAULT_MODULE_ID]["logp_gap_max"] <= 1e-4
    assert not list((tmp_path / "agents").glob("*"))
