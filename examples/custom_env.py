"""An environment of your own, in one short class, trained with GSPO.

    python examples/custom_env.py models/seed

Text in, text out: an environment knows nothing of tokens, templates or models. See CONTRIBUTING.md for one that ships
with the project.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium as gym

from gspo_rllib import GSPOConfig, UnicodeText


class ShortReply(gym.Env[str, str]):
    """Rewards short replies: 1 for an empty one, 0 for 20 characters and more; two turns."""

    observation_space = UnicodeText()
    action_space = UnicodeText()
    metadata = {"render_modes": [], "blocking": False}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws the question; the same seed draws the same one."""
        super().reset(seed=seed)
        self.turn = 0
        return f"{self.np_random.integers(10)}+{self.np_random.integers(10)}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Scores the reply; any text is a legal action."""
        self.turn += 1
        reward = max(0.0, 1.0 - len(action) / 20)
        over = self.turn == 2
        return "Shorter.", reward, over, False, {"success": reward == 1.0} if over else {}


def main(argv: list[str] | None = None) -> float:
    """Trains for a few iterations; returns the last mean return."""
    parser = argparse.ArgumentParser(description="Train an environment of your own.")
    parser.add_argument("model", help="Hugging Face folder, e.g. from `gspo-rllib warmstart`")
    parser.add_argument("--engine", default=None)
    parser.add_argument("--iterations", type=int, default=10)
    options = parser.parse_args(argv)
    config = (
        GSPOConfig()
        .environment(ShortReply)
        .rl_module(model_config={"path": options.model})
        .generation(engine=options.engine, max_tokens_per_turn=16)
        .training(group_size=8, groups_per_iteration=8, lr=1e-4, clip_low=0.03, clip_high=0.04)
        .debugging(seed=0)
    )
    algo = config.build_algo()
    mean_return = 0.0
    for _ in range(options.iterations):
        result = algo.train()
        mean_return = result["env_runners"]["episode_return_mean"]
        print(f"iteration {result['training_iteration']:3d}  return {mean_return:.3f}", flush=True)
    algo.stop()
    return mean_return


if __name__ == "__main__":
    main()
