"""``GSPO``: Group Sequence Policy Optimization (arXiv:2507.18071v2).

One importance ratio per trajectory, normalised by its length, because the reward is given to a whole trajectory too.
"""

from __future__ import annotations

from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.knobs import with_defaults


class GSPOConfig(PolicyGradientConfig):
    """Configures GSPO training of a language-model agent, with the paper's defaults.

    Example:
        >>> config = (
        ...     GSPOConfig()
        ...     .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 6})
        ...     .rl_module(model_config={"path": "models/seed"})
        ...     .generation(temperature=1.0, max_tokens_per_turn=32)
        ...     .training(group_size=8, groups_per_iteration=16, lr=1e-5)
        ... )
        >>> config.clip_low, config.clip_high, config.num_minibatches
        (0.0003, 0.0004, 4)
    """

    training_settings = with_defaults(
        TrainingSettings,
        "GSPOTrainingSettings",
        {
            "advantage_estimator": ("group_z_score", "arXiv:2507.18071v2 eq. 6"),
            "importance_sampling_level": ("sequence", "arXiv:2507.18071v2 eq. 7"),
            "surrogate": ("clip", "arXiv:2507.18071v2 eq. 5"),
            "clip_low": (3e-4, "arXiv:2507.18071v2 §5.1"),
            "clip_high": (4e-4, "arXiv:2507.18071v2 §5.1"),
            "reduction": ("trajectory_mean", "arXiv:2507.18071v2 eq. 5"),
            "num_minibatches": (4, "arXiv:2507.18071v2 §5.1"),
        },
    )

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or GSPO)


class GSPO(PolicyGradient):
    """Group Sequence Policy Optimization; see ``GSPOConfig`` for every setting."""

    @classmethod
    def get_default_config(cls) -> GSPOConfig:
        """A config with the paper's settings."""
        return GSPOConfig()
