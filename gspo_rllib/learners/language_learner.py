"""The learner: packs trajectories into micro-batches, accumulates gradients, steps once per minibatch.

Whatever the micro-batch size, the packing and the number of learners, the gradient of a minibatch is the same to float
noise: every micro-batch divides by the trajectories of the *whole* minibatch over all ranks, known in advance.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from gspo_rllib import columns
from gspo_rllib.connectors.scoring import score
from gspo_rllib.learners.kl_limit import KLLimit, StepMemory
from gspo_rllib.learners.lr_schedule import LRSchedule
from gspo_rllib.learners.minibatch import Minibatch
from gspo_rllib.learners.old_policy import note_old_policy, routed_as_noted
from gspo_rllib.learners.router_drift import RouterDrift
from gspo_rllib.learners.settings import UpdateSettings
from gspo_rllib.learners.shardable_learner import ShardableLearner
from gspo_rllib.learners.statistics import (
    ENDED_BY_KL,
    KL_TO_OLD,
    NUM_MINIBATCHES,
    NUM_STEPS_UNDONE,
    OLD_LOGP_RECOMPUTED,
    SCORING_HEAD,
    SCORING_ROWS,
    UpdateStatistics,
)
from gspo_rllib.learners.training_data import GroupTrainingData, MinibatchPlan
from gspo_rllib.modules.buffers import buffers_changed_by
from gspo_rllib.modules.routing import expert_layers
from gspo_rllib.modules.routing_replay import RoutingReplay
from gspo_rllib.packing import empty_row, packed_rows
from gspo_rllib.types import TokenTrajectory

LR_TIMESTEP = "lr_timestep"
"""Key in the learner's state: where on its schedule the learning rate is."""

WHOLE_LR = "initial_lr"
"""Key of a group of parameters, as torch's own schedulers call it: the rate that a schedule takes a share of."""


class LanguageLearner(ShardableLearner):
    """Base of every learner here; a subclass says what the loss of a micro-batch is (``compute_loss_for_module``)."""

    own_statistics: tuple[str, ...] = ()
    """Names of the means that a subclass adds to ``self.statistics`` (``add_mean``); reported beside the others."""

    _limit: KLLimit | None = None
    """Of the present update; None where nothing limits how far it moves."""

    _memory: StepMemory | None = None
    """Of the present update; None where no step is undone."""

    _replay: RoutingReplay | None = None
    """What holds a mixture's tokens to their experts; None where nothing does."""

    _watches_gradients: bool = True
    """Whether no step has shown yet that every trained parameter gets a gradient; asked of adapters."""

    _lr_timestep: int = 0
    """Of the latest update; what a learning-rate schedule goes by."""

    trains_on_zero_advantages: bool = False
    """Whether a trajectory without an advantage may still have a gradient: a penalty's, or a critic's."""

    @functools.cached_property
    def settings(self) -> UpdateSettings:
        """The settings that this learner reads, as they were when it was built."""
        return UpdateSettings.of(self.config)

    @property
    def recomputes_old_log_probs(self) -> bool:
        """Whether this update's old log-probs are the learner's own before its first step, not the engine's."""
        return bool(self.config.recompute_old_log_probs)

    def _make_modules_ddp_if_necessary(self) -> None:
        """As RLlib does; where a pass may miss a parameter, ranks tell each other which of them had a gradient."""
        if self.config.num_learners > 1 and not self.is_sharded:
            module, options = self.module[DEFAULT_MODULE_ID], self.config.torch_ddp_kwargs
            if module.reach.may_miss:
                options.setdefault("find_unused_parameters", True)
            # Otherwise every pass begins with sending all buffers, which hardly any model writes to.
            if not buffers_changed_by(lambda: module.forward_train(empty_row(self.device)), module):
                options.setdefault("broadcast_buffers", False)
        super()._make_modules_ddp_if_necessary()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """AdamW; biases, norms and other vectors are not decayed. ``config`` may be this module's own, by RLlib."""
        if self.settings.router_drift:
            expert_layers(self.module[module_id].unwrapped().model)  # refused here, if at all
        if self.settings.routing_replay:
            self._replay = RoutingReplay(self.module[module_id].unwrapped(), empty_row(self.device))
        self._register_adamw(module_id, self.module[module_id].policy_parameters(), lr=UpdateSettings.of(config).lr)

    def _register_adamw(self, module_id: str, parameters: list[torch.nn.Parameter], *, lr: Any, name: str = "") -> None:
        settings = self.settings
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
                {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
            ],
            betas=tuple(settings.adam_betas),
            eps=settings.adam_epsilon,
        )
        named = {"optimizer_name": name} if name else {}
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=lr, **named
        )
        if self._lr_schedule is not None:
            # RLlib's, of a fixed rate, would set that one after every update.
            self._optimizer_lr_schedules.pop(optimizer, None)
            for group in optimizer.param_groups:
                group[WHOLE_LR] = lr
        self._follow_lr_schedule(optimizer)

    def _create_iterator_if_necessary(
        self, *, training_data: TrainingData, num_epochs: int = 1, **kwargs: Any
    ) -> Iterator[Minibatch]:
        """The minibatches of ``num_epochs`` passes over the groups, until the policy has moved too far.

        Every rank gets the same number.
        """
        assert isinstance(training_data, GroupTrainingData)
        batch: dict[str, Any] = self._learner_connector(
            rl_module=self.module,
            batch={},
            episodes=training_data.episodes,
            shared_data={},
            metrics=self.metrics,
        )
        scored: list[TokenTrajectory] = batch[DEFAULT_MODULE_ID][columns.TRAJECTORIES]
        trajectories = [t for t in scored if t.num_loss_tokens]
        minibatches = [self._minibatch(step, trajectories) for step in training_data.minibatches]
        self.even_out([minibatch.policy_batches[DEFAULT_MODULE_ID]["micro_batches"] for minibatch in minibatches])
        self.statistics = UpdateStatistics(self.own_statistics)
        self.statistics.add_trajectories(trajectories)
        self.statistics.add_mean(OLD_LOGP_RECOMPUTED, float(self.recomputes_old_log_probs), 1)
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        self.statistics.add_max(SCORING_ROWS, module.scoring.rows_level)
        self.statistics.add_max(SCORING_HEAD, module.scoring.head_level)
        note_old_policy(module, minibatches, recomputes=self.recomputes_old_log_probs, replay=self._replay)
        self._watch_movement()
        drift = self._router_drift(minibatches[0]) if self.settings.router_drift else None
        for minibatch in itertools.chain.from_iterable(itertools.repeat(minibatches, num_epochs)):
            yield minibatch
            if self._limit is not None and self._limit.exceeded:
                break
        else:
            self._check_last_step(minibatches[-1])
        self._memory = None
        if drift is not None:
            drift.add_to(self.statistics)
        if self._limit is not None:
            self.statistics.add_mean(ENDED_BY_KL, float(self._limit.exceeded), 1)
            if self._limit.latest is not None:
                self.statistics.add_mean(KL_TO_OLD, self._limit.latest, 1)

    def _router_drift(self, minibatch: Minibatch) -> RouterDrift:
        return RouterDrift(self.module[DEFAULT_MODULE_ID].unwrapped(), DEFAULT_MODULE_ID, minibatch)

    def _watch_movement(self) -> None:
        target_kl, undo = self.settings.target_kl, self.settings.undo_overshoot
        self._limit = self._memory = None
        if target_kl is not None:
            self._limit = KLLimit(target_kl, distributed=self.distributed, device=self.device)
            self._memory = StepMemory(self._all_optimizers) if undo else None

    @torch.no_grad()
    def _check_last_step(self, minibatch: Minibatch) -> None:
        """No minibatch comes after the last step: where steps are undone, its own is scored once more."""
        if self._limit is None or self._memory is None:
            return
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        for micro_batch in minibatch.policy_batches[DEFAULT_MODULE_ID]["micro_batches"]:
            with routed_as_noted(self._replay, micro_batch):
                logp = module.forward_train(micro_batch)[columns.LOGP]
            if not micro_batch.get(columns.EMPTY):
                self._limit.add(micro_batch[columns.OLD_LOGP], logp)
        if self._limit.check():
            self._undo()

    def _undo(self) -> None:
        if self._memory is not None and self._memory.undo():
            self.statistics.add_count(NUM_STEPS_UNDONE)

    @property
    def _all_optimizers(self) -> list[torch.optim.Optimizer]:
        return [optimizer for _, optimizer in self.get_optimizers_for_module(DEFAULT_MODULE_ID)]

    def score(self, trajectories: list[TokenTrajectory], temperatures: list[float]) -> list[np.ndarray]:
        """Log-probabilities of sampled tokens under the policy as it is, the way updates compute them.

        Args:
            trajectories: Trajectories with at least one sampled token each.
            temperatures: The temperature that each was sampled at, > 0.

        Returns:
            float32 [L] (nats) per trajectory.
        """
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        scored: dict[int, np.ndarray] = {}
        own = module.temperature
        try:
            for temperature in set(temperatures):
                module.temperature = temperature
                members = [i for i, other in enumerate(temperatures) if other == temperature]
                values = score(
                    [trajectories[i] for i in members],
                    lambda row: module.forward_train(row)[columns.LOGP],
                    max_tokens=self.settings.max_tokens_per_micro_batch,
                    device=self.device,
                )
                scored.update(zip(members, values, strict=True))
        finally:
            module.temperature = own
        return [scored[i] for i in range(len(trajectories))]

    def _minibatch(self, plan: MinibatchPlan, trajectories: list[TokenTrajectory]) -> Minibatch:
        members = [t for t in trajectories if t.group_id in plan.group_ids]
        if not self.trains_on_zero_advantages:
            # A zero advantage has no gradient: such a trajectory only counts in the denominator, which the plan knows.
            members = [t for t in members if t.advantages.any()]
        rows = packed_rows(
            members,
            max_tokens=self.settings.max_tokens_per_micro_batch,
            sharing=self.module[DEFAULT_MODULE_ID].unwrapped().prefix_sharing(),
            device=self.device,
        )
        return Minibatch([row for _, row in rows], plan, sum(t.num_turns for t in members))

    def _uncompiled_update(
        self, batch: dict[str, Any], **_: Any
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
        """Accumulates the gradient of one minibatch and steps the optimiser, unless the policy has moved too far."""
        tokens = batch[DEFAULT_MODULE_ID]
        optimizers = self._all_optimizers
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        # A rank without a trajectory in this minibatch still takes part in the gradient's all-reduce.
        micro_batches = tokens["micro_batches"] or [empty_row(self.device)]
        with self._gradients_watched():
            total = self._accumulate(micro_batches, tokens["plan"])
        self.statistics.add_count(NUM_MINIBATCHES)
        if self._limit is not None and self._limit.check(has_moved=self.statistics.num_steps_taken > 0):
            self._undo()
        else:
            self._step(optimizers)
        return {}, {DEFAULT_MODULE_ID: total}, {}

    def _accumulate(self, micro_batches: list[dict[str, Any]], plan: MinibatchPlan) -> Tensor:
        """Adds up the gradient of a minibatch's micro-batches, over all ranks; returns this rank's loss."""
        module, ranks = self.module[DEFAULT_MODULE_ID], max(1, self.config.num_learners)
        total = torch.zeros((), device=self.device)
        for i, micro_batch in enumerate(micro_batches):
            micro_batch[columns.PLAN] = plan
            exchange = i == len(micro_batches) - 1 or not hasattr(module, "no_sync")
            with contextlib.nullcontext() if exchange else module.no_sync(), routed_as_noted(self._replay, micro_batch):
                fwd_out = module.forward_train(micro_batch)
                micro_batch.setdefault(columns.OLD_LOGP, fwd_out[columns.LOGP].detach())
                if self._limit is not None and not micro_batch.get(columns.EMPTY):
                    self._limit.add(micro_batch[columns.OLD_LOGP], fwd_out[columns.LOGP])
                loss = self.compute_loss_for_module(
                    module_id=DEFAULT_MODULE_ID, config=self.config, batch=micro_batch, fwd_out=fwd_out
                )
                if micro_batch.get(columns.EMPTY):
                    # The placeholder only takes part in the all-reduce; a penalty would train on its made-up token.
                    loss = 0.0 * loss
                # A clip has gradient 0 where its input is NaN: without this a NaN loss would pass for a good step.
                loss = loss + 0.0 * loss.detach() * fwd_out[columns.LOGP].sum()
                # The all-reduce averages over ranks; the loss is this rank's part of a sum.
                (loss * ranks).backward()
            total += loss.detach()
        return total

    @contextlib.contextmanager
    def _gradients_watched(self) -> Iterator[None]:
        """Around the first step: an adapter's parameter that gets no gradient is an error that names it."""
        adapter = self.module[DEFAULT_MODULE_ID].unwrapped().adapter
        with adapter.watched() if adapter is not None and self._watches_gradients else contextlib.nullcontext():
            yield
        self._watches_gradients = False

    def _step(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Clips the gradient of each optimiser's parameters on its own and steps all of them, or none."""
        limit = self.settings.grad_clip if self.settings.grad_clip is not None else float("inf")
        norms = [
            float(torch.nn.utils.clip_grad_norm_([p for group in o.param_groups for p in group["params"]], limit))
            for o in optimizers
        ]
        finite = all(math.isfinite(norm) for norm in norms)
        if finite and self._memory is not None:
            self._memory.remember()
        self.statistics.add_step(grad_norm=norms[0], taken=finite)
        # Every rank has the same gradient after the all-reduce, so all skip or none does.
        for optimizer in optimizers:
            if finite:
                optimizer.step()
            else:
                optimizer.zero_grad(set_to_none=True)

    def _log_metrics(self, batch: Any) -> None:
        # RLlib warns about every minibatch without a turn; a rank may well have none.
        if batch.env_steps():
            super()._log_metrics(batch)

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Logs the update's statistics and advances learning-rate schedules."""
        super().after_gradient_based_update(timesteps=timesteps)
        self._lr_timestep = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
        for optimizer in self._all_optimizers:
            self._follow_updates(optimizer)
        self.on_statistics(self.statistics.compute(distributed=self.distributed, device=self.device))

    def on_statistics(self, values: dict[str, float]) -> None:
        """Logs what the update measured; ``values`` are exact over all ranks and the same on each."""
        for name, value in values.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, *name.split("/")), value, window=1)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, and where on a schedule the learning rate is."""
        return {**super().get_state(*args, **kwargs), LR_TIMESTEP: self._lr_timestep}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores weights and optimisers whatever the version, older ones too: a rollback must roll back.

        Of an optimiser, its state: moments and steps. Its settings are those this learner was built with, be the
        learner that saved the state another one's.
        """
        self._weights_seq_no = 0
        optimizers = self._all_optimizers
        own = [_settings_of(optimizer) for optimizer in optimizers]
        super().set_state(state)
        self._lr_timestep = state.get(LR_TIMESTEP, self._lr_timestep)
        for optimizer, settings in zip(optimizers, own, strict=True):
            saved_lr = float(optimizer.param_groups[0]["lr"])
            for group, of_group in zip(optimizer.param_groups, settings, strict=True):
                group.update(of_group)
            if LR_TIMESTEP in state:
                self._follow_lr_schedule(optimizer)
            elif self._has_lr_schedule(optimizer):
                # A state of 0.1 does not tell where on its schedule it was saved, only how large the rate was then.
                _set_lr(optimizer, saved_lr)
            self._follow_updates(optimizer)

    @functools.cached_property
    def _lr_schedule(self) -> LRSchedule | None:
        return LRSchedule.of(self.settings.lr_schedule, self.settings.lr)

    def _follow_updates(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets the learning rate of the next update, where that is a matter of how many there were."""
        if self._lr_schedule is not None:
            whole = optimizer.param_groups[0][WHOLE_LR]
            _set_lr(optimizer, whole * self._lr_schedule.share(self._weights_seq_no))

    def _has_lr_schedule(self, optimizer: torch.optim.Optimizer) -> bool:
        schedule = self._optimizer_lr_schedules.get(optimizer)
        return schedule is not None and schedule.use_schedule

    def _follow_lr_schedule(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets the learning rate of the present timestep, as a number: RLlib starts schedules at a float32 tensor."""
        self._follow_updates(optimizer)
        if self._has_lr_schedule(optimizer):
            _set_lr(optimizer, self._optimizer_lr_schedules[optimizer].update(timestep=self._lr_timestep))


def _settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Learning rate, betas, decay and the like of each group of parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
