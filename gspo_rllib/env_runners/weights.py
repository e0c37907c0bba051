"""From the state of an RLlib module to the weights an engine loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID

_PREFIX = "model."


def unwrap_module_state(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The Hugging Face ``state_dict`` inside the state of a causal-LM RLModule.

    Args:
        state: ``{module id: {name: array}}`` or ``{name: array}``; the names are Hugging Face's own, or those below
            an attribute called ``model`` beside which the module may keep others (a value head, say).

    Returns:
        Arrays under Hugging Face names.

    Example:
        >>> head, norm = np.zeros(1), np.zeros(2)
        >>> sorted(unwrap_module_state({"model.lm_head.weight": head, "model.model.norm.weight": norm, "v.bias": norm}))
        ['lm_head.weight', 'model.norm.weight']
        >>> sorted(unwrap_module_state({"lm_head.weight": head, "model.norm.weight": norm}))
        ['lm_head.weight', 'model.norm.weight']
    """
    named: Mapping[str, Any] = state.get(DEFAULT_MODULE_ID, state)
    # A Hugging Face causal LM keeps its head outside of ``model.``, so names that all start with it carry the prefix.
    prefixed = all(name.startswith(_PREFIX) for name in named) or any(
        name.startswith((_PREFIX + "model.", _PREFIX + "lm_head.")) for name in named
    )
    if not prefixed:
        return dict(named)
    return {name.removeprefix(_PREFIX): value for name, value in named.items() if name.startswith(_PREFIX)}
