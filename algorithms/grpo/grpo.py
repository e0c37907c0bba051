"""``GRPO``: Group Relative Policy Optimization (arXiv:2402.03300v3).

What differs from GSPO: one ratio per token, the wider range of DAPO above 1.
"""

from __future__ import annotations

from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.knobs import with_defaults


class GRPOConfig(PolicyGradientConfig):
    """``GSPOConfig`` with GRPO's defaults; every builder and setting is the same.

    Example:
        >>> config = GRPOConfig().training(lr=1e-6)
        >>> config.importance_sampling_level, config.clip_low
        ('token', 0.2)
    """

    training_settings = with_defaults(
        TrainingSettings,
        "GRPOTrainingSettings",
        {
            "importance_sampling_level": ("token", "arXiv:2402.03300v3 eq. 3"),
            "clip_low": (0.2, "TRL, verl; the paper names no value"),
            "clip_high": (0.28, "DAPO, arXiv:2503.14476v2"),
        },
    )

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or GRPO)


class GRPO(PolicyGradient):
    """Group Relative Policy Optimization; see ``GRPOConfig`` for every setting."""

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        """A config with the paper's settings."""
        return GRPOConfig()
