"""The example of an environment made of tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.warmstart.demonstrations import demonstrate, render


def test_the_example_is_solved_by_its_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "examples")
    import tool_env

    assert tool_env.main() == 1.0
    env = tool_env.StockEnv()
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        policy = env.expert()
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            over, total = terminated or truncated, total + reward
        assert total == 1.0


def test_an_expert_s_conversation_is_rendered_with_its_tools_and_their_results(
    tiny_dense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "examples")
    import tool_env

    env = tool_env.StockEnv()
    tokenizer = load_tokenizer(tiny_dense)
    transcript = demonstrate(env, 0)
    text = tokenizer.decode(render(transcript, ChatRenderer(tokenizer, env.chat)).token_ids)
    assert text.startswith("<|im_start|>system\nAnswer with a number alone.")
    assert text.count("Says how many of a fruit are in stock.") == 1
    results, answer = transcript.observations[1], transcript.replies[1]
    assert f"<|im_start|>tool\n{results}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>" in text
