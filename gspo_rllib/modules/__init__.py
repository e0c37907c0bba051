"""The policy networks."""

from gspo_rllib.modules.causal_lm import CausalLMModule as CausalLMModule
from gspo_rllib.modules.model_config import MODEL_CONFIG as MODEL_CONFIG
