"""What engines need of a policy: its weights under Hugging Face names, or its adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI

from gspo_rllib.bfloat16_arrays import to_array
from gspo_rllib.model_files import ADAPTER_CONFIG
from gspo_rllib.modules.sharding import is_sharded
from gspo_rllib.sent_dtypes import Wire, each_once

_PREFIX = "model."


def adapter_state(module: Any) -> dict[str, np.ndarray]:
    """Copies of a policy's adapter, under the names of its file, and the bytes of its configuration.

    Args:
        module: A causal-LM RLModule with an adapter.
    """
    named = {name: tensor.to("cpu", copy=True).numpy() for name, tensor in module.adapter.state().items()}
    return {**named, ADAPTER_CONFIG: adapter_config(module)}


def adapter_config(module: Any) -> np.ndarray:
    """The bytes of an adapter's configuration.

    Args:
        module: A causal-LM RLModule with an adapter.
    """
    return np.frombuffer(module.adapter.config_json().encode(), np.uint8)


def inference_state(module: Any, *, copy: bool, wire: Wire | None = None) -> dict[str, np.ndarray]:
    """The weights of a causal-LM RLModule that sampling needs.

    Args:
        module: An RLModule for torch; what it lists as non-inference attributes is left out.
        copy: Whether the arrays are copies. Those of a module on the CPU otherwise change when it is trained.
        wire: What they are sent in; float32 without.

    Returns:
        Arrays under Hugging Face names. A tensor under two names, such as a tied head, is one array under both: it is
        copied, sent and compared once.
    """
    sent = wire or Wire(torch.float32)

    def array(name: str, tensor: torch.Tensor) -> np.ndarray:
        here = tensor.to("cpu", sent.dtype_of(name, tensor))
        # By numpy, which asks for huge pages: most of a copy's time goes into touching new memory.
        return here.numpy().copy(order="K") if copy and here is tensor else to_array(here)

    return each_once(inference_tensors(module), array)


def inference_tensors(module: Any) -> dict[str, torch.Tensor]:
    """The tensors of a causal-LM RLModule that sampling needs, as they are; an adapter merged into what is below it.

    Args:
        module: An RLModule for torch.
    """
    adapter = getattr(module, "adapter", None)
    if adapter is not None:
        merged: dict[str, torch.Tensor] = adapter.merged_state()
        return merged
    left_out = module.get_non_inference_attributes() if isinstance(module, InferenceOnlyAPI) else []
    # Shares of a tensor under two names are told from those of another one by being the same object.
    parameters = dict(module.named_parameters(remove_duplicate=False)) if is_sharded(module) else {}
    state = {
        name: parameters[name] if name in parameters else tensor.detach()
        for name, tensor in module.state_dict().items()
        if not any(name == attribute or name.startswith(f"{attribute}.") for attribute in left_out)
    }
    return unwrap_module_state(state)


def unwrap_module_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The Hugging Face ``state_dict`` inside the state of a causal-LM RLModule.

    Args:
        state: ``{module id: {name: array}}`` or ``{name: array}``; the names are Hugging Face's own, or those below
            an attribute called ``model`` beside which the module may keep others (a value head, say).

    Returns:
        The same values under Hugging Face names, as arrays: of a tensor without dimensions RLlib makes a Python number.

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
        return {name: _as_array(value) for name, value in named.items()}
    return {name.removeprefix(_PREFIX): _as_array(value) for name, value in named.items() if name.startswith(_PREFIX)}


def _as_array(value: Any) -> Any:
    return np.asarray(value, np.float32 if isinstance(value, float) else None) if np.isscalar(value) else value
