"""The policy networks."""

from gspo_rllib.modules.causal_lm import MODEL_CONFIG as MODEL_CONFIG
from gspo_rllib.modules.causal_lm import CausalLMModule as CausalLMModule
