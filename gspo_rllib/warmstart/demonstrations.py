"""Demonstrations: an environment's expert plays, and the chat renderer writes down the ids a policy should sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.errors import EnvError

_MAX_TURNS = 10_000


@dataclass(frozen=True, slots=True)
class Transcript:
    """One episode of the expert, as text.

    Attributes:
        observations: One per turn, as the expert saw them.
        roles: Role of each observation, ``"user"`` or ``"tool"``.
        replies: What was answered, one per observation.
        mistakes: How many of the replies were mistakes made on purpose.
    """

    observations: tuple[str, ...]
    roles: tuple[str, ...]
    replies: tuple[str, ...]
    mistakes: int = 0


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One episode of the expert, as the ids an env runner would have recorded had the policy sampled it.

    Attributes:
        token_ids: int64 [T], the whole context.
        is_reply: bool [T], True on the ids of replies, their end token included.
        mistakes: How many of the replies were mistakes made on purpose.
    """

    token_ids: np.ndarray
    is_reply: np.ndarray
    mistakes: int = 0

    def beginning(self, length: int | None) -> Demonstration:
        """Its first tokens, or all of them where ``length`` is None."""
        return Demonstration(self.token_ids[:length], self.is_reply[:length], self.mistakes)


def _attribute(env: gymnasium.Env[str, str], name: str) -> Any:
    """An attribute of an environment or of what it wraps, found as an env runner finds it; None if missing."""
    return env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None


def has_expert(env: gymnasium.Env[str, str]) -> bool:
    """Whether the environment brings a policy to imitate."""
    return callable(_attribute(env, "expert"))


def demonstrate(
    env: gymnasium.Env[str, str], seed: int, *, mistake_rate: float = 0.0, wrong_replies: Sequence[str] = ()
) -> Transcript:
    """Lets the environment's expert play one task.

    Args:
        env: An environment whose ``expert()`` returns a policy, a new one for each episode.
        seed: Fixes the task and the mistakes.
        mistake_rate: Probability that a reply is replaced by a mistake; the expert goes on from what follows.
        wrong_replies: What mistakes are drawn from: replies that were right elsewhere.

    Raises:
        EnvError: The expert does not finish the task.
    """
    policy = _attribute(env, "expert")()
    random = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    observations, roles, replies, mistakes = [observation], ["user"], [], 0
    while True:
        reply = policy(observation)
        if wrong_replies and random.random() < mistake_rate:
            wrong = wrong_replies[int(random.integers(len(wrong_replies)))]
            mistakes += wrong != reply
            reply = wrong
        replies.append(reply)
        observation, _, terminated, truncated, info = env.step(reply)
        if terminated or truncated:
            return Transcript(tuple(observations), tuple(roles), tuple(replies), mistakes)
        if len(replies) == _MAX_TURNS:
            raise EnvError(f"{env}: its expert did not finish task seed={seed} in {_MAX_TURNS} turns.")
        observations.append(observation)
        roles.append(info.get("obs_role", "user"))


def tokenizer_texts(env: gymnasium.Env[str, str], seeds: range) -> list[str]:
    """What a tokenizer for this environment should be good at: what its expert reads and writes.

    An invalid action is played once per task too, so that the words of its explanation get tokens of their own; and
    the system prompt is counted once per task, as it stands in every context.
    """
    texts: list[str] = []
    chat = _attribute(env, "chat")
    prompt = getattr(chat, "system_prompt", None)
    for seed in seeds:
        transcript = demonstrate(env, seed)
        texts += [*transcript.observations, *transcript.replies]
        if prompt:
            texts.append(prompt)
        env.reset(seed=seed)
        texts.append(env.step("?")[0])
    return texts


def render(transcript: Transcript, renderer: ChatRenderer) -> Demonstration:
    """The ids of a transcript, exactly as an env runner renders a conversation turn by turn."""
    ids: list[int] = []
    is_reply: list[bool] = []
    sampled: list[int] = []
    for turn, (observation, role, reply) in enumerate(
        zip(transcript.observations, transcript.roles, transcript.replies, strict=True)
    ):
        if turn == 0:
            prompt = renderer.first_prompt(observation)
        else:
            prompt = renderer.prompt_after(sampled, observation, role=role)
        sampled = renderer.reply(reply)
        ids += prompt + sampled
        is_reply += [False] * len(prompt) + [True] * len(sampled)
    return Demonstration(np.array(ids, dtype=np.int64), np.array(is_reply, dtype=bool), transcript.mistakes)
