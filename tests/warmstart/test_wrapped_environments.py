"""Demonstrations of wrapped environments: expert and chat are those an env runner would find."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import TimeLimit

from gspo_rllib import ChatSpec
from gspo_rllib.envs.bisection import BisectionEnv
from gspo_rllib.warmstart.demonstrations import demonstrate, has_expert, tokenizer_texts


class Shout(gymnasium.ObservationWrapper[str, str, str]):
    chat = ChatSpec(system_prompt="SAY A NUMBER.")

    def observation(self, observation: str) -> str:
        return observation.upper()

    def expert(self) -> Any:
        policy = self.env.get_wrapper_attr("expert")()
        return lambda observation: policy(observation.lower())


class Alone(Shout):
    expert = None  # type: ignore[assignment]


def test_a_wrapper_s_own_expert_and_chat_are_used() -> None:
    env = TimeLimit(Shout(BisectionEnv()), 5)
    transcript = demonstrate(env, seed=0)
    assert transcript.replies == demonstrate(BisectionEnv(), seed=0).replies
    assert set(transcript.observations[1:]) <= {"HIGHER", "LOWER"}
    assert "SAY A NUMBER." in tokenizer_texts(env, range(2))


def test_a_wrapper_without_an_expert_hides_the_one_inside() -> None:
    assert has_expert(TimeLimit(BisectionEnv(), 5))
    assert not has_expert(TimeLimit(Alone(BisectionEnv()), 5))
