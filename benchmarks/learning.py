"""Does it learn? Trains a recipe on several seeds, and the same with a broken loss, which must fail.

    .venv/bin/python benchmarks/learning.py configs/calculator.yaml --model models/seed --seeds 0 1 2
    .venv/bin/python benchmarks/learning.py configs/calculator.yaml --model models/seed --broken sign ratio
    .venv/bin/python benchmarks/learning.py configs/calculator.yaml --model models/seed --objectives all

``sign`` flips the advantage; ``ratio`` cuts the ratio's gradient. ``--objectives`` trains the recipe with each of
``OBJECTIVES``, everything else equal. Success is sampled at the training temperature, mean
over an iteration's trajectories.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from gspo_rllib import metrics
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.policy_gradient.learner import PolicyGradientLearner
from gspo_rllib.configs import load_config


class FlippedAdvantageLearner(PolicyGradientLearner):
    """Every advantage has the wrong sign."""

    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        """The loss of the opposite task."""
        return -super().compute_loss_for_module(**kwargs)


class CutRatioLearner(PolicyGradientLearner):
    """The loss has its value, but no gradient reaches the policy through the ratio."""

    def compute_loss_for_module(self, *, fwd_out: dict[str, Any], **kwargs: Any) -> Any:
        """The loss of a constant ratio."""
        constant = {name: value.detach() for name, value in fwd_out.items()}
        return super().compute_loss_for_module(fwd_out=constant, **kwargs) + 0.0 * fwd_out["logp"].sum()


TOKEN_CLIP = ["training.clip_low=0.2", "training.clip_high=0.28"]
OBJECTIVES: dict[str, list[str]] = {
    "GSPO": [],
    "GSPO-token, turn credit": [
        "training.importance_sampling_level=sequence_token",
        "training.advantage_estimator=turn_returns",
    ],
    "a ratio per turn": ["training.importance_sampling_level=turn", "training.reduction=turn_mean"],
    "GRPO": ["run.algorithm=GRPO", *TOKEN_CLIP],
    "DAPO": ["run.algorithm=DAPO", "training.num_minibatches=4", *TOKEN_CLIP],
    "DrGRPO": ["run.algorithm=DrGRPO", "training.clip_low=0.2", "training.clip_high=0.2"],
    "RLOO": ["run.algorithm=RLOO", "training.lr=2e-4"],
    "CISPO": ["run.algorithm=CISPO", "training.clip_low=1.0", "training.clip_high=4.0"],
    "GMPO": ["run.algorithm=GMPO", "training.num_minibatches=4", "training.clip_low=0.4", "training.clip_high=0.4"],
    "LanguagePPO": [
        "run.algorithm=LanguagePPO",
        "training.clip_low=0.2",
        "training.clip_high=0.2",
        "training.group_size=1",
        "training.groups_per_iteration=128",
        "training.vf_lr=1e-3",
    ],
}
"""Overrides of a recipe for GSPO on 16 groups of 8, each with the clip range of its own paper."""

BROKEN = {"sign": FlippedAdvantageLearner, "ratio": CutRatioLearner}


def train(
    config: GSPOConfig, *, target: float, minutes: float, iterations: int | None = None, patience: int = 3
) -> dict[str, Any]:
    """Trains until the mean success of ``patience`` iterations reaches ``target``, or a limit is reached."""
    started = time.monotonic()
    algorithm = config.build_algo()
    curve: list[float] = []
    reached_s: float | None = None
    try:
        while time.monotonic() - started < 60 * minutes:
            result = algorithm.train()
            curve.append(float(result["env_runners"][metrics.SUCCESS_MEAN]))
            if len(curve) >= patience and sum(curve[-patience:]) / patience >= target:
                reached_s = time.monotonic() - started
                break
            if iterations is not None and len(curve) >= iterations:
                break
    finally:
        algorithm.stop()
    return {
        "start": curve[0],
        "end": sum(curve[-patience:]) / len(curve[-patience:]),
        "iterations": len(curve),
        "seconds": time.monotonic() - started,
        "reached_s": reached_s,
        "curve": curve,
    }


def main() -> None:
    """Prints one row per run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a YAML config")
    parser.add_argument("--model", required=True, help="folder of the warm-started policy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--broken", choices=[*BROKEN], nargs="*", default=[])
    parser.add_argument("--objectives", choices=[*OBJECTIVES, "all"], nargs="*", default=["GSPO"])
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    args = parser.parse_args()

    names = [*OBJECTIVES] if "all" in args.objectives else args.objectives
    runs = [(name, None, seed) for name in names for seed in args.seeds]
    if args.broken:
        runs = [("GSPO", broken, args.seeds[0]) for broken in args.broken]
    rows = []
    print(f"{'objective':>24} {'seed':>4} {'start':>6} {'end':>6} {'iterations':>10} {'seconds':>8} {'reached':>8}")
    for name, broken, seed in runs:
        fixed = [f"rl_module.model_config={{path: {args.model}}}", f"debugging.seed={seed}"]
        config = load_config(args.recipe, [*OBJECTIVES[name], *args.overrides, *fixed])
        if broken:
            config.learners(learner_class=BROKEN[broken])
        label = f"{name}, {broken} broken" if broken else name
        row = {"objective": label, "seed": seed, **train(config, target=args.target, minutes=args.minutes)}
        rows.append(row)
        reached = f"{row['reached_s']:.0f} s" if row["reached_s"] else "no"
        print(
            f"{label:>24} {seed:4d} {row['start']:6.2f} {row['end']:6.2f} {row['iterations']:10d} "
            f"{row['seconds']:8.0f} {reached:>8}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
