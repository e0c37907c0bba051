"""An agent is trained as an environment is: the same weights, with any number of runners, also beside learning."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray import tune
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import GSPOConfig, load_groups
from gspo_rllib.cli.main import main
from gspo_rllib.types import TASK
from tests.agents.harness import page_harness
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
    ("num_env_runners", "max_staleness"),
    [
        (0, 1),
        pytest.param(1, 0, marks=pytest.mark.slow),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(1, 1, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
    ],
)
def test_agents_play_in_turn_with_the_learner_or_beside_it(
    tiny_dense: str, num_env_runners: int, max_staleness: int, ray_local: None
) -> None:
    settings = {"num_env_runners": num_env_runners, "max_staleness": max_staleness}
    result, _ = _trained(tiny_dense, agent=agents.two_turns_that_differ_in_worth, iterations=3, **settings)
    learner = result["learners"][DEFAULT_MODULE_ID]
    assert learner["num_trajectories"] == 8
    assert max_staleness / 100 <= learner["staleness"] <= max_staleness
    assert result["env_runners"]["segments_mean"] == 1.0


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
def test_the_commands_play_an_agents_checkpoint(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rollout", checkpoint, "--episodes", "2"]) == 0
    assert capsys.readouterr().out.count("trajectory ") == 2
    path = tmp_path / "groups.jsonl"
    assert main(["rollout", checkpoint, "--episodes", "2", "--samples", "3", "--groups", str(path)]) == 0
    assert [len(group.episodes) for group in load_groups(path)] == [3, 3]
    capsys.readouterr()
    # Another environment takes the agent's place.
    assert main(["evaluate", checkpoint, "--episodes", "2", "--env", CALCULATOR["env"]]) == 0
    assert "return" in capsys.readouterr().out


PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
QUICKSTART = dict(zip(("play", "config", "run"), PYTHON, strict=False))
(TASKS,) = re.findall(r"^```json\n(.*?)^```", PAGE.partition("## Two ways")[0], flags=re.M | re.S)
(YAML,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.M | re.S)


@pytest.mark.slow
def test_the_quickstart_of_the_page_trains_from_python_and_from_yaml(tiny_dense: str, tmp_path: Path) -> None:
    # An untaught model does not stop: a few trajectories are enough.
    config = QUICKSTART["config"].replace("groups_per_iteration=16", "groups_per_iteration=4")
    files = {"my_package/bot.py": QUICKSTART["play"], "tasks.jsonl": TASKS}
    files["mine.yaml"] = YAML.replace("groups_per_iteration: 16", "groups_per_iteration: 4").replace(": 100}", ": 1}")
    assert config != QUICKSTART["config"] and files["mine.yaml"] != YAML
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "seed").symlink_to(tiny_dense)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "RAY_ADDRESS": "local"}
    as_module = ["-m", "gspo_rllib", "train", "mine.yaml", "--storage", "runs"]
    told = []
    for arguments in (["-c", config + QUICKSTART["run"]], as_module):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-3000:]
        told.append(done.stdout)
    assert len([float(line) for line in told[0].splitlines()[-3:]]) == 3
    assert "stopped: 1 iterations done" in told[1]


@pytest.mark.slow
def test_the_harness_of_the_page_plays_its_config_in_a_fresh_folder(tiny_dense: str, tmp_path: Path) -> None:
    """As the page has it, but for the size of an iteration; the program ends without having stopped anything."""
    (config,) = [block for block in PYTHON if 'workers="external"' in block]
    less = ".training(group_size=2, groups_per_iteration=4).generation(max_tokens_per_turn=4)"
    (tmp_path / "run.py").write_text(
        config.replace("    .rl_module", f"    {less}\n    .rl_module") + QUICKSTART["run"]
    )
    (tmp_path / "tasks.jsonl").write_text(TASKS)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "seed").symlink_to(tiny_dense)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_ADDRESS": "local"}
    with page_harness(tmp_path):
        done = subprocess.run(
            [sys.executable, "run.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len([float(line) for line in done.stdout.splitlines()[-3:]]) == 3
    assert not list((tmp_path / "agents").glob("*"))


@pytest.mark.parametrize(
    ("num_env_runners", "max_staleness"),
    [
        (0, 0),
        pytest.param(1, 0, marks=pytest.mark.slow),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(0, 1, marks=pytest.mark.slow),
        pytest.param(1, 1, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
    ],
)
def test_the_harness_of_the_page_trains_a_policy(
    tiny_dense: str, tmp_path: Path, num_env_runners: int, max_staleness: int, ray_local: None
) -> None:
    agent = {"workers": "external", "addresses": str(tmp_path / "agents")}
    agent["tasks"] = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]
    with page_harness(tmp_path):
        result, _ = _trained(
            tiny_dense, agent=agent, num_env_runners=num_env_runners, max_staleness=max_staleness, iterations=2
        )
    assert result["env_runners"]["num_episodes"] >= 8
    assert result["evaluation"]["env_runners"]["num_episodes"] == 2
    assert result["learners"][DEFAULT_MODULE_ID]["num_trajectories"] == 8
    assert result["learners"][DEFAULT_MODULE_ID]["logp_gap_max"] <= 1e-4
    assert not list((tmp_path / "agents").glob("*"))


@pytest.mark.slow
def test_a_harness_trains_a_run_of_the_command(
    tiny_dense: str, tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.print", lambda *parts, **_: None)
    Path("tasks.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 1?", "answer": "3"}\n')
    sections = {
        "agent": {"workers": "external", "addresses": "agents", "tasks": "tasks.jsonl"},
        "rl_module": {"model_config": {"path": tiny_dense}},
        "generation": {"engine": "transformers", "max_tokens_per_turn": 4},
        "env_runners": {"num_env_runners": 1, "num_envs_per_env_runner": 8},
        "training": {"group_size": 2, "groups_per_iteration": 4},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(sections))
    with page_harness(tmp_path):
        assert main(["train", "mine.yaml", "--iterations", "2", "--storage", "runs"]) == 0
    assert len(list(Path("runs").glob("*/checkpoints/*"))) == 1
    assert not list(Path("agents").glob("*"))


class Records:
    """Has each trial of a study write what it samples to a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *, algorithm: Any, **_: Any) -> None:
        algorithm.record_groups(self._folder / f"{Path(algorithm.logdir).name}.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["external", "process"])
def test_trials_at_the_same_time_do_not_share_an_address(
    tiny_dense: str, tmp_path: Path, workers: str, ray_local: None
) -> None:
    folder = tmp_path / "agents"
    agent = {"workers": workers, "tasks": [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]}
    agent |= {"addresses": str(folder)} if workers == "external" else {"play": "tests.agents.process_agents:repeats"}
    config = (
        GSPOConfig()
        .agent(**agent)
        .rl_module(model_config={"path": tiny_dense})
        .generation(engine="transformers", max_tokens_per_turn=4)
        .env_runners(num_env_runners=2, num_envs_per_env_runner=4, num_cpus_per_env_runner=0.5)
        .training(group_size=2, groups_per_iteration=4)
        .debugging(seed=1)
    )
    config.callbacks(on_algorithm_init=Records(tmp_path))
    config.update_from_dict({"lr": tune.grid_search([1e-6, 1e-5])})
    tuner = tune.Tuner(
        "GSPO",
        param_space=config.to_dict(),
        run_config=tune.RunConfig(stop={"training_iteration": 2}, storage_path=str(tmp_path / "runs"), verbose=0),
    )
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            for file in folder.glob("*.json"):
                with contextlib.suppress(OSError):
                    seen.add(f"{file.name} {json.loads(file.read_text())['url']}")

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    with page_harness(tmp_path) if workers == "external" else contextlib.nullcontext():
        results = tuner.fit()
    stop.set()
    looking.join()
    assert not results.errors
    assert [result.metrics["training_iteration"] for result in results] == [2, 2]
    assert all(result.metrics["learners"][DEFAULT_MODULE_ID]["num_trajectories"] == 8 for result in results)
    for recorded in [list(load_groups(file)) for file in tmp_path.glob("*.jsonl")]:
        assert len({group.group_id for group in recorded}) == len(recorded) == 8
        tasks = [[episode.custom_data[TASK] for episode in group.episodes] for group in recorded]
        assert all(one == other and one in agent["tasks"] for one, other in tasks)
    assert {file.stem for file in tmp_path.glob("*.jsonl")} == {Path(result.path).name for result in results}
    if workers == "external":
        names, urls = zip(*(one.split() for one in seen), strict=True)
        assert len(seen) == len(set(names)) == len(set(urls)) == 4
        assert sorted(name.rpartition("-")[0] for name in names) == ["runner-1", "runner-1", "runner-2", "runner-2"]


DRIVER = """
import sys
from gspo_rllib import GSPOConfig

config = (
    GSPOConfig()
    .agent("tests.agents.process_agents:never_ends", workers="process", tasks=[{"file": sys.argv[2]}])
    .rl_module(model_config={"path": sys.argv[1]})
    .generation(engine="transformers", max_tokens_per_turn=4)
    .env_runners(num_env_runners=2, num_envs_per_env_runner=2)
    .training(group_size=2, groups_per_iteration=4)
)
"""
TRAINS = "config.build_algo().train()"
TUNES = """
import ray
from ray import tune

ray.init(address="local", num_cpus=4, include_dashboard=False)
config.env_runners(num_cpus_per_env_runner=0.5)
config.update_from_dict({"lr": tune.grid_search([1e-6, 1e-5])})
tune.Tuner("GSPO", param_space=config.to_dict(), run_config=tune.RunConfig(storage_path=sys.argv[3])).fit()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "agents_played"), [(TRAINS, 4), (TUNES, 8)], ids=["one run", "a grid"])
def test_fifteen_seconds_after_the_driver_was_killed_nothing_of_the_run_is_left(
    tiny_dense: str, tmp_path: Path, ends: str, agents_played: int
) -> None:
    pids_file = tmp_path / "pids"
    # Ray would look for another cluster of this machine first.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_ADDRESS": "local"}
    arguments = [tiny_dense, str(pids_file), str(tmp_path / "runs")]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER + ends, *arguments], env=environment)
    try:
        deadline = time.monotonic() + 240
        while not (pids_file.exists() and pids_file.read_text().count("\n") >= agents_played):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        pids = [int(pid) for pid in pids_file.read_text().split()]
        pids += [int(_stat(pid)[1]) for pid in pids[::2]]  # the env runners
        assert driver.pid not in pids and all(_stat(pid)[0] != "Z" for pid in pids)
    finally:
        driver.kill()
        driver.wait()
    time.sleep(15)
    assert not [pid for pid in pids if _stat(pid)[0] != "Z"]


def _stat(pid: int) -> list[str]:
    """State and parent of a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return ["Z", "0"]
