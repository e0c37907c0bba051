"""``DAPO``: Decoupled Clip and Dynamic Sampling Policy Optimization (arXiv:2503.14476v2).

What differs from GSPO: token mean, and groups without variance are replaced.
"""

from __future__ import annotations

from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.knobs import with_defaults


class DAPOConfig(PolicyGradientConfig):
    """``GSPOConfig`` with DAPO's defaults; every builder and setting is the same.

    Example:
        >>> config = DAPOConfig().training(lr=1e-6)
        >>> config.importance_sampling_level, config.clip_low
        ('token', 0.2)
    """

    training_settings = with_defaults(
        TrainingSettings,
        "DAPOTrainingSettings",
        {
            "importance_sampling_level": ("token", "arXiv:2503.14476v2 eq. 8"),
            "clip_low": (0.2, "arXiv:2503.14476v2 §4.1"),
            "clip_high": (0.28, "arXiv:2503.14476v2 §4.1"),
            "reduction": ("token_mean", "arXiv:2503.14476v2 eq. 8"),
            "zero_variance_groups": ("resample", "arXiv:2503.14476v2 §3.2"),
            "num_minibatches": (16, "arXiv:2503.14476v2 §4.1"),
        },
    )

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or DAPO)


class DAPO(PolicyGradient):
    """Decoupled Clip and Dynamic Sampling Policy Optimization; see ``DAPOConfig`` for every setting."""

    @classmethod
    def get_default_config(cls) -> DAPOConfig:
        """A config with the paper's settings."""
        return DAPOConfig()
