"""Small policies to start reinforcement learning from: built from nothing, then taught by imitation."""

from __future__ import annotations

from gspo_rllib.warmstart.imitation import WarmstartResult as WarmstartResult
from gspo_rllib.warmstart.imitation import warmstart as warmstart
