"""``RLOO``: REINFORCE Leave-One-Out (arXiv:2402.14740v2).

What differs from GSPO: plain policy gradient against the mean of the others, one step per batch.
"""

from __future__ import annotations

from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.knobs import with_defaults


class RLOOConfig(PolicyGradientConfig):
    """``GSPOConfig`` with RLOO's defaults; every builder and setting is the same.

    Example:
        >>> config = RLOOConfig().training(lr=1e-6)
        >>> config.advantage_estimator, config.importance_sampling_level
        ('leave_one_out', 'token')
    """

    training_settings = with_defaults(
        TrainingSettings,
        "RLOOTrainingSettings",
        {
            "advantage_estimator": ("leave_one_out", "arXiv:2402.14740v2"),
            "importance_sampling_level": ("token", "arXiv:2402.14740v2: no ratio; it is 1 with one step"),
            "surrogate": ("policy_gradient", "arXiv:2402.14740v2"),
            "clip_low": (3e-4, "GSPO's; nothing is clipped, it bounds the noise that old_log_probs=auto takes"),
            "clip_high": (4e-4, "GSPO's; nothing is clipped, it bounds the noise that old_log_probs=auto takes"),
            "reduction": ("token_sum", "arXiv:2402.14740v2: the log-prob of the whole reply"),
            "token_sum_length": (1, "arXiv:2402.14740v2: the log-prob of the whole reply"),
            "num_minibatches": (1, "arXiv:2402.14740v2: on policy"),
            "kl_coeff": (0.03, "arXiv:2402.14740v2, TL;DR"),
            "kl_estimator": ("k1", "arXiv:2402.14740v2"),
            "kl_placement": ("reward", "arXiv:2402.14740v2"),
        },
    )

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or RLOO)


class RLOO(PolicyGradient):
    """REINFORCE Leave-One-Out; see ``RLOOConfig`` for every setting."""

    @classmethod
    def get_default_config(cls) -> RLOOConfig:
        """A config with the paper's settings."""
        return RLOOConfig()
