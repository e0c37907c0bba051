"""The part of an algorithm that compares which experts engine and learner send the same tokens to: ``router_gap``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import LEARNER_RESULTS

from gspo_rllib.connectors import token_trajectory
from gspo_rllib.engines.expert_pass import TellsExperts
from gspo_rllib.learners.sharding_settings import shards
from gspo_rllib.learners.statistics import ROUTER_GAP
from gspo_rllib.modules.routing import experts_of, num_changed
from gspo_rllib.packing import pack
from gspo_rllib.types import TrajectoryGroup

if TYPE_CHECKING:
    from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings

MOST_COMPARED = 8
"""Trajectories of an iteration; each costs a forward pass in the engine, and one in a learner."""


class ComparesRouting:
    """What ``PolicyGradient`` does to measure it, before an update, where both hold the same weights."""

    config: Any
    metrics: Any
    _settings: TrainingSettings
    _ask: Callable[[Callable[[Any], Any]], Any]
    _first_learner: Callable[[Callable[[Any], Any]], list[Any]]

    def _log_router_gap(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Compares the first trajectories; with older weights in the engine, or an engine that cannot tell, nothing."""
        settings = self._settings
        if not settings.router_drift or settings.max_staleness or settings.recorded_groups is not None:
            return
        if shards(self.config):  # one learner by itself has not the whole model
            return
        every = (token_trajectory(episode) for group in groups for episode in group.episodes)
        compared = [one for one in every if one.num_loss_tokens][:MOST_COMPARED]

        def by_engine_of(runner: Any) -> Any:
            engine = runner._acquire_engine()
            return [engine.experts(one) for one in compared] if isinstance(engine, TellsExperts) else []

        by_engine = self._ask(by_engine_of)
        if not by_engine:
            return

        def by_learner(learner: Any) -> Any:
            module = learner.module[DEFAULT_MODULE_ID].unwrapped()
            return [
                [layer.cpu() for layer in experts_of(module, pack([one], device=learner.device))] for one in compared
            ]

        (found,) = self._first_learner(by_learner)
        counts = [num_changed(engine, learner) for engine, learner in zip(by_engine, found, strict=True)]
        share = sum(changed for changed, _ in counts) / sum(tokens for _, tokens in counts)
        self.metrics.log_value((LEARNER_RESULTS, DEFAULT_MODULE_ID, ROUTER_GAP), share, window=1)
