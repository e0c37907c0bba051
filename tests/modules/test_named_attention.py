"""An attention that the user names: unknown, not installed, or not for this model, each is one sentence."""

from __future__ import annotations

import importlib.util

import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.errors import SettingError
from tests.learners.small_learner import SPACES, learner_config


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash_attn is installed")
def test_flash_attention_that_is_not_installed_is_said_before_training(tiny_dense):
    with pytest.raises(SettingError) as refused:
        learner_config(tiny_dense, model={"attn_implementation": "flash_attention_2"}).validate()
    message = str(refused.value)
    assert "`pip install flash-attn` (it needs a CUDA GPU)" in message and "leave attn_implementation out" in message
    assert "\n" not in message and len(message) < 320


def test_a_misspelt_attention_is_guessed(tiny_dense):
    with pytest.raises(SettingError, match=r"'flash_atention_2', which transformers does not know\. Did you mean 'fl"):
        learner_config(tiny_dense, model={"attn_implementation": "flash_atention_2"}).validate()


def test_an_attention_that_transformers_refuses_this_model_is_one_sentence(tiny_dense):
    # A kernel of the hub takes a package that is not here.
    config = learner_config(tiny_dense, model={"attn_implementation": "kernels-community/flash-attn2"})
    with pytest.raises(SettingError) as refused:
        config.build_learner(spaces=SPACES)
    message = str(refused.value)
    assert "which Qwen3ForCausalLM cannot have on this machine: " in message and "\n" not in message


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_an_attention_that_is_there_is_taken(name, tiny_dense):
    learner = learner_config(tiny_dense, model={"attn_implementation": name}).build_learner(spaces=SPACES)
    assert learner.module[DEFAULT_MODULE_ID].unwrapped().scoring.attention == name
