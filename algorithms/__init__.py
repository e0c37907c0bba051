"""The algorithms, one folder per paper; importing this registers them with RLlib and Ray Tune by name.

tune.Tuner("GSPO", param_space=config)
"""

if __name__ == "algorithms":
    raise ImportError("import gspo_rllib.algorithms, not algorithms: two copies of one module would not be the same")

from gspo_rllib.algorithms.cispo.cispo import CISPO as CISPO
from gspo_rllib.algorithms.cispo.cispo import CISPOConfig as CISPOConfig
from gspo_rllib.algorithms.dapo.dapo import DAPO as DAPO
from gspo_rllib.algorithms.dapo.dapo import DAPOConfig as DAPOConfig
from gspo_rllib.algorithms.dr_grpo.dr_grpo import DrGRPO as DrGRPO
from gspo_rllib.algorithms.dr_grpo.dr_grpo import DrGRPOConfig as DrGRPOConfig
from gspo_rllib.algorithms.gmpo.gmpo import GMPO as GMPO
from gspo_rllib.algorithms.gmpo.gmpo import GMPOConfig as GMPOConfig
from gspo_rllib.algorithms.grpo.grpo import GRPO as GRPO
from gspo_rllib.algorithms.grpo.grpo import GRPOConfig as GRPOConfig
from gspo_rllib.algorithms.gspo.gspo import GSPO as GSPO
from gspo_rllib.algorithms.gspo.gspo import GSPOConfig as GSPOConfig
from gspo_rllib.algorithms.language_ppo.language_ppo import LanguagePPO as LanguagePPO
from gspo_rllib.algorithms.language_ppo.language_ppo import LanguagePPOConfig as LanguagePPOConfig
from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient as PolicyGradient
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig as PolicyGradientConfig
from gspo_rllib.algorithms.registration import register as register
from gspo_rllib.algorithms.rloo.rloo import RLOO as RLOO
from gspo_rllib.algorithms.rloo.rloo import RLOOConfig as RLOOConfig

ALGORITHMS: dict[str, type[PolicyGradient]] = {
    algorithm.__name__: algorithm for algorithm in (GSPO, GRPO, DAPO, DrGRPO, RLOO, CISPO, GMPO, LanguagePPO)
}
"""Every algorithm by the name that Tune and ``run.algorithm`` in a YAML config know it by."""

for _name, _algorithm in ALGORITHMS.items():
    register(_name, _algorithm)
