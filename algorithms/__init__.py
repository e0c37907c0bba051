"""The algorithms, one folder per paper; importing this registers them with Ray Tune by name.

tune.Tuner("GSPO", param_space=config)
"""

if __name__ == "algorithms":
    raise ImportError("import gspo_rllib.algorithms, not algorithms: two copies of one module would not be the same")

from ray.tune.registry import register_trainable

from gspo_rllib.algorithms.cispo.cispo import CISPO, CISPOConfig
from gspo_rllib.algorithms.dapo.dapo import DAPO, DAPOConfig
from gspo_rllib.algorithms.dr_grpo.dr_grpo import DrGRPO, DrGRPOConfig
from gspo_rllib.algorithms.gmpo.gmpo import GMPO, GMPOConfig
from gspo_rllib.algorithms.grpo.grpo import GRPO, GRPOConfig
from gspo_rllib.algorithms.gspo.gspo import GSPO, GSPOConfig
from gspo_rllib.algorithms.language_ppo.language_ppo import LanguagePPO, LanguagePPOConfig
from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.rloo.rloo import RLOO, RLOOConfig

ALGORITHMS: dict[str, type[PolicyGradient]] = {
    algorithm.__name__: algorithm for algorithm in (GSPO, GRPO, DAPO, DrGRPO, RLOO, CISPO, GMPO, LanguagePPO)
}
"""Every algorithm by the name that Tune and ``run.algorithm`` in a YAML config know it by."""

for _name, _algorithm in ALGORITHMS.items():
    register_trainable(_name, _algorithm)

__all__ = [
    "ALGORITHMS",
    "CISPO",
    "DAPO",
    "GMPO",
    "GRPO",
    "GSPO",
    "RLOO",
    "CISPOConfig",
    "DAPOConfig",
    "DrGRPO",
    "DrGRPOConfig",
    "GMPOConfig",
    "GRPOConfig",
    "GSPOConfig",
    "LanguagePPO",
    "LanguagePPOConfig",
    "PolicyGradient",
    "PolicyGradientConfig",
    "RLOOConfig",
]
