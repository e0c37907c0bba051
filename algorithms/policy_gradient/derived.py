"""What follows from an algorithm's settings; RLlib's configs have such properties beside what is set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from gspo_rllib import precision
from gspo_rllib.algorithms.policy_gradient import memory_plan
from gspo_rllib.algorithms.policy_gradient.settings import recomputes_old_log_probs
from gspo_rllib.env_runners.engine_spec import resolve_max_model_len
from gspo_rllib.ops import REDUCTIONS


class Derived:
    """Properties of an algorithm's config that nobody sets."""

    if TYPE_CHECKING:  # at run time they are the config's

        def __getattr__(self, name: str) -> Any: ...

    @property
    def recompute_old_log_probs(self) -> bool:
        """Whether the ratio's denominator is the learner's own log-probs, as far as settings say; see the learner."""
        return recomputes_old_log_probs(cast(Any, self), exact=not precision.rounds(self, self._model_config or {}))

    @property
    def resolved_token_sum_length(self) -> int:
        """Length in tokens that a trajectory's token sum is divided by; 1 where the reduction uses none."""
        if not REDUCTIONS[self.reduction].needs_length:
            return 1
        return self.token_sum_length or self.resolved_max_model_len

    @property
    def resolved_max_model_len(self) -> int:
        """Longest context in tokens: what was asked for, or what the model was made for."""
        return resolve_max_model_len(self.max_model_len, self.model_config or {})

    @property
    def colocated_bytes(self) -> int | None:
        """What the learner keeps on the device it shares with an engine; None where engines never give theirs up."""
        return memory_plan.kept_bytes(self) if self.colocate else None
