"""Which engine samples where the settings name none: vLLM, except for a small model on a CPU.

The built-in engine starts in a third of vLLM's time there and takes half its memory. How fast it samples against vLLM
falls with the model's size (``benchmarks/engine_choice.py``; the table is in docs/performance.md): both are equal up to
4 million parameters, at 10 million vLLM is 1.2 times faster and has made good its later start after 35,000 tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gspo_rllib.engines.registry import available_engines
from gspo_rllib.errors import ModelError
from gspo_rllib.model_check import without_storage
from gspo_rllib.model_folder import load_model_config, quiet_transformers

SMALL = 5_000_000
"""Parameters up to which the built-in engine is taken on a CPU."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and why it is this one.

    Attributes:
        name: Registered name of the engine.
        why: The reason, in words that follow "because".
        otherwise: Engine to take where this one turns out not to serve the model; None where it was asked for by name.
    """

    name: str
    why: str
    otherwise: str | None = None


def choose(
    model: str, *, device: str, trust_remote_code: bool = False, options: Mapping[str, Any] | None = None
) -> Choice:
    """The engine for a model where nobody named one.

    Args:
        model: Local Hugging Face folder or hub name.
        device: Where it samples, e.g. ``"cpu"``.
        trust_remote_code: Whether the model folder may run its own code.
        options: What the engine is to be given; some of them may be vLLM's alone.

    Raises:
        ModelError: The model's config cannot be read.
    """
    if "vllm" not in available_engines():
        return Choice("transformers", "vLLM is not installed")
    if not device.startswith("cpu"):
        return Choice("vllm", f"it samples on {device}")
    if options:
        return Choice("vllm", "generation.engine_options are vLLM's unless generation.engine names another")
    count = num_parameters(model, trust_remote_code)
    if count is None:
        return Choice("vllm", "the model's size is not known before it is loaded")
    size = f"on a CPU, a model of {count / 1e6:.3g} M parameters"
    if count > SMALL:
        return Choice("vllm", f"{size} is above {SMALL / 1e6:g} M")
    return Choice("transformers", f"{size} is small (up to {SMALL / 1e6:g} M), and it starts sooner", otherwise="vllm")


@functools.lru_cache(maxsize=8)
def num_parameters(model: str, trust_remote_code: bool) -> int | None:
    """How many parameters a model has, a tied one once; no weight is loaded.

    Args:
        model: Local Hugging Face folder or hub name.
        trust_remote_code: Whether the model folder may run its own code.

    Returns:
        The number; None where the model cannot be built from its config.

    Raises:
        ModelError: The model's config cannot be read.
    """
    config = load_model_config(model, trust_remote_code=trust_remote_code)
    try:
        with quiet_transformers():
            built = without_storage(model, config, trust_remote_code=trust_remote_code)
    except ModelError:
        return None
    return sum(int(parameter.numel()) for parameter in built.parameters())
