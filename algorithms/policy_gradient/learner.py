"""The policy-gradient loss of one packed micro-batch, put together from the parts the config names."""

from __future__ import annotations

import functools
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from gspo_rllib import columns
from gspo_rllib.algorithms.policy_gradient.choices import ADVANTAGE_AGGREGATIONS, CLIP_SCALINGS, ROLLOUT_CORRECTIONS
from gspo_rllib.algorithms.policy_gradient.clip_range import NOISE, STEP, MeasuredClipRange
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.connectors import ReferenceLogProbs
from gspo_rllib.learners import statistics
from gspo_rllib.learners.language_learner import LanguageLearner
from gspo_rllib.ops import (
    IMPORTANCE_SAMPLING_LEVELS,
    Span,
    clip_span,
    k3,
    kl_estimate,
    length_clip_scale,
    log_ratio,
    next_clip_scale,
    policy_loss,
    ratio_lengths,
    reduce_tokens,
    rollout_correction,
    sequence_log_ratio,
)
from gspo_rllib.packing import TokenTable

CLIP_SCALE = "clip_scale"
"""Key in the learner's state: what the clip range is multiplied with."""

CLIP_RANGE = "clip_range"
"""Key in the learner's state: what a measured clip range is computed from."""

ENGINE_NOISE = "engine_noise"
"""Key in the learner's state: ``PolicyGradientLearner.engine_noise``."""

NEGLIGIBLE_NOISE = 0.1
"""Largest engine noise, as a share of the clip range, with which the engine's log-probs may stay in the ratio."""


class PolicyGradientLearner(LanguageLearner):
    """Ratio x surrogate x reduction + regularisers; by default the paper's (arXiv:2507.18071v2, eq. 5)."""

    clip_scale: float = 1.0
    engine_noise: float | None = None
    """Latest measured distance between engine and learner at the same weights: mean |log s| of a trajectory (largest
    |log-ratio| of a token, with a ratio per token or turn), nats; None before it is measured."""

    @functools.cached_property
    def settings(self) -> TrainingSettings:
        """The settings of training, as they were when the learner was built; those of the algorithm's own class."""
        settings: TrainingSettings = self.config.settings(self.config.training_settings)
        return settings

    @functools.cached_property
    def clip_range(self) -> MeasuredClipRange | None:
        """The range that this run measures, where the settings ask for one."""
        return MeasuredClipRange(self.settings) if CLIP_SCALINGS[self.settings.clip_scaling].measures else None

    @property
    def recomputes_old_log_probs(self) -> bool:
        """With ``old_log_probs="auto"``: whether the measured noise is too near the clip range for the engine's."""
        settings = self.settings
        if settings.old_log_probs_are_fixed or self.engine_noise is None:
            return super().recomputes_old_log_probs
        fixed = self.clip_scale * min(settings.clip_low, settings.clip_high)
        narrowest = fixed if self.clip_range is None else self.clip_range.typical()
        if narrowest is None:
            return super().recomputes_old_log_probs
        # True also where the noise is NaN, which must not count as small.
        return not self.engine_noise <= NEGLIGIBLE_NOISE * narrowest

    # mypy wants an attribute where the base class has one; this one follows from the settings, and is only read.
    @property
    def trains_on_zero_advantages(self) -> bool:  # type: ignore[override]
        """A penalty in the loss and a critic have a gradient where there is no advantage."""
        settings = self.settings
        return bool(settings.penalises_in_loss or settings.entropy_coeff or settings.uses_critic)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """AdamW for the policy, and another one for the critic if there is one."""
        super().configure_optimizers_for_module(module_id, config)
        critic = self.module[module_id].critic_parameters()
        if critic:
            lr = self.settings.lr if self.settings.vf_lr is None else self.settings.vf_lr
            self._register_adamw(module_id, critic, lr=lr, name="critic")

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """This micro-batch's part of the minibatch's loss.

        Args:
            module_id: RLlib's name of the policy.
            config: RLlib's view of the settings; the loss reads ``settings``.
            batch: A packed row (``columns``), with the ``MinibatchPlan`` of the whole minibatch.
            fwd_out: ``logp`` and ``entropy`` of its sampled tokens.
        """
        settings = self.settings
        table = TokenTable(batch)
        mask_BT = table.mask_BT
        logp_BT, old_BT = table(fwd_out[columns.LOGP]), table(batch[columns.OLD_LOGP])
        advantage_BT = table(batch[columns.ADVANTAGES])
        aggregate = ADVANTAGE_AGGREGATIONS[settings.advantage_aggregation]
        if aggregate is not None:
            advantage_BT = aggregate(advantage_BT, mask_BT)
        weights_BT, correction = None, ROLLOUT_CORRECTIONS[settings.rollout_correction]
        if correction is not None:
            weights_BT = rollout_correction(
                old_BT,
                table(batch[columns.BEHAVIOR_LOGP]),
                mask_BT,
                mode=correction,
                level=settings.rollout_correction_level,
                low=settings.rollout_correction_low,
                high=settings.rollout_correction_high,
            )
        reduction = self._reduction(batch, table)
        clip_low, clip_high = self._clip_bounds(batch, table)
        loss, stats = policy_loss(
            logp_BT,
            old_BT,
            advantage_BT,
            mask_BT,
            importance_sampling_level=settings.importance_sampling_level,
            clip_low=clip_low,
            clip_high=clip_high,
            surrogate=settings.surrogate,
            dual_clip=settings.dual_clip,
            sapo_temperature_positive=settings.sapo_temperature_positive,
            sapo_temperature_negative=settings.sapo_temperature_negative,
            weights_BT=weights_BT,
            **reduction,
        )
        if settings.penalises_in_loss:
            kl_BT = kl_estimate(logp_BT, table(batch[columns.REFERENCE_LOGP]), estimator=settings.kl_estimator)
            loss = loss + settings.kl_coeff * reduce_tokens(kl_BT, mask_BT, **reduction)
        if settings.entropy_coeff:
            loss = loss - settings.entropy_coeff * reduce_tokens(table(fwd_out[columns.ENTROPY]), mask_BT, **reduction)
        if settings.uses_critic:
            error_BT = table(fwd_out[columns.VALUES]) - table(batch[columns.VALUE_TARGETS])
            vf_loss = reduce_tokens(error_BT.square().clamp(max=settings.vf_clip_param), mask_BT, **reduction)
            loss = loss + settings.vf_loss_coeff * vf_loss
            if not batch.get(columns.EMPTY):
                self._log_critic(batch, fwd_out, vf_loss)
        if not batch.get(columns.EMPTY):
            self._log(batch, fwd_out, stats, loss, table, weights_BT)
            self._log_range(clip_low, mask_BT)
        return loss

    def _reduction(self, batch: dict[str, Any], table: TokenTable) -> dict[str, Any]:
        """How the objective and every penalty become this micro-batch's part of the mean over the whole minibatch."""
        return {
            "reduction": self.settings.reduction,
            "turn_ids_BT": table(batch[columns.TURN_INDEX]),
            "denominator": batch[columns.PLAN].denominator(self.settings.reduction),
            "token_sum_length": self._token_sum_length,
        }

    @functools.cached_property
    def _token_sum_length(self) -> int:
        return int(self.config.resolved_token_sum_length)

    def _clip_bounds(self, batch: dict[str, Any], table: TokenTable) -> tuple[Any, Any]:
        """``clip_low`` and ``clip_high`` of ``policy_loss``."""
        settings = self.settings
        if self.clip_range is not None:
            has_noise = not self.recomputes_old_log_probs
            return self.clip_range.bounds(table.mask_BT, table(batch[columns.TURN_INDEX]), has_noise=has_noise)
        scale: Any = self.clip_scale
        if CLIP_SCALINGS[settings.clip_scaling].by_length:
            length_B = table.mask_BT.sum(dim=1)
            scale = length_clip_scale(length_B, reference_length=settings.clip_reference_length)
        return scale * settings.clip_low, scale * settings.clip_high

    def on_statistics(self, values: dict[str, float]) -> None:
        """Logs the update, moves the clip range and keeps the noise; the same on every rank."""
        if CLIP_SCALINGS[self.settings.clip_scaling].towards_target:
            values[statistics.CLIP_SCALE] = self.clip_scale
            self.clip_scale = next_clip_scale(
                self.clip_scale, values.get(statistics.CLIP_FRACTION), target=self.settings.clip_target_fraction
            )
        span = clip_span(self.settings.importance_sampling_level, self.settings.surrogate)
        if statistics.SEQUENCE_GAP_MEAN in values:
            self.engine_noise = values[
                statistics.SEQUENCE_GAP_MEAN if span is Span.TRAJECTORY else statistics.LOGP_GAP_MAX
            ]
        if self.clip_range is not None:
            self.clip_range.follow(values)
        super().on_statistics(values)

    def reference_files(self) -> dict[str, bytes]:
        """The frozen reference policy as the files of a Hugging Face folder."""
        pieces = self._learner_connector.connectors
        reference = next(piece for piece in pieces if isinstance(piece, ReferenceLogProbs))
        return reference.files(self.module[DEFAULT_MODULE_ID].unwrapped())

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, the clip range, and the noise between engine and learner."""
        own: dict[str, Any] = {CLIP_SCALE: self.clip_scale, ENGINE_NOISE: self.engine_noise}
        if self.clip_range is not None:
            own[CLIP_RANGE] = self.clip_range.get_state()
        return {**super().get_state(*args, **kwargs), **own}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what ``get_state`` returned; a clip range only where the settings let it move."""
        super().set_state(state)
        if CLIP_SCALINGS[self.settings.clip_scaling].towards_target:
            self.clip_scale = state.get(CLIP_SCALE, self.clip_scale)
        if self.clip_range is not None:
            self.clip_range.set_state(state.get(CLIP_RANGE, {}))
        self.engine_noise = state.get(ENGINE_NOISE, self.engine_noise)

    @torch.no_grad()
    def _log_critic(self, batch: dict[str, Any], fwd_out: dict[str, Tensor], vf_loss: Tensor) -> None:
        share = len(batch[columns.BEHAVIOR_VERSION]) / max(batch[columns.PLAN].num_trajectories, 1)
        self.statistics.add_mean(statistics.VF_LOSS, vf_loss, share)
        self.statistics.add_values(fwd_out[columns.VALUES], batch[columns.VALUE_TARGETS])

    @torch.no_grad()
    def _log(
        self,
        batch: dict[str, Any],
        fwd_out: dict[str, Tensor],
        stats: dict[str, Tensor],
        loss: Tensor,
        table: TokenTable,
        weights_BT: Tensor | None,
    ) -> None:
        update, add = self.statistics, self.statistics.add_mean
        logp_L, behavior_L = fwd_out[columns.LOGP], batch[columns.BEHAVIOR_LOGP]
        length_B = table.mask_BT.sum(dim=1)
        num_trajectories, num_sampled = len(length_B), len(logp_L)
        # The loss is this row's share of a minibatch's mean; shares of one minibatch sum to it.
        add(statistics.LOSS, loss, num_trajectories / max(batch[columns.PLAN].num_trajectories, 1))
        update.add_ratios(stats["ratio_B"])
        low, high = stats["clipped_low_B"].sum(), stats["clipped_high_B"].sum()
        add(statistics.CLIP_FRACTION_LOW, low, num_trajectories)
        add(statistics.CLIP_FRACTION_HIGH, high, num_trajectories)
        add(statistics.CLIP_FRACTION, low + high, num_trajectories)
        add(statistics.KL_TO_BEHAVIOR, k3(behavior_L, logp_L).sum(), num_sampled)
        add(statistics.ENTROPY, fwd_out[columns.ENTROPY].sum(), num_sampled)
        if columns.REFERENCE_LOGP in batch:
            kl_L = kl_estimate(logp_L, batch[columns.REFERENCE_LOGP], estimator=self.settings.kl_estimator)
            add(statistics.KL_TO_REFERENCE, kl_L.sum(), num_sampled)
        if weights_BT is not None:
            add(statistics.CORRECTION_WEIGHT_MEAN, weights_BT[table.mask_BT].sum(), num_sampled)
            add(statistics.CORRECTION_MASKED_FRACTION, (weights_BT[table.mask_BT] == 0).sum(), num_sampled)
        staleness_B = self._weights_seq_no - 1 - batch[columns.BEHAVIOR_VERSION]
        add(statistics.STALENESS, staleness_B.sum(), num_trajectories)
        if update.num_steps:
            add(statistics.ABS_LOG_RATIO_MEAN, stats["abs_log_ratio_B"].sum(), num_trajectories)
            update.add_by_length(statistics.ABS_LOG_RATIO_BY_LENGTH, stats["abs_log_ratio_B"], length_B)
            one_B = torch.ones_like(stats["abs_log_ratio_B"])
            update.add_log_ratios(statistics.ABS_LOG_RATIO_QUANTILES, stats["abs_log_ratio_B"], one_B)
            self._log_ratios(logp_L, batch, table)
        elif not int(staleness_B.abs().max()):
            gap_B = sequence_log_ratio(table(logp_L), table(behavior_L), table.mask_BT).abs()
            update.add_max(statistics.LOGP_GAP_MAX, (logp_L - behavior_L).abs().max())
            add(statistics.SEQUENCE_GAP_MEAN, gap_B.sum(), num_trajectories)
            update.add_by_length(statistics.SEQUENCE_GAP_BY_LENGTH, gap_B, length_B)
            self._measure(NOISE, logp_L, behavior_L, batch, table)
        if update.num_steps == update.num_steps_taken == 1:
            self._measure(STEP, logp_L, batch[columns.OLD_LOGP], batch, table)

    def _log_ratios(self, logp_L: Tensor, batch: dict[str, Any], table: TokenTable) -> None:
        level, turn_ids_BT = self.settings.importance_sampling_level, table(batch[columns.TURN_INDEX])
        old_logp_BT = table(batch[columns.OLD_LOGP])
        log_ratio_BT = log_ratio(table(logp_L), old_logp_BT, table.mask_BT, level=level, turn_ids_BT=turn_ids_BT)
        length_BT = ratio_lengths(table.mask_BT, turn_ids_BT, span=IMPORTANCE_SAMPLING_LEVELS[level].span)
        ratios, counted = log_ratio_BT[table.mask_BT], 1 / length_BT[table.mask_BT]
        self.statistics.add_log_ratios(statistics.RATIO_QUANTILES, ratios, counted)

    def _measure(self, kind: str, logp_L: Tensor, old_logp_L: Tensor, batch: dict[str, Any], table: TokenTable) -> None:
        if self.clip_range is not None:
            turn_ids_BT = table(batch[columns.TURN_INDEX])
            self.clip_range.measure(kind, table(logp_L), table(old_logp_L), table.mask_BT, turn_ids_BT, self.statistics)

    def _log_range(self, clip_low: Tensor | float, mask_BT: Tensor) -> None:
        if not isinstance(clip_low, Tensor):
            return
        low_BT = clip_low if clip_low.dim() == 2 else clip_low.unsqueeze(1).expand_as(mask_BT)
        mean_B = torch.where(mask_BT, low_BT, torch.zeros_like(low_BT)).sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)
        self.statistics.add_mean(statistics.CLIP_RANGE_MEAN, mean_B.sum(), len(mean_B))
