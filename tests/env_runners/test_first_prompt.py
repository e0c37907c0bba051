"""An observation that fills the context is found before anything starts; what cannot be seen is left to the run."""

from __future__ import annotations

import time

import gymnasium as gym
import pytest

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.cli.main import main
from gspo_rllib.env_runners import first_prompt
from gspo_rllib.envs import UnicodeText
from gspo_rllib.errors import SettingError


class _Wordy(gym.Env):
    """Begins with as many words as it is told to."""

    def __init__(self, words: int = 10, reset_s: float = 0.0, fails: bool = False) -> None:
        self.observation_space = self.action_space = UnicodeText(100_000)
        self._words, self._reset_s, self._fails = words, reset_s, fails

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        time.sleep(self._reset_s)
        if self._fails:
            raise RuntimeError("not today")
        return " ".join(["word"] * self._words), {}

    def step(self, action):
        return "", 0.0, True, False, {}


def _config(path, **env_config):
    return (
        GSPOConfig()
        .environment(_Wordy, env_config=env_config)
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", max_tokens_per_turn=8)
    )


def test_a_first_observation_that_fills_the_context_is_refused_with_its_length(tiny_dense):
    _config(tiny_dense).validate()
    with pytest.raises(SettingError, match=r"first observation has \d{3,} tokens, and the context 512 .*no room for"):
        _config(tiny_dense, words=400).validate()
    config = _config(tiny_dense, words=20)
    config.validate()
    with pytest.raises(SettingError, match=r"and the context 48 \(generation.max_model_len"):
        config.generation(max_model_len=48).validate()


def test_what_is_kept_for_summaries_counts(tiny_dense):
    config = _config(tiny_dense, words=40)
    config.validate()
    with pytest.raises(SettingError, match=r"the context 512, of which 4\d\d are kept for a summary"):
        config.generation(context_overflow="summarize", max_summary_tokens=380).validate()


def test_every_stage_of_a_curriculum_and_the_evaluation_are_looked_at(tiny_dense):
    with pytest.raises(SettingError, match="no room for a reply"):
        _config(tiny_dense).training(curriculum=[{"words": 400}]).validate()
    config = _config(tiny_dense).evaluation(evaluation_interval=1, evaluation_config={"env_config": {"words": 400}})
    with pytest.raises(SettingError, match="no room for a reply"):
        config.validate()


def test_an_environment_that_fails_or_takes_long_is_left_to_the_run(tiny_dense, monkeypatch):
    _config(tiny_dense, fails=True).validate()
    monkeypatch.setattr(first_prompt, "PATIENCE_S", 0.2)
    started = time.monotonic()
    _config(tiny_dense, words=400, reset_s=5.0).validate()
    assert time.monotonic() - started < 4.0


def test_the_command_says_so_in_one_sentence(tiny_dense, capsys):
    arguments = ["calculator", f"rl_module.model_config.path={tiny_dense}", "generation.engine=transformers"]
    assert main(["validate", *arguments, "generation.max_model_len=34"]) == 1
    error = capsys.readouterr().err
    assert "no room for a reply" in error and error.count("\n") == 1
