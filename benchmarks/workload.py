"""What benchmarks are given to do: models, trajectories, environments and a reward."""

from __future__ import annotations

import math
import pathlib
import random
import statistics
import string
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.types import GROUP, TURN, GroupMember, Turn, group_episodes
from gspo_rllib.warmstart.models import build_model

SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 256, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4, "head_dim": 32},
    "larger": {"hidden_size": 640, "num_layers": 10, "num_heads": 10, "num_kv_heads": 5, "head_dim": 64},
}
"""4.7 and 49 million parameters outside the embedding and the head."""

GROUP_SIZE = 8
CONTEXT = 8192
PROMPT = 48

TEXT = gym.spaces.Text(max_length=100_000, min_length=0, charset=string.printable)


def random_model(folder: pathlib.Path, *, size: str, vocabulary: int, context: int = CONTEXT) -> str:
    """A random Qwen3 with a tokenizer of exactly ``vocabulary`` tokens; kept from an earlier call.

    Args:
        folder: Where models go; this one into a folder of its own below it.
        size: One of ``SIZES``.
        vocabulary: Tokens, learnt from made-up words.
        context: Tokens that positions are known for.
    """
    path = folder / f"{size}-{vocabulary}"
    if not (path / "config.json").exists():
        rng = random.Random(0)
        words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 8))) for _ in range(5 * vocabulary // 4)]
        build_model(
            path,
            texts=[" ".join(words[i : i + 100]) for i in range(0, len(words), 100)],
            vocab_size=vocabulary,
            intermediate_size=3 * SIZES[size]["hidden_size"],
            max_position_embeddings=max(context, CONTEXT),
            **SIZES[size],
        )
    return str(path)


@dataclass(frozen=True)
class Conversation:
    """One trajectory: in each turn the tokens it is shown and the tokens it answers with.

    Attributes:
        turns: ``(shown, sampled)`` token ids, int32.
        old_logp: float32 [L], log-probability (nats) of every sampled token under the policy that sampled it.
        reward: Reward of the last turn, hence the return of the trajectory.
    """

    turns: list[tuple[np.ndarray, np.ndarray]]
    old_logp: np.ndarray
    reward: float

    @property
    def token_ids(self) -> np.ndarray:
        """int32 [T], all of it."""
        return np.concatenate([part for turn in self.turns for part in turn])

    @property
    def sampled(self) -> np.ndarray:
        """bool [T], which tokens the policy sampled."""
        return np.concatenate([np.repeat([False, True], [len(a), len(b)]) for a, b in self.turns])

    def shortened(self, num_sampled: int) -> Conversation:
        """Its first turn, cut off after ``num_sampled`` tokens."""
        shown, sampled = self.turns[0]
        kept = sampled[:num_sampled]
        return Conversation([(shown, kept)], self.old_logp[: len(kept)], self.reward)

    def episode(self, group_id: str, index: int) -> SingleAgentEpisode:
        """The conversation as an episode, as env runners return it."""
        episode = SingleAgentEpisode()
        episode.add_env_reset("")
        old_logp = np.split(self.old_logp, np.cumsum([len(sampled) for _, sampled in self.turns])[:-1])
        for i, (shown, sampled) in enumerate(self.turns):
            last = i == len(self.turns) - 1
            turn = Turn(shown, sampled, old_logp[i], policy_version=0, finish_reason="stop")
            episode.add_env_step(
                observation="", action="", reward=self.reward if last else 0.0, infos={}, terminated=last,
                extra_model_outputs={TURN: turn},
            )  # fmt: skip
        episode.custom_data[GROUP] = GroupMember(group_id, index, task_seed=0)
        return episode


def single_turn_lengths(rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """One group of 8: what 8 draws of a log-normal length (median 300, 64 to 1024 tokens) are on average."""
    ranks = [(i + 0.625) / (GROUP_SIZE + 0.25) for i in range(GROUP_SIZE)]
    totals = [min(max(300 * math.exp(0.7 * statistics.NormalDist().inv_cdf(rank)), 64), 1024) for rank in ranks]
    return [[(PROMPT, int(total) - PROMPT)] for total in rng.permutation(totals)]


def multi_turn_lengths(rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """One group of 8: 3 to 50 turns of about 95 tokens shown and 60 sampled, so up to nearly ``CONTEXT`` tokens."""
    return [
        [(int(rng.integers(60, 131)) if i else PROMPT, int(rng.integers(30, 91))) for i in range(num_turns)]
        for num_turns in (50, 4, 20, 6, 12, 3, 8, 5)
    ]


DATA = {"single_turn": single_turn_lengths, "multi_turn": multi_turn_lengths}


def conversations(model: Any, data: str) -> list[Conversation]:
    """Random tokens of the lengths of one data set; whole groups, one after the other.

    The members of a group start with the same prompt. The policy that sampled them is the model itself with a little
    noise, so that ratios lie around 1 and within the clip range, and every token has a gradient.

    Args:
        model: A ``transformers`` causal language model.
        data: One of ``DATA``.
    """
    rng = np.random.default_rng(0)
    found: list[Conversation] = []
    prompt = np.empty(0, np.int32)
    for i, lengths in enumerate(DATA[data](rng)):
        ids = [rng.integers(3, model.config.vocab_size, n).astype(np.int32) for pair in lengths for n in pair]
        prompt = prompt if i % GROUP_SIZE else ids[0]
        ids[0] = prompt
        played = Conversation(list(zip(ids[::2], ids[1::2], strict=True)), np.empty(0), reward=float(i % 3 == 0))
        noise = rng.normal(0.0, 1e-3, int(played.sampled.sum()))
        found.append(Conversation(played.turns, (_log_probs(model, played) + noise).astype(np.float32), played.reward))
    return found


@torch.no_grad()
def _log_probs(model: Any, played: Conversation) -> np.ndarray:
    ids = torch.as_tensor(played.token_ids).long()
    at = torch.as_tensor(np.flatnonzero(played.sampled))
    hidden = model.base_model(ids[None]).last_hidden_state[0, at - 1]
    parts = [
        model.lm_head(part).log_softmax(-1).gather(1, ids[tokens][:, None]).squeeze(1)
        for part, tokens in zip(hidden.split(256), at.split(256), strict=True)
    ]
    return torch.cat(parts).numpy()


def groups_of(played: list[Conversation]) -> list[Any]:
    """The conversations as the groups the learner trains on."""
    return group_episodes([c.episode(f"g{i // GROUP_SIZE}", i % GROUP_SIZE) for i, c in enumerate(played)])


def reward_of(text: str) -> float:
    """A cheap reward with some variance: the share of the letter e."""
    return text.count("e") / max(len(text), 1)


def prompt_of(seed: int, num_digits: int) -> str:
    """Digits, each of which is one token."""
    return "".join(random.Random(seed).choices(string.digits, k=num_digits))


class TalkEnv(gym.Env):
    """Answers every action with a line of text and rewards it with ``reward_of`` it, for a number of turns.

    Args:
        turns: Length of an episode.
        observation_chars: Length of an observation.
        spread: By which share of ``turns`` the task makes an episode longer or shorter, at most.
    """

    metadata = {"render_modes": [], "blocking": False}
    observation_space = TEXT
    action_space = TEXT

    def __init__(self, turns: int, observation_chars: int, spread: float = 0.0) -> None:
        self.mean_turns, self.observation_chars, self.spread = turns, observation_chars, spread
        self.turns = self.turn = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts over; the seed decides the length and the text."""
        super().reset(seed=seed)
        most = round(self.spread * self.mean_turns)
        self.turn, self.turns = 0, self.mean_turns + int(self.np_random.integers(-most, most + 1))
        return self._text(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answers anything with text."""
        self.turn += 1
        return self._text(), reward_of(action), self.turn == self.turns, False, {}

    def _text(self) -> str:
        return "".join(self.np_random.choice(list("abcdefghij "), self.observation_chars))


class PromptEnv(gym.Env):
    """Shows ``num_digits`` digits, rewards any reply with ``reward_of`` it, and ends."""

    metadata = {"render_modes": [], "blocking": False}
    observation_space = TEXT
    action_space = TEXT

    def __init__(self, num_digits: int) -> None:
        self.num_digits = num_digits

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts over; the seed decides the digits."""
        super().reset(seed=seed)
        return prompt_of(int(self.np_random.integers(2**31)), self.num_digits), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Ends whatever the action."""
        return "", reward_of(action), True, False, {}
