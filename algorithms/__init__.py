"""The algorithms, one folder per paper; importing this registers them with Ray Tune by name.

tune.Tuner("GSPO", param_space=config)
"""

if __name__ == "algorithms":
    raise ImportError("import gspo_rllib.algorithms, not algorithms: two copies of one module would not be the same")

from ray.tune.registry import register_trainable

from gspo_rllib.algorithms.gspo.config import GSPOConfig
from gspo_rllib.algorithms.gspo.gspo import GSPO

register_trainable("GSPO", GSPO)

__all__ = ["GSPO", "GSPOConfig"]
