"""One family through the product's own path, compared with the model's own full logits; for ``families.py``.

The reference is transformers' own model with its ``eager`` attention, which is the one its authors wrote (others leave
out what they do not know, such as soft caps), one trajectory per forward pass, in float32.

Shapes: see ``gspo_rllib.columns``.
"""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor
from transformers import AutoModelForCausalLM

from gspo_rllib import columns
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.engines import trial
from gspo_rllib.envs import UnicodeText
from gspo_rllib.model_folder import load_model_config
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.packing import packed_rows
from gspo_rllib.types import TokenTrajectory

TEXT = UnicodeText(10_000)
PROMPT, LONG, CONTEXT, REPLY = 32, 160, 256, 16
TOKENS = 300  # ids of text, in every model


@dataclass(frozen=True, slots=True)
class Played:
    """What was found.

    Attributes:
        gap: Largest difference (nats) between two log-probabilities of a sampled token: the learner's and the model's,
            or the engine's and the learner's.
        model_gap: The same for the engine and the model; None without an engine.
        gradient: Largest difference of a parameter's gradient, relative to its norm; None where none was compared.
        moved: How far the update moved a log-probability (nats); None without an update.
        scoring: What the module fell back to; empty where nothing had to be changed.
    """

    gap: float
    model_gap: float | None = None
    gradient: float | None = None
    moved: float | None = None
    scoring: str = ""


class TwoTurns(gym.Env):  # type: ignore[misc]  # gymnasium is not looked into here
    """Two questions of some length; a reply is rewarded by its checksum, so that replies to one task differ."""

    metadata: dict[str, Any] = {"render_modes": []}
    observation_space = TEXT
    action_space = TEXT

    def __init__(self) -> None:
        self.turn = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Asks a first time."""
        super().reset(seed=seed)
        self.turn = 0
        return self._text(30, 60), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Asks a second time, then ends."""
        self.turn += 1
        reward = zlib.crc32(action.encode("utf-8", "replace")) % 16 / 16
        return self._text(5, 30), reward, self.turn == 2, False, {}

    def _text(self, least: int, most: int) -> str:
        rng = random.Random(int(self.np_random.integers(2**31)))
        return "".join(rng.choices(string.ascii_lowercase + " ", k=rng.randint(least, most)))


def play_learner(folder: str) -> Played:
    """Scores made-up trajectories, alone and in a group, with the module and with the model.

    Args:
        folder: Holds the model.
    """
    spec = RLModuleSpec(CausalLMModule, observation_space=TEXT, action_space=TEXT, model_config={"path": folder})
    module = spec.build()
    module.train()
    model = reference(folder)
    trajectories = [made_up("a", i, [4, 4 + 4 * i, 3, 8 - i]) for i in range(3)]
    trajectories.append(made_up("b", 0, [20, 30, 5, _longest(model) - 87]))
    ours, ours_g = _learner_scores(module, trajectories), _gradient(module.model)
    theirs, theirs_g = _model_scores(model, trajectories), _gradient(model)
    return Played(_gap(ours, theirs), gradient=_gradient_gap(ours_g, theirs_g), scoring=_scoring(module))


def play_engine(folder: str, engine: str, *, num_env_runners: int = 0) -> Played:
    """Samples, updates, syncs and samples again; every sampled log-probability is compared with the learner's.

    Args:
        folder: Holds the model.
        engine: Name of the engine.
        num_env_runners: 0 for one in this process.
    """
    # What another engine makes of the model is played, too, and need not be tried with every refusal.
    trial._outcome = lambda spec, engine: trial.untried(engine)
    longest = getattr(load_model_config(folder).get_text_config(), "max_position_embeddings", None) or CONTEXT
    config = (
        GSPOConfig()
        .environment(TwoTurns)
        .rl_module(model_config={"path": folder})
        .generation(engine=engine, max_tokens_per_turn=REPLY, max_model_len=min(CONTEXT, longest))
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=4)
        .training(group_size=4, groups_per_iteration=2, num_minibatches=1, lr=1e-4)
        .debugging(seed=0)
    )
    algo = config.build_algo()
    module = algo.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped()
    model = reference(folder)
    gaps: list[tuple[float, float]] = []
    before: list[Tensor] = []
    played: list[TokenTrajectory] = []
    update = algo.learner_group.update

    def compared(*, training_data: Any, **kwargs: Any) -> Any:
        played[:] = [token_trajectory(episode, advantage=1.0) for episode in training_data.episodes]
        model.load_state_dict(module.model.state_dict())
        with torch.no_grad():
            before[:] = _model_scores(model, played, backward=False)
            ours = _learner_scores(module, played, backward=False)
        sampled = [torch.as_tensor(t.behavior_logp) for t in played]
        gaps.append((_gap(sampled, ours), _gap(sampled, before)))
        return update(training_data=training_data, **kwargs)

    algo.learner_group.update = compared
    try:
        algo.train()
        first, first_logp = list(played), list(before)
        # vLLM's loader takes up the second update; where it shows where everything belongs, not the third.
        algo.train()
        algo.train()
    finally:
        algo.stop()
    with torch.no_grad():
        moved = _gap(_model_scores(model, first, backward=False), first_logp)
    gap, model_gap = (max(column) for column in zip(*gaps, strict=True))
    return Played(gap, model_gap=model_gap, moved=moved, scoring=_scoring(module))


def reference(folder: str) -> Any:
    """The model as its authors wrote it: with ``eager`` attention, where it has one to choose."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if model._can_set_attn_implementation():
        model.set_attn_implementation("eager")
    return model


def transformers_gap(folder: str) -> float:
    """How far the attention that transformers takes when told nothing is from the model's own."""
    default = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    trajectories = [made_up("b", 0, [20, 30, 5, _longest(default) - 87])]
    with torch.no_grad():
        scores = [_model_scores(model, trajectories, backward=False) for model in (default, reference(folder))]
    return _gap(*scores)


def _longest(model: Any) -> int:
    """Tokens of the longest trajectory: longer than windows and unscaled positions, no longer than the model allows."""
    return min(LONG, getattr(model.config.get_text_config(), "max_position_embeddings", None) or LONG)


def made_up(group: str, index: int, parts: Sequence[int]) -> TokenTrajectory:
    """A prompt, the same for the whole group, then as many shown and sampled tokens in turn as ``parts`` says."""
    rng, of_group = np.random.default_rng([index, *group.encode()]), np.random.default_rng([*group.encode()])
    prompt = of_group.integers(3, TOKENS, PROMPT)
    sampled = np.concatenate([np.zeros(PROMPT, bool), *(np.full(n, i % 2 == 1) for i, n in enumerate(parts))])
    return TokenTrajectory(
        group_id=group,
        index=index,
        segments=(np.concatenate([prompt, rng.integers(3, TOKENS, sum(parts))]).astype(np.int32),),
        loss_masks=(sampled,),
        turn_index=np.repeat(np.arange(len(parts) // 2, dtype=np.int32), parts[1::2]),
        behavior_logp=np.zeros(int(sampled.sum()), np.float32),
        behavior_version=0,
        turn_rewards=np.zeros(len(parts) // 2),
        advantages=rng.normal(size=int(sampled.sum())).astype(np.float32),
    )


def _learner_scores(module: Any, trajectories: Sequence[TokenTrajectory], *, backward: bool = True) -> list[Tensor]:
    """Log-probabilities of the sampled tokens, [L] per trajectory, in rows as the learner makes them."""
    scores = [torch.zeros(0)] * len(trajectories)
    for members, row in packed_rows(trajectories, max_tokens=10**6, sharing=module.prefix_sharing()):
        logp_L = module.forward_train(row)[columns.LOGP]
        if backward:
            (logp_L * row[columns.ADVANTAGES]).sum().backward()
        counts = [trajectories[i].num_loss_tokens for i in members]
        for i, part in zip(members, logp_L.detach().split(counts), strict=True):
            scores[i] = part
    return scores


def _model_scores(model: Any, trajectories: Sequence[TokenTrajectory], *, backward: bool = True) -> list[Tensor]:
    """The same by the model's own full logits, one trajectory at a time."""
    scores = []
    for t in trajectories:
        ids_T = torch.as_tensor(t.segments[0]).long()
        at_L = torch.as_tensor(np.flatnonzero(t.loss_masks[0]))
        logp_TV = model(ids_T[None], use_cache=False).logits[0].float().log_softmax(-1)
        logp_L = logp_TV[at_L - 1].gather(1, ids_T[at_L][:, None]).squeeze(1)
        if backward:
            (logp_L * torch.as_tensor(t.advantages)).sum().backward()
        scores.append(logp_L.detach())
    return scores


def _gap(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def _gradient(model: torch.nn.Module) -> dict[str, Tensor]:
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def _gradient_gap(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    # A gradient that is nothing but rounding is no measure of a difference.
    floor = 1e-3 * float(torch.stack([g.norm() for g in theirs.values()]).norm())
    return max(float((ours[n] - g).norm()) / (float(g.norm()) + floor) for n, g in theirs.items())


def _scoring(module: Any) -> str:
    return str(getattr(module, "scoring", "") or "")
