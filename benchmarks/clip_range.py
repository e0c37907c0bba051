"""Which clip range fits which length and step? A simulated policy, and shipped tasks, under every rule for the range.

    .venv/bin/python benchmarks/clip_range.py simulate
    .venv/bin/python benchmarks/clip_range.py simulate --rules deviations last --lrs 0.03 0.1 --updates 60
    .venv/bin/python benchmarks/clip_range.py train configs/calculator.yaml --model models/seed --lrs 2e-5 1e-4

``simulate`` plays with a table of logits through the project's own ratio, loss and range: seconds on one core. ``last``
is a range that follows the spread after the *last* optimiser step of an update, without a bound: it shows why the rule
does not do that. ``train`` runs a recipe for some iterations with each rule. Both print ratios; success and reward are
of few trajectories.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from gspo_rllib import metrics
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.policy_gradient.clip_range import STEP, MeasuredClipRange
from gspo_rllib.configs import load_config
from gspo_rllib.learners.statistics import UpdateStatistics
from gspo_rllib.ops import group_z_score, length_clip_scale, next_clip_scale, policy_loss, sequence_log_ratio

GROUPS, MEMBERS, MINIBATCHES = 8, 8, 4
STATES, ACTIONS, WIDTH = 64, 16, 16

RULES: dict[str, dict[str, Any]] = {
    "0.03/0.04": {"clip_low": 0.03, "clip_high": 0.04},
    "3e-4/4e-4": {"clip_low": 3e-4, "clip_high": 4e-4},
    "length": {"clip_scaling": "length"},
    "target": {"clip_scaling": "target"},
    "deviations": {"clip_scaling": "deviations"},
}
"""Settings of each rule; without numbers, the defaults of GSPO."""


class Rule:
    """A rule for the range, told what an update does step by step; ``name`` is one of ``RULES``, or ``last``."""

    def __init__(self, name: str) -> None:
        config = GSPOConfig().training(**RULES.get(name, RULES["deviations"]))
        self._name, self._settings = name, config.settings(GSPOConfig.training_settings)
        self._scale = 1.0
        self._last: float | None = None
        self._measured = MeasuredClipRange(self._settings)
        self._statistics = UpdateStatistics()

    def bounds(self, mask_BT: Tensor) -> tuple[Any, Any]:
        """The range in force."""
        settings, turns_BT = self._settings, torch.zeros_like(mask_BT, dtype=torch.long)
        if self._name == "deviations":
            return self._measured.bounds(mask_BT, turns_BT, has_noise=False)
        if self._name == "last":
            room = float("inf") if self._last is None else settings.clip_deviations * self._last
            return min(room, 1.0), room
        scale: Any = self._scale
        if self._name == "length":
            scale = length_clip_scale(mask_BT.sum(dim=1), reference_length=settings.clip_reference_length)
        return scale * settings.clip_low, scale * settings.clip_high

    def watch(self, step: int, logp_BT: Tensor, old_logp_BT: Tensor, mask_BT: Tensor) -> None:
        """A minibatch as it was before its own step, number ``step`` of the update."""
        if step == 1:
            turns_BT = torch.zeros_like(mask_BT, dtype=torch.long)
            self._measured.measure(STEP, logp_BT, old_logp_BT, mask_BT, turns_BT, self._statistics)
        if step == MINIBATCHES - 1:
            self._last = float(sequence_log_ratio(logp_BT, old_logp_BT, mask_BT).square().mean().sqrt())

    def end_update(self, clip_fraction: float) -> None:
        """Moves the range."""
        self._scale = next_clip_scale(self._scale, clip_fraction, target=self._settings.clip_target_fraction)
        if self._name != "target":
            self._scale = 1.0
        self._measured.follow(self._statistics.compute(distributed=False, device="cpu"))
        self._statistics = UpdateStatistics()


@dataclasses.dataclass(frozen=True)
class Update:
    """What one update did.

    Attributes:
        reward: Share of right actions before it.
        clipped: Clip fraction.
        kl: KL(before || after) in nats per token.
        room: Half the width of the range, mean over trajectories; infinite where there is none.
        spread: Root mean square of log s before the second, third, … step.
    """

    reward: float
    clipped: float
    kl: float
    room: float
    spread: tuple[float, ...]


def simulate(name: str, *, length: int, lr: float, updates: int, seed: int = 0) -> Iterator[Update]:
    """Trains a table of logits on trajectories of around ``length`` tokens; the right action of each state pays.

    Args:
        name: The rule.
        length: Mean number of tokens; a trajectory has half to one and a half times as many.
        lr: Adam's learning rate, of logits that are products of two matrices: 0.01 is small, 0.1 overshoots.
        updates: How many, of ``MINIBATCHES`` steps each.
        seed: Fixes everything.
    """
    random = torch.Generator().manual_seed(seed)
    states = torch.nn.Parameter(0.7 * torch.randn(STATES, WIDTH, generator=random))
    actions = torch.nn.Parameter(0.7 * torch.randn(WIDTH, ACTIONS, generator=random))
    right_S = torch.randint(ACTIONS, (STATES,), generator=random)
    optimizer, rule = torch.optim.Adam([states, actions], lr=lr), Rule(name)
    for _ in range(updates):
        old_SA = (states @ actions).log_softmax(-1).detach()
        visited_BT = torch.randint(STATES, (GROUPS, 3 * length // 2), generator=random).repeat_interleave(MEMBERS, 0)
        lengths_B = torch.randint(length // 2, 3 * length // 2 + 1, (GROUPS * MEMBERS,), generator=random)
        mask_BT = torch.arange(visited_BT.shape[1]) < lengths_B[:, None]
        taken_BT = torch.multinomial(old_SA[visited_BT.flatten()].exp(), 1, generator=random).view_as(visited_BT)
        reward_B = ((taken_BT == right_S[visited_BT]) & mask_BT).sum(1) / lengths_B
        advantage_B = torch.cat([group_z_score(group) for group in reward_B.split(MEMBERS)])
        clipped, rooms, spread = 0.0, [], []
        for step in range(MINIBATCHES):
            part = slice(step * len(mask_BT) // MINIBATCHES, (step + 1) * len(mask_BT) // MINIBATCHES)
            mask, where = mask_BT[part], (visited_BT[part], taken_BT[part])
            logp, old = (states @ actions).log_softmax(-1)[where], old_SA[where]
            rule.watch(step, logp.detach(), old, mask)
            if step:
                spread.append(float(sequence_log_ratio(logp.detach(), old, mask).square().mean().sqrt()))
            low, high = rule.bounds(mask)
            loss, stats = policy_loss(logp, old, advantage_B[part], mask, clip_low=low, clip_high=high)
            clipped += float((stats["clipped_low_B"] + stats["clipped_high_B"]).mean()) / MINIBATCHES
            low_B = low[:, 0] if isinstance(low, Tensor) and low.dim() == 2 else torch.as_tensor(low)
            rooms.append(float(low_B.float().mean()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        new_SA = (states @ actions).log_softmax(-1).detach()
        kl = float((old_SA.exp() * (old_SA - new_SA)).sum(-1).mean())
        yield Update(float(reward_B.mean()), clipped, kl, sum(rooms) / len(rooms), tuple(spread))
        rule.end_update(clipped)


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def print_simulation(rules: list[str], lengths: list[int], lrs: list[float], updates: int) -> None:
    """One row per length, learning rate and rule."""
    print("tokens     lr  rule         clipped  range/step  step 3/1  KL/token  worst KL  reward: first, best, last 5")
    for length in lengths:
        for lr in lrs:
            for name in rules:
                done = list(simulate(name, length=length, lr=lr, updates=updates))
                settled = done[len(done) // 4 :]
                reward = [update.reward for update in done]
                print(
                    f"{length:6d} {lr:6g}  {name:11s}  {_mean([u.clipped for u in settled]):7.1%}"
                    f"  {_mean([u.room for u in settled]) / _mean([u.spread[0] for u in settled]):10.2f}"
                    f"  {_mean([u.spread[-1] for u in settled]) / _mean([u.spread[0] for u in settled]):8.2f}"
                    f"  {_mean([u.kl for u in settled]):8.4f}  {max(u.kl for u in settled):8.3f}"
                    f"  {reward[0]:.2f}, {max(reward):.2f}, {_mean(reward[-5:]):.2f}",
                    flush=True,
                )


def print_training(
    recipe: str, model: str, rules: list[str], lrs: list[float], iterations: int, more: list[str]
) -> None:
    """One row per learning rate and rule."""
    print("    lr  rule         clipped   mean |log s|  range   KL/token  worst KL  success")
    for lr in lrs:
        for name in rules:
            config = load_config(recipe, [*more, f"rl_module.model_config={{path: {model}}}"])
            algorithm = config.training(**{"clip_low": 3e-4, "clip_high": 4e-4, "lr": lr, **RULES[name]}).build_algo()
            results = [algorithm.train() for _ in range(iterations)]
            algorithm.stop()
            learner = [result["learners"]["default_policy"] for result in results]
            kl = [update.get("kl_to_behavior", 0.0) for update in learner]
            print(
                f"{lr:6g}  {name:11s}  {_mean([u['clip_fraction'] for u in learner if 'clip_fraction' in u]):7.1%}"
                f"  {_mean([u['abs_log_ratio_mean'] for u in learner if 'abs_log_ratio_mean' in u]):12.1e}"
                f"  {learner[-1].get('clip_range_mean', config.clip_low):.1e}  {_mean(kl):8.4f}  {max(kl):8.3f}  "
                + " ".join(f"{result['env_runners'][metrics.SUCCESS_MEAN]:.2f}" for result in results),
                flush=True,
            )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    simulated = commands.add_parser("simulate", help="a table of logits")
    simulated.add_argument("--rules", nargs="+", choices=[*RULES, "last"], default=[*RULES, "last"])
    simulated.add_argument("--lengths", nargs="+", type=int, default=[43, 400, 1000])
    simulated.add_argument("--lrs", nargs="+", type=float, default=[0.01, 0.1])
    simulated.add_argument("--updates", type=int, default=40)
    trained = commands.add_parser("train", help="a recipe")
    trained.add_argument("recipe", help="a YAML config")
    trained.add_argument("--model", required=True, help="folder of the warm-started policy")
    trained.add_argument("--rules", nargs="+", choices=[*RULES], default=[*RULES])
    trained.add_argument("--lrs", nargs="+", type=float, default=[2e-5, 1e-4])
    trained.add_argument("--iterations", type=int, default=6)
    trained.add_argument("overrides", nargs="*", help="section.key=value")
    args = parser.parse_args()
    if args.command == "simulate":
        print_simulation(args.rules, args.lengths, args.lrs, args.updates)
    else:
        print_training(args.recipe, args.model, args.rules, args.lrs, args.iterations, args.overrides)


if __name__ == "__main__":
    main()
