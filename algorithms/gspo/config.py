"""Where ``GSPOConfig`` was in 0.1: checkpoints from then name it by this path."""

from gspo_rllib.algorithms.gspo.gspo import GSPOConfig

__all__ = ["GSPOConfig"]
