"""``LanguagePPO``: Proximal Policy Optimization of a language model, with a critic (arXiv:1707.06347v2).

What differs from GSPO: advantages per token from a critic instead of from a group.
"""

from __future__ import annotations

from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.knobs import with_defaults


class LanguagePPOConfig(PolicyGradientConfig):
    """``GSPOConfig`` with LanguagePPO's defaults; every builder and setting is the same.

    Example:
        >>> config = LanguagePPOConfig().training(lr=1e-6)
        >>> config.advantage_estimator, config.importance_sampling_level
        ('gae', 'token')
    """

    training_settings = with_defaults(
        TrainingSettings,
        "LanguagePPOTrainingSettings",
        {
            "advantage_estimator": ("gae", "arXiv:1707.06347v2 eq. 11"),
            "importance_sampling_level": ("token", "arXiv:1707.06347v2 eq. 7"),
            "clip_low": (0.2, "arXiv:1707.06347v2 §6.1"),
            "clip_high": (0.2, "arXiv:1707.06347v2 §6.1"),
            "reduction": ("token_mean", "verl"),
            "group_size": (1, "arXiv:1707.06347v2: no group"),
            "groups_per_iteration": (128, "ours: as many trajectories as the others"),
        },
    )

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or LanguagePPO)


class LanguagePPO(PolicyGradient):
    """Proximal Policy Optimization of a language model, with a critic; see ``LanguagePPOConfig`` for every setting."""

    @classmethod
    def get_default_config(cls) -> LanguagePPOConfig:
        """A config with the paper's settings."""
        return LanguagePPOConfig()
