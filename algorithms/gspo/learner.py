"""Where the learner was in 0.1: checkpoints from then name it by this path."""

from gspo_rllib.algorithms.policy_gradient.learner import PolicyGradientLearner as GSPOLearner

__all__ = ["GSPOLearner"]
