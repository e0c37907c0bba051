"""Easier versions of an environment come first; which one a group plays is in its name, so none is lost on the way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback

from gspo_rllib.algorithms import GSPOConfig, PolicyGradient
from gspo_rllib.driver.curriculum import Curriculum
from gspo_rllib.envs import UnicodeText
from gspo_rllib.errors import EnvError, SettingError
from gspo_rllib.metrics import CURRICULUM_STAGE
from gspo_rllib.types import GROUP

STAGES = [{"level": 0}, {"level": 1, "tasks": 3}]


class Levels(gym.Env):
    """One turn that succeeds, or not; the observation says which level and which of its tasks is played."""

    metadata = {"blocking": False}
    observation_space = action_space = UnicodeText()

    def __init__(self, level: int = 2, tasks: int = 0, says_success: bool = True, solved: int = 9) -> None:
        self.level, self.says_success, self.solved = level, says_success, solved
        if tasks:
            self.num_tasks = lambda: tasks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return f"level {self.level}, task {(options or {}).get('task_id')}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        info = {"success": self.level < self.solved} if self.says_success else {}
        return "", float(len(action)), True, False, info


class Played(RLlibCallback):
    """Keeps what was played: names of groups and first observations."""

    episodes: list[tuple[str, str]] = []

    def on_episode_end(self, *, episode: Any, **kwargs: Any) -> None:
        self.episodes.append((episode.custom_data[GROUP].group_id, episode.get_observations(0)))


def _config(path: str, *, env_config: dict[str, Any] | None = None, **training: Any) -> GSPOConfig:
    training = {"group_size": 2, "groups_per_iteration": 3, "num_minibatches": 1, "curriculum": STAGES} | training
    return (
        GSPOConfig()
        .environment(Levels, env_config=env_config or {})
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", max_tokens_per_turn=3)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .training(**training)
        .evaluation(evaluation_interval=1, evaluation_duration=2)
        .callbacks(Played)
        .debugging(seed=0)
    )


def _train(algo: PolicyGradient) -> tuple[int, list[str]]:
    """The stage of an iteration and the first observations of what was played for it, one for each trajectory."""
    Played.episodes.clear()
    return algo.train()[CURRICULUM_STAGE], [seen for _, seen in Played.episodes]


def test_stages_follow_each_other_and_the_environment_itself_comes_last(
    tiny_dense: str, tmp_path: Path, ray_local: None
) -> None:
    algo = _config(tiny_dense).build_algo()
    try:
        stage, seen = _train(algo)
        training, evaluation = seen[:6], seen[6:]
        assert (stage, set(training), set(evaluation)) == (0, {"level 0, task None"}, {"level 2, task None"})
        stage, seen = _train(algo)
        assert stage == 1
        assert sorted(seen[:6]) == sorted(2 * [f"level 1, task {n}" for n in range(3)]), "every task of an epoch once"
        checkpoint = algo.save_to_path(tmp_path / "checkpoint")
        assert _train(algo) == (2, 6 * ["level 2, task None"] + 2 * ["level 2, task None"])
    finally:
        algo.stop()
    resumed = PolicyGradient.from_checkpoint(checkpoint)
    try:
        assert _train(resumed)[0] == 2
    finally:
        resumed.stop()


def test_a_stage_that_is_not_mastered_goes_on(tiny_dense: str, ray_local: None) -> None:
    algo = _config(tiny_dense, env_config={"solved": 0}).build_algo()
    try:
        assert [_train(algo)[0] for _ in range(2)] == [0, 0]
        assert algo.get_state()[CURRICULUM_STAGE] == 0
        algo.set_state(algo.get_state() | {CURRICULUM_STAGE: 7})
        assert _train(algo)[0] == 2, "a checkpoint of a longer curriculum"
    finally:
        algo.stop()


def test_groups_in_flight_are_finished_as_they_were_begun(tiny_dense: str, ray_local: None) -> None:
    algo = _config(tiny_dense, max_staleness=1).build_algo()
    Played.episodes.clear()
    try:
        for _ in range(6):
            algo.train()
    finally:
        algo.stop()
    training = [(name, seen) for name, seen in Played.episodes if not name.startswith("evaluation")]
    assert {name.split("/")[0] for name, _ in training if "/" in name} == {"stage0", "stage1"}
    for name, seen in training:
        assert seen.startswith(f"level {name[5] if name.startswith('stage') else 2},")
    played = Counter(int(name.rpartition("/")[2]) for name, _ in training)
    assert max(played.values()) == 2, "no group was played twice"
    assert list(played.values()).count(1) <= 4, "at the end there is one trajectory under way in each environment"


def test_few_groups_of_the_present_stage_do_not_decide() -> None:
    curriculum = Curriculum(2, threshold=0.5, least_groups=2)
    assert curriculum.advance() is None
    assert [curriculum.group(7), Curriculum(0, threshold=0.5, least_groups=1).group(7)] == ["stage0/7", "7"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"curriculum": [{"levle": 1}]}, EnvError, r"training.curriculum\[0\] is {'levle': 1}: .*levle"),
        ({"curriculum": [{"level": 1}, "hard"]}, SettingError, r"training.curriculum\[1\] is 'hard'; it must be a map"),
        ({"curriculum": [{}]}, SettingError, r"training.curriculum\[0\] is {}; it must be a mapping of settings"),
        ({"curriculum": {"level": 1}}, SettingError, "training.curriculum is {'level': 1}; allowed: list"),
        ({"curriculum_success": 0.0}, SettingError, "training.curriculum_success is 0.0; allowed: float, > 0, <= 1"),
    ],
)
def test_what_cannot_be_played_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tiny_dense: str
) -> None:
    with pytest.raises(error, match=message):
        _config(tiny_dense, **changes).validate()


def test_an_environment_that_reports_no_success_cannot_have_a_curriculum(tiny_dense: str, ray_local: None) -> None:
    algo = _config(tiny_dense, env_config={"says_success": False}).build_algo()
    try:
        with pytest.raises(SettingError, match="goes by success, but the environment does not report any"):
            algo.train()
    finally:
        algo.stop()


def test_an_agent_has_no_stages(tiny_dense: str) -> None:
    config = _config(tiny_dense).environment(None).agent("gspo_rllib.agents.env_agent:play_over_http")
    with pytest.raises(SettingError, match=r"training\.curriculum has no effect on an agent"):
        config.validate()
