"""The current policy answers: messages, an observation, and its module, wherever engines and learners are."""

from __future__ import annotations

import pytest
import torch

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.errors import SettingError
from gspo_rllib.modules.own_attention import own_attention
from gspo_rllib.types import ChatSpec
from tests.toy_envs.coin_env import CoinEnv


class _Polite(CoinEnv):
    """With a system prompt, which an observation is framed with."""

    chat = ChatSpec(system_prompt="Be brief.")


def _config(path, **training):
    return (
        GSPOConfig()
        .environment(_Polite)
        .rl_module(model_config={"path": str(path)})
        .generation(engine="transformers", max_tokens_per_turn=6)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .learners(num_learners=0)
        .training(**{"group_size": 4, "groups_per_iteration": 4, "num_minibatches": 2, "lr": 1e-2, **training})
        .debugging(seed=1)
    )


def _own_reply(module, messages, *, max_tokens=6):
    """What transformers' own greedy decoding of the module says."""
    tokenizer = module.tokenizer
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = ids["input_ids"]
    with torch.no_grad(), own_attention(module.model):
        for _ in range(max_tokens):
            following = module.model(prompt).logits[0, -1].argmax()
            prompt = torch.cat([prompt, following.view(1, 1)], dim=1)
            if following == tokenizer.eos_token_id:
                break
    return tokenizer.decode(prompt[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def _asked(algo):
    told = [{"role": "user", "content": "What is 1+1?"}]
    longer = [*told, {"role": "assistant", "content": "2"}, {"role": "user", "content": "And 2+2?"}]
    module = algo.get_module()
    assert algo.generate(told, temperature=0.0) == _own_reply(module, told)
    # A list of conversations, one of them a mere text.
    both = [longer, "What is 1+1?"]
    assert algo.generate(both, temperature=0.0) == [_own_reply(module, longer), _own_reply(module, told)]
    framed = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Heads?"}]
    assert algo.compute_single_action("Heads?", explore=False) == _own_reply(module, framed)
    assert algo.generate("Hi", seed=5) == algo.generate("Hi", seed=5)
    assert len({algo.generate("Hi", seed=seed) for seed in range(6)}) > 1
    return algo.generate(told, temperature=0.0, max_tokens=24)


def test_the_policy_as_it_is_answers_before_and_after_an_update(tiny_dense, ray_local):
    algo = _config(tiny_dense).build_algo()
    try:
        before = _asked(algo)
        algo.train()
        assert _asked(algo) != before
        with pytest.raises(SettingError, match=r"messages is 3; it must be a text, a list of messages, or a list"):
            algo.generate(3)
        for empty in ([[]], ""):
            with pytest.raises(SettingError, match="not empty"):
                algo.generate(empty)
        with pytest.raises(SettingError, match=r"generate: messages\[0\]"):
            algo.generate([{"role": "nobody", "content": "."}])
        with pytest.raises(SettingError, match=r"conversation 0 has \d+ tokens, which leaves no room"):
            algo.generate("word " * 600)
        with pytest.raises(SettingError, match="max_tokens is 0; allowed: int >= 1, or None"):
            algo.generate("Hi", max_tokens=0)
        for name, value, allowed in (
            ("max_tokens", True, "int >= 1"),
            ("temperature", float("inf"), "float >= 0"),
            ("temperature", True, "float >= 0"),
            ("seed", "x", "int"),
            ("seed", 1.5, "int"),
        ):
            with pytest.raises(SettingError, match=f"{name} is .*; allowed: {allowed}, or None"):
                algo.generate("Hi", **{name: value})
        for name, remedy in (("max_new_tokens", "Use max_tokens"), ("do_sample", "0 takes the"), ("tmperature", "Did")):
            with pytest.raises(TypeError, match=f"generate: {name} is unknown. .*{remedy}"):
                algo.generate("Hi", **{name: 1})
        with pytest.raises(SettingError, match="explore is 'no'; allowed: True, False, None"):
            algo.compute_single_action("Hi", explore="no")
        with pytest.raises(SettingError, match=r"observation is array.*; it must be a text"):
            algo.compute_single_action(torch.zeros(2).numpy())
        with pytest.raises(SettingError, match="there is one module, 'default_policy'"):
            algo.get_module("other")
    finally:
        algo.stop()


@pytest.mark.slow
def test_runners_and_learners_in_actors_answer_too_while_they_sample_ahead(tiny_dense, ray_local):
    config = _config(tiny_dense, max_staleness=1)
    algo = config.env_runners(num_env_runners=1).learners(num_learners=1).build_algo()
    try:
        before = _asked(algo)
        algo.train()
        algo.train()
        assert _asked(algo) != before
        with pytest.raises(SettingError, match="leaves no room"):
            algo.generate("word " * 600)
        assert algo.train()["env_runners"]["num_episodes"] > 0
    finally:
        algo.stop()
