"""The policy networks."""

from gspo_rllib.modules.causal_lm import MODEL_CONFIG, CausalLMModule

__all__ = ["MODEL_CONFIG", "CausalLMModule"]
