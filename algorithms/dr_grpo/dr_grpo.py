"""``DrGRPO``: GRPO Done Right (arXiv:2503.20783v2).

What differs from GSPO: neither the standard deviation nor a trajectory's length divides anything.
"""

from __future__ import annotations

from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.knobs import with_defaults


class DrGRPOConfig(PolicyGradientConfig):
    """``GSPOConfig`` with DrGRPO's defaults; every builder and setting is the same.

    Example:
        >>> config = DrGRPOConfig().training(lr=1e-6)
        >>> config.advantage_estimator, config.importance_sampling_level
        ('group_mean', 'token')
    """

    training_settings = with_defaults(
        TrainingSettings,
        "DrGRPOTrainingSettings",
        {
            "advantage_estimator": ("group_mean", "arXiv:2503.20783v2 §3.2"),
            "importance_sampling_level": ("token", "arXiv:2503.20783v2 §3.2"),
            "clip_low": (0.2, "arXiv:2503.20783v2"),
            "clip_high": (0.2, "arXiv:2503.20783v2"),
            "reduction": ("token_sum", "arXiv:2503.20783v2 §3.2"),
        },
    )

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or DrGRPO)


class DrGRPO(PolicyGradient):
    """GRPO Done Right; see ``DrGRPOConfig`` for every setting."""

    @classmethod
    def get_default_config(cls) -> DrGRPOConfig:
        """A config with the paper's settings."""
        return DrGRPOConfig()
