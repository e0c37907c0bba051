"""A loss of your own: a learner subclass, and the config that takes it.

    python examples/custom_loss.py models/seed

The loss is the squared one of policy mirror descent (Kimi k1.5, arXiv:2501.12599, section 2.3.2): a trajectory's
log-ratio to the policy that sampled should be its advantage divided by tau. Everything else stays: sampling, packing,
gradient accumulation, several learners, checkpoints, metrics.
"""

from __future__ import annotations

import argparse
from typing import Any

from torch import Tensor

from gspo_rllib import GSPOConfig, LanguageLearner, TokenTable, columns
from gspo_rllib.ops import token_log_ratio

TAU = 0.1
RESIDUAL = "residual_abs_mean"


class MirrorDescentLearner(LanguageLearner):
    """(A - tau log ratio)^2 per trajectory, instead of ratio x surrogate x reduction."""

    own_statistics = (RESIDUAL,)
    trains_on_zero_advantages = True  # the log-ratio of such a trajectory is pulled back to 0

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """This micro-batch's part of the minibatch's loss; parts of one minibatch are added up, over learners too."""
        table = TokenTable(batch)  # lays packed values out as [B, T]: a trajectory per row, its sampled tokens first
        logp_BT, old_BT = table(fwd_out[columns.LOGP]), table(batch[columns.OLD_LOGP])
        advantage_B = table(batch[columns.ADVANTAGES])[:, 0]
        log_ratio_B = token_log_ratio(logp_BT, old_BT, table.mask_BT).sum(dim=1)
        residual_B = advantage_B - TAU * log_ratio_B
        if not batch.get(columns.EMPTY):
            self.statistics.add_mean(RESIDUAL, residual_B.detach().abs().sum(), len(residual_B))
        # The mean is over the whole minibatch, of which these are only some trajectories: its plan knows how many.
        return residual_B.square().sum() / batch[columns.PLAN].num_trajectories


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Trains for a few iterations; returns the learner's last statistics."""
    parser = argparse.ArgumentParser(description="Train with a loss of your own.")
    parser.add_argument("model", help="Hugging Face folder, e.g. from `gspo-rllib warmstart`")
    parser.add_argument("--engine", default=None)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--operations", type=int, default=2)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=12)
    options = parser.parse_args(argv)
    config = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": options.operations})
        .rl_module(model_config={"path": options.model})
        .generation(engine=options.engine, max_tokens_per_turn=options.max_tokens)
        .training(advantage_estimator="group_mean", groups_per_iteration=options.groups, lr=1e-4)
        .learners(learner_class=MirrorDescentLearner)
        .debugging(seed=0)
    )
    algo = config.build_algo()
    statistics: dict[str, Any] = {}
    for _ in range(options.iterations):
        result = algo.train()
        statistics = result["learners"]["default_policy"]
        success = result["env_runners"]["success_mean"]
        print(
            f"iteration {result['training_iteration']:3d}  return {result['env_runners']['episode_return_mean']:.3f}  "
            f"success {success:.3f}  |residual| {statistics[RESIDUAL]:.4f}",
            flush=True,
        )
    algo.stop()
    return statistics


if __name__ == "__main__":
    main()
