"""``CISPO``: Clipped Importance Sampling Policy Optimization (arXiv:2506.13585v1).

What differs from GSPO: the weight is clipped instead of the objective, so no token loses its gradient.
"""

from __future__ import annotations

from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.knobs import with_defaults


class CISPOConfig(PolicyGradientConfig):
    """``GSPOConfig`` with CISPO's defaults; every builder and setting is the same.

    Example:
        >>> config = CISPOConfig().training(lr=1e-6)
        >>> config.surrogate, config.importance_sampling_level
        ('cispo', 'token')
    """

    training_settings = with_defaults(
        TrainingSettings,
        "CISPOTrainingSettings",
        {
            "surrogate": ("cispo", "arXiv:2506.13585v1"),
            "importance_sampling_level": ("token", "arXiv:2506.13585v1"),
            "clip_low": (1.0, "arXiv:2506.13585v1: no lower bound"),
            "clip_high": (4.0, "ours: the paper tunes it and does not say; ART takes 4"),
            "reduction": ("token_mean", "arXiv:2506.13585v1"),
        },
    )

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or CISPO)


class CISPO(PolicyGradient):
    """Clipped Importance Sampling Policy Optimization; see ``CISPOConfig`` for every setting."""

    @classmethod
    def get_default_config(cls) -> CISPOConfig:
        """A config with the paper's settings."""
        return CISPOConfig()
