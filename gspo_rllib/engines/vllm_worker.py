"""What runs inside vLLM's workers: replacing the weights of a running model.

vLLM adds ``WeightSyncExtension`` to its worker class, in this process or in its own. The module does not import vllm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from gspo_rllib.errors import WeightSyncError

if hasattr(torch.cpu, "_init_amx"):
    # vLLM's bf16 CPU kernels use AMX tiles; without the kernel's permission the process dies of SIGILL.
    torch.cpu._init_amx()


class WeightSyncExtension:
    """Methods a vLLM worker gains; called by name through ``collective_rpc``."""

    device: torch.device
    model_runner: Any
    reload_weights: Any

    def gspo_load_tensors(self, named_weights: Mapping[str, torch.Tensor]) -> None:
        """Loads weights that live in this process.

        Args:
            named_weights: All weights under the names of a checkpoint file.
        """
        self._gspo_load(named_weights.items())

    def gspo_load_file(self, path: str) -> None:
        """Loads weights that another process wrote.

        Args:
            path: A safetensors file with all weights.
        """
        self._gspo_load(_read(path))

    def _gspo_load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        model = self.model_runner.get_model()
        # A tied head is no parameter of its own, except where the CPU backend keeps a packed copy of it.
        skipped = "lm_head." if _is_tied(model) else None
        expected = {name for name, _ in model.named_parameters() if not skipped or not name.startswith(skipped)}
        loaded = _load_and_report(model, lambda: self.reload_weights(weights_iterator=iter(weights)))
        missing = sorted(_not_among(loaded, expected)) if loaded is not None else []
        if missing:
            raise WeightSyncError(
                f"vLLM found no values for {len(missing)} of its {len(expected)} parameters in the update, e.g. "
                f"{missing[:3]}: its loader for {type(model).__name__} does not know these names. Use "
                "engine='transformers' for this model."
            )
        if self.device.type == "cpu":
            repack_after_reload(model)


def repack_after_reload(model: torch.nn.Module) -> None:
    """Repairs what vLLM's CPU backend forgets when weights are reloaded (0.28 to 0.33; harmless elsewhere).

    Experts are packed for the CPU kernel on the first load only, and a tied head keeps a packed copy of the first
    embedding. Without this the model silently samples from wrong distributions.

    Args:
        model: vLLM's own model, just reloaded.
    """
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(module)
    head: Any = getattr(model, "lm_head", None)
    if _is_tied(model) and hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)


def _not_among(loaded: set[str], expected: set[str]) -> set[str]:
    """Parameters that were not loaded, also where a loader leaves out a module that only wraps its experts (0.26)."""
    return {name for name in expected if name not in loaded and name.replace(".routed_experts.", ".") not in loaded}


def _is_tied(model: torch.nn.Module) -> bool:
    return bool(getattr(model.config, "tie_word_embeddings", False))


def _load_and_report(model: Any, reload: Callable[[], None]) -> set[str] | None:
    """Reloads, and returns the names the model says it loaded; vLLM itself only logs what it did not find."""
    reported: list[set[str] | None] = []
    load = model.load_weights

    def load_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None:
        reported.append(load(weights))
        return reported[-1]

    model.load_weights = load_weights
    try:
        reload()
    finally:
        del model.load_weights
    return reported[-1]


def _read(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            yield name, file.get_tensor(name)
