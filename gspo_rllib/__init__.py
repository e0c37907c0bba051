"""GSPO for multi-turn language agents on Ray RLlib, with vLLM-backed env runners.

    from gspo_rllib import GSPOConfig

Importing this package loads neither ray, torch, transformers nor vllm: each public name is imported when it is first
used. Using any algorithm or its config also registers all of them with Ray Tune.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gspo_rllib.algorithms import CISPO as CISPO
    from gspo_rllib.algorithms import DAPO as DAPO
    from gspo_rllib.algorithms import GMPO as GMPO
    from gspo_rllib.algorithms import GRPO as GRPO
    from gspo_rllib.algorithms import GSPO as GSPO
    from gspo_rllib.algorithms import RLOO as RLOO
    from gspo_rllib.algorithms import CISPOConfig as CISPOConfig
    from gspo_rllib.algorithms import DAPOConfig as DAPOConfig
    from gspo_rllib.algorithms import DrGRPO as DrGRPO
    from gspo_rllib.algorithms import DrGRPOConfig as DrGRPOConfig
    from gspo_rllib.algorithms import GMPOConfig as GMPOConfig
    from gspo_rllib.algorithms import GRPOConfig as GRPOConfig
    from gspo_rllib.algorithms import GSPOConfig as GSPOConfig
    from gspo_rllib.algorithms import LanguagePPO as LanguagePPO
    from gspo_rllib.algorithms import LanguagePPOConfig as LanguagePPOConfig
    from gspo_rllib.algorithms import RLOOConfig as RLOOConfig
    from gspo_rllib.configs import load_config as load_config
    from gspo_rllib.errors import GSPOError as GSPOError
    from gspo_rllib.types import ChatSpec as ChatSpec
    from gspo_rllib.types import TrajectoryGroup as TrajectoryGroup
    from gspo_rllib.types import Turn as Turn

__version__ = "0.1.0"

_HOMES = {
    "ChatSpec": "gspo_rllib.types",
    "GSPOError": "gspo_rllib.errors",
    "TrajectoryGroup": "gspo_rllib.types",
    "Turn": "gspo_rllib.types",
    "load_config": "gspo_rllib.configs",
    "CISPO": "gspo_rllib.algorithms",
    "CISPOConfig": "gspo_rllib.algorithms",
    "DAPO": "gspo_rllib.algorithms",
    "DAPOConfig": "gspo_rllib.algorithms",
    "DrGRPO": "gspo_rllib.algorithms",
    "DrGRPOConfig": "gspo_rllib.algorithms",
    "GMPO": "gspo_rllib.algorithms",
    "GMPOConfig": "gspo_rllib.algorithms",
    "GRPO": "gspo_rllib.algorithms",
    "GRPOConfig": "gspo_rllib.algorithms",
    "GSPO": "gspo_rllib.algorithms",
    "GSPOConfig": "gspo_rllib.algorithms",
    "LanguagePPO": "gspo_rllib.algorithms",
    "LanguagePPOConfig": "gspo_rllib.algorithms",
    "RLOO": "gspo_rllib.algorithms",
    "RLOOConfig": "gspo_rllib.algorithms",
}

__all__ = [
    "CISPO",
    "DAPO",
    "GMPO",
    "GRPO",
    "GSPO",
    "RLOO",
    "CISPOConfig",
    "ChatSpec",
    "DAPOConfig",
    "DrGRPO",
    "DrGRPOConfig",
    "GMPOConfig",
    "GRPOConfig",
    "GSPOConfig",
    "GSPOError",
    "LanguagePPO",
    "LanguagePPOConfig",
    "RLOOConfig",
    "TrajectoryGroup",
    "Turn",
    "__version__",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
