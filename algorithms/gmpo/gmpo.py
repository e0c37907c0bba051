"""``GMPO``: Geometric-Mean Policy Optimization (arXiv:2507.20673v3).

What differs from GSPO: each token's ratio is clipped, in log space, before the trajectory's geometric mean is taken.
"""

from __future__ import annotations

from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.knobs import with_defaults


class GMPOConfig(PolicyGradientConfig):
    """``GSPOConfig`` with GMPO's defaults; every builder and setting is the same.

    Example:
        >>> config = GMPOConfig().training(lr=1e-6)
        >>> config.surrogate, config.importance_sampling_level, config.clip_low
        ('log_clip', 'sequence', 0.4)
    """

    training_settings = with_defaults(
        TrainingSettings,
        "GMPOTrainingSettings",
        {
            "importance_sampling_level": ("sequence", "arXiv:2507.20673v3: the geometric mean over a trajectory"),
            "surrogate": ("log_clip", "arXiv:2507.20673v3"),
            "clip_low": (0.4, "arXiv:2507.20673v3: exp(-0.4) to exp(0.4)"),
            "clip_high": (0.4, "arXiv:2507.20673v3: exp(-0.4) to exp(0.4)"),
            "num_minibatches": (8, "the authors' recipe: 1024 trajectories in steps of 128"),
        },
    )

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or GMPO)


class GMPO(PolicyGradient):
    """Geometric-Mean Policy Optimization; see ``GMPOConfig`` for every setting."""

    @classmethod
    def get_default_config(cls) -> GMPOConfig:
        """A config with the paper's settings."""
        return GMPOConfig()
