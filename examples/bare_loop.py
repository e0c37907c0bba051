"""GSPO without RLlib: one process, one loop, the project's engine and maths and nothing else.

    python examples/bare_loop.py models/seed --iterations 20

Read it to see the algorithm whole. The real trainer (`gspo-rllib train`) does the same with packed rows, gradient
accumulation, several runners and learners, retries, checkpoints and metrics.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import gymnasium as gym
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import Engine, EngineSpec, GenerationRequest
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.ops import group_z_score, policy_loss

ENV = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


@dataclass
class Trajectory:
    """A context that only grows: the ids the engine saw, and which of them the policy sampled."""

    env: gym.Env
    ids: list[int]
    sampled: list[bool] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    total: float = 0.0

    def extend(self, ids: list[int], logp: list[float] | None = None) -> None:
        """Appends a prompt, or with log-probabilities a sampled reply."""
        self.ids += ids
        self.sampled += [logp is not None] * len(ids)
        self.logp += logp if logp is not None else [0.0] * len(ids)


def play(engine: Engine, renderer: ChatRenderer, seeds: list[int], options: argparse.Namespace) -> list[Trajectory]:
    """One trajectory per seed, all at once; a reply goes to its environment as soon as it is there."""
    trajectories = []
    for index, seed in enumerate(seeds):
        trajectory = Trajectory(gym.make(ENV, operations=options.operations), [])
        observation, _ = trajectory.env.reset(seed=seed)
        trajectory.extend(renderer.first_prompt(observation))
        trajectories.append(trajectory)
        submit(engine, trajectory, index, options)
    while engine.has_work():
        for generation in engine.step():
            trajectory = trajectories[int(generation.request_id)]
            trajectory.extend(generation.token_ids, [float(p) for p in generation.logp])
            step = trajectory.env.step(renderer.decode(generation.token_ids))
            observation, reward, terminated, truncated, info = step
            trajectory.total += float(reward)
            if not (terminated or truncated):
                role = info.get("obs_role", "user")
                trajectory.extend(renderer.prompt_after(generation.token_ids, observation, role=role))
                submit(engine, trajectory, int(generation.request_id), options)
    return trajectories


def submit(engine: Engine, trajectory: Trajectory, index: int, options: argparse.Namespace) -> None:
    """Asks for the next reply, unless the context is full."""
    room = engine.max_model_len - len(trajectory.ids)
    if room > 0:
        seed = int(torch.randint(2**31, ()))
        budget = min(options.max_tokens, room)
        engine.submit(GenerationRequest(str(index), list(trajectory.ids), budget, options.temperature, seed))


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: list[tuple[Trajectory, float]]) -> float:
    """One GSPO step on (trajectory, advantage) pairs; returns the loss."""
    ids = pad_sequence([torch.tensor(t.ids) for t, _ in batch], batch_first=True)
    sampled = pad_sequence([torch.tensor(t.sampled) for t, _ in batch], batch_first=True)
    old_logp = pad_sequence([torch.tensor(t.logp) for t, _ in batch], batch_first=True)
    padding = pad_sequence([torch.ones(len(t.ids)) for t, _ in batch], batch_first=True)
    logits = model(input_ids=ids, attention_mask=padding).logits[:, :-1]
    logp = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    advantages = torch.tensor([advantage for _, advantage in batch])
    loss, _ = policy_loss(logp, old_logp[:, 1:], advantages, sampled[:, 1:], clip_low=0.03, clip_high=0.04)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def main(argv: list[str] | None = None) -> float:
    """Trains; returns the last iteration's mean return."""
    parser = argparse.ArgumentParser(description="GSPO in one loop.")
    parser.add_argument("model", help="Hugging Face folder, e.g. from `gspo-rllib warmstart`")
    parser.add_argument("--engine", default=registry.default_engine())
    parser.add_argument("--operations", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=16, help="per turn")
    parser.add_argument("--temperature", type=float, default=1.0, choices=[1.0], help="the update scores at 1")
    parser.add_argument("--lr", type=float, default=1e-5)
    options = parser.parse_args(argv)

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    renderer = ChatRenderer(load_tokenizer(options.model), gym.make(ENV).unwrapped.chat)
    engine = registry.acquire(
        EngineSpec(
            engine=options.engine,
            model=options.model,
            dtype="float32",
            max_model_len=model.config.max_position_embeddings,
            max_num_seqs=options.groups * options.group_size,
            stop_token_ids=renderer.stop_token_ids,
        )
    )
    mean_return = 0.0
    for iteration in range(options.iterations):
        weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
        engine.load_weights(weights, version=iteration)
        tasks = torch.randint(2**31, (options.groups,)).tolist()
        played = play(engine, renderer, [seed for seed in tasks for _ in range(options.group_size)], options)
        returns = torch.tensor([trajectory.total for trajectory in played])
        advantages = [group_z_score(group) for group in returns.split(options.group_size)]
        pairs = list(zip(played, torch.cat(advantages).tolist(), strict=True))
        size = len(pairs) // options.minibatches
        losses = [update(model, optimizer, pairs[i : i + size]) for i in range(0, len(pairs), size)]
        mean_return = float(returns.mean())
        print(
            f"iteration {iteration + 1:3d}  return {mean_return:.3f}  loss {sum(losses) / len(losses):+.4f}", flush=True
        )
    registry.release(engine)
    return mean_return


if __name__ == "__main__":
    main()
