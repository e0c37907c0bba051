"""From an RLlib module, or its state, to the weights an engine loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI

_PREFIX = "model."


def inference_state(module: Any, *, copy: bool) -> dict[str, np.ndarray]:
    """The weights of a causal-LM RLModule that sampling needs.

    Args:
        module: An RLModule for torch; what it calls non-inference attributes is left out.
        copy: Whether the arrays are copies. Those of a module on the CPU otherwise change when it is trained.

    Returns:
        Arrays under Hugging Face names, float32 where they are of floating point. A tensor under two names, such as a
        tied head, is one array under both: it is copied, sent and compared once.
    """
    left_out = module.get_non_inference_attributes() if isinstance(module, InferenceOnlyAPI) else []
    state = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not any(name == attribute or name.startswith(f"{attribute}.") for attribute in left_out)
    }
    arrays: dict[tuple[Any, ...], np.ndarray] = {}
    named: dict[str, np.ndarray] = {}
    for name, tensor in unwrap_module_state(state).items():
        where = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if where not in arrays:
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            arrays[where] = tensor.detach().to("cpu", dtype, copy=copy).numpy()
        named[name] = arrays[where]
    return named


def unwrap_module_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The Hugging Face ``state_dict`` inside the state of a causal-LM RLModule.

    Args:
        state: ``{module id: {name: array}}`` or ``{name: array}``; the names are Hugging Face's own, or those below
            an attribute called ``model`` beside which the module may keep others (a value head, say).

    Returns:
        The same values under Hugging Face names.

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
