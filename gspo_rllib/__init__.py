"""GSPO for multi-turn language agents on Ray RLlib, with vLLM-backed env runners.

    from gspo_rllib import GSPOConfig

Importing this package loads neither ray, torch, transformers nor vllm: each public name is imported when it is first
used. Using ``GSPO`` or ``GSPOConfig`` also registers ``"GSPO"`` with Ray Tune.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gspo_rllib.algorithms import GSPO as GSPO
    from gspo_rllib.algorithms import GSPOConfig as GSPOConfig
    from gspo_rllib.configs import load_config as load_config
    from gspo_rllib.errors import GSPOError as GSPOError
    from gspo_rllib.types import ChatSpec as ChatSpec
    from gspo_rllib.types import TrajectoryGroup as TrajectoryGroup
    from gspo_rllib.types import Turn as Turn

__version__ = "0.1.0"

_HOMES = {
    "ChatSpec": "gspo_rllib.types",
    "GSPO": "gspo_rllib.algorithms",
    "GSPOConfig": "gspo_rllib.algorithms",
    "GSPOError": "gspo_rllib.errors",
    "TrajectoryGroup": "gspo_rllib.types",
    "Turn": "gspo_rllib.types",
    "load_config": "gspo_rllib.configs",
}

__all__ = ["GSPO", "ChatSpec", "GSPOConfig", "GSPOError", "TrajectoryGroup", "Turn", "__version__", "load_config"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
