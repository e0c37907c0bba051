"""The GSPO loss on one packed micro-batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gspo_rllib import columns
from gspo_rllib.learners import statistics
from gspo_rllib.learners.language_learner import LanguageLearner
from gspo_rllib.learners.micro_batches import to_table, unpack_rows
from gspo_rllib.ops import k3, policy_loss, sequence_log_ratio


class GSPOLearner(LanguageLearner):
    """Length-normalised ratio per trajectory, clipped, averaged over trajectories (arXiv:2507.18071v2, eq. 5)."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """This micro-batch's part of the minibatch's loss.

        Args:
            module_id: RLlib's name of the policy.
            config: The algorithm's.
            batch: A packed row (``columns``) and ``num_trajectories`` of the whole minibatch.
            fwd_out: ``logp`` and ``entropy`` of its sampled tokens.
        """
        advantages_B = batch[columns.ADVANTAGES]
        slot_L, mask_BT = unpack_rows(batch[columns.TRAJECTORY_INDEX], len(advantages_B))
        logp_BT = to_table(fwd_out[columns.LOGP], slot_L, mask_BT)
        loss, stats = policy_loss(
            logp_BT,
            to_table(batch[columns.OLD_LOGP], slot_L, mask_BT),
            advantages_B,
            mask_BT,
            importance_sampling_level=config.importance_sampling_level,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            turn_ids_BT=to_table(batch[columns.TURN_INDEX], slot_L, mask_BT),
            num_trajectories=batch["num_trajectories"],
        )
        if not batch.get(columns.EMPTY):
            behavior_BT = to_table(batch[columns.BEHAVIOR_LOGP], slot_L, mask_BT)
            self._log(batch, fwd_out, stats, loss, sequence_log_ratio(logp_BT.detach(), behavior_BT, mask_BT))
        return loss

    @torch.no_grad()
    def _log(
        self,
        batch: dict[str, Any],
        fwd_out: dict[str, Tensor],
        stats: dict[str, Tensor],
        loss: Tensor,
        gap_B: Tensor,
    ) -> None:
        add = self.statistics.add_mean
        logp_L, behavior_L = fwd_out[columns.LOGP].detach(), batch[columns.BEHAVIOR_LOGP]
        num_trajectories, num_sampled = len(gap_B), len(logp_L)
        # The loss is this row's share of a minibatch's mean; shares of one minibatch sum to it.
        add(statistics.LOSS, loss.detach(), num_trajectories / max(batch["num_trajectories"], 1))
        add(statistics.RATIO_MEAN, stats["ratio_B"].sum(), num_trajectories)
        low, high = stats["clipped_low_B"].sum(), stats["clipped_high_B"].sum()
        add(statistics.CLIP_FRACTION_LOW, low, num_trajectories)
        add(statistics.CLIP_FRACTION_HIGH, high, num_trajectories)
        add(statistics.CLIP_FRACTION, low + high, num_trajectories)
        add(statistics.KL_TO_BEHAVIOR, k3(behavior_L, logp_L).sum(), num_sampled)
        add(statistics.ENTROPY, fwd_out[columns.ENTROPY].sum(), num_sampled)
        staleness_B = self._weights_seq_no - 1 - batch[columns.BEHAVIOR_VERSION]
        add(statistics.STALENESS, staleness_B.sum(), num_trajectories)
        if not self.statistics.num_steps and not int(staleness_B.abs().max()):
            self.statistics.add_max(statistics.LOGP_GAP_MAX, (logp_L - behavior_L).abs().max())
            add(statistics.SEQUENCE_GAP_MEAN, gap_B.abs().sum(), num_trajectories)
