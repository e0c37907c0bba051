"""In which precision a policy is sampled, trained and sent: one setting, and the settings for one side alone.

``rl_module(model_config={"precision": "bfloat16"})`` is read by engines, learners and weight syncs. bfloat16 is then
what they multiply in; the learner's weights, gradients and optimiser state stay float32, as do softmax and loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRECISIONS = ("float32", "bfloat16")


def learner_dtype(model_config: Mapping[str, Any]) -> str:
    """What the learner's layers multiply in.

    Args:
        model_config: What ``rl_module`` was given; settings may be left out.

    Example:
        >>> learner_dtype({}), learner_dtype({"precision": "bfloat16"}), learner_dtype({"autocast_dtype": "bfloat16"})
        ('float32', 'bfloat16', 'bfloat16')
    """
    dtype: str = model_config.get("autocast_dtype") or model_config.get("precision") or PRECISIONS[0]
    return dtype


def engine_dtype(settings: Any, model_config: Mapping[str, Any]) -> str:
    """What an engine's weights, activations and cache are.

    Args:
        settings: Generation settings, or a config, which has them as attributes.
        model_config: What ``rl_module`` was given.
    """
    dtype: str = getattr(settings, "engine_dtype", None) or model_config.get("precision") or PRECISIONS[0]
    return dtype


def sync_dtype(config: Any, model_config: Mapping[str, Any]) -> str:
    """What matrices are sent to engines in: what all of them hold, unless the settings say otherwise.

    Args:
        config: Generation settings, or a config; one may give its evaluation an engine of another precision.
        model_config: What ``rl_module`` was given.
    """
    overrides = getattr(config, "evaluation_config", None)
    evaluated = overrides.get("engine_dtype") if isinstance(overrides, Mapping) else None
    own = engine_dtype(config, model_config)
    asked: str | None = getattr(config, "sync_dtype", None)
    return asked or (PRECISIONS[0] if PRECISIONS[0] in (own, evaluated) else own)


def rounds(config: Any, model_config: Mapping[str, Any]) -> bool:
    """Whether engine and learner are further apart than float32 is from itself."""
    used = learner_dtype(model_config), engine_dtype(config, model_config), sync_dtype(config, model_config)
    return any(dtype != PRECISIONS[0] for dtype in used)
