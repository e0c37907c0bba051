"""What runs inside vLLM's workers: replacing the weights of a running model.

vLLM adds ``WeightSyncExtension`` to its worker class, in this process or in its own. The module imports vLLM only where
it runs inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gspo_rllib.engines.held_tensors import HeldTensors, lost
from gspo_rllib.engines.in_place import DerivedState, Places, Watch
from gspo_rllib.errors import WeightSyncError

if hasattr(torch.cpu, "_init_amx"):
    # vLLM's bf16 CPU kernels use AMX tiles; without the kernel's permission the process dies of SIGILL.
    torch.cpu._init_amx()

_HEAD_BIAS = "lm_head.bias"


class WeightSyncExtension:
    """Methods a vLLM worker gains; called by name through ``collective_rpc``."""

    device: torch.device
    model_runner: Any
    reload_weights: Any

    _gspo_sent: HeldTensors | None = None
    _gspo_loadable: list[str]
    _gspo_direct = False
    """Whether the model's loader writes some parameters directly; see ``_DirectWrites``."""
    _gspo_places: Places | None = None
    _gspo_learns_places = False
    """Whether the next update is watched to learn where its parts belong; see ``in_place``."""

    def gspo_load_tensors(self, named_weights: Mapping[str, torch.Tensor]) -> list[str]:
        """Loads weights that live in this process.

        Args:
            named_weights: All weights under the names of a checkpoint file.

        Returns:
            Names of parameters that the first load did not change; none for later loads.
        """
        return self._gspo_load(named_weights.items, named_weights)

    def gspo_load_file(self, path: str) -> list[str]:
        """Loads weights that another process wrote.

        Args:
            path: A safetensors file with all weights.

        Returns:
            Names of parameters that the first load did not change; none for later loads.
        """
        return self._gspo_load(lambda: _read(path))

    def _gspo_load(
        self,
        weights: Callable[[], Iterable[tuple[str, torch.Tensor]]],
        here: Mapping[str, torch.Tensor] | None = None,
    ) -> list[str]:
        model = self.model_runner.get_model()
        dtype = next(model.parameters()).dtype
        first = self._gspo_sent is None
        derived = DerivedState(model) if first and self.device.type == "cpu" else None
        sent = HeldTensors(weights(), dtype=dtype)
        before = _held(model, dtype)
        if here is None or not self._gspo_in_place(model, here):
            self._gspo_reload(model, weights)
        moved = before.moved(_held(model, dtype))
        if first and 0.0 in moved.values() and not self._gspo_direct:
            self._gspo_direct = True
            self._gspo_reload(model, weights)
            moved = before.moved(_held(model, dtype))
        previous, self._gspo_sent = self._gspo_sent, sent
        if derived is not None and here is not None:
            self._gspo_learns_places = not (self._gspo_direct or _has_head_bias(here) or derived.changed(model))
        if previous is None:
            self._gspo_loadable = [name for name, share in moved.items() if share]
            return [name for name, share in moved.items() if not share]
        kept = lost(previous.moved(sent), moved, self._gspo_loadable)
        if kept:
            raise WeightSyncError(
                f"the update did not change {len(kept)} of the {len(self._gspo_loadable)} tensors that earlier updates "
                f"of {type(model).__name__} changed, e.g. {kept[:3]}, although what was sent has changed."
            )
        return []

    def _gspo_in_place(self, model: Any, sent: Mapping[str, torch.Tensor]) -> bool:
        """Writes an update straight into the model, or learns how to; returns whether the model holds it."""
        if self._gspo_places is not None and self._gspo_places.fit(sent):
            self._gspo_places.write(sent)
            return True
        if not self._gspo_learns_places:
            return False
        self._gspo_learns_places = False
        with Watch(model, sent) as watch:
            self._gspo_reload(model, sent.items)
        self._gspo_places = Places.learnt(model, sent, watch.fillings)
        return True

    def _gspo_reload(self, model: Any, weights: Callable[[], Iterable[tuple[str, torch.Tensor]]]) -> None:
        head_bias: list[torch.Tensor] = []

        def noting_head_bias() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights():
                if name.endswith(_HEAD_BIAS):
                    head_bias.append(tensor)
                yield name, tensor

        with _DirectWrites(model) if self._gspo_direct else nullcontext():
            loaded, expected = _load_and_report(model, lambda: self.reload_weights(weights_iterator=noting_head_bias()))
        missing = sorted(_not_among(loaded, expected)) if loaded is not None else []
        if missing:
            raise WeightSyncError(
                f"vLLM found no values for {len(missing)} of its {len(expected)} parameters in the update, e.g. "
                f"{missing[:3]}: its loader for {type(model).__name__} does not know these names."
            )
        if head_bias:
            with self.device:
                _restore_head_bias(model, head_bias[0])
        if self.device.type == "cpu":
            repack_after_reload(model)


def _has_head_bias(names: Iterable[str]) -> bool:
    return any(name.endswith(_HEAD_BIAS) for name in names)


def _restore_head_bias(model: Any, bias: torch.Tensor) -> None:
    """Puts the bias of the head in its place: vLLM registers it while it loads, and its reload removes it again."""
    head: Any = getattr(model, "lm_head", None)
    if hasattr(head, "_register_bias"):
        head._register_bias()
        head.bias.weight_loader(head.bias, bias)
        head.quant_method.process_weights_after_loading(head)


class _DirectWrites(TorchDispatchMode):
    """Keeps what a model's loader writes into its parameters itself, instead of through their ``weight_loader``.

    vLLM puts parameters without storage in the place of a layer's while it is reloaded, and fills them when all calls
    of ``weight_loader`` have come in; a direct write is to nothing. Inside the block, it is to storage.

    Args:
        model: vLLM's own model, about to be reloaded.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self._counting = False  # a weight_loader tries on nothing how much it would load
        self._places: dict[int, tuple[torch.nn.Module, str]] = {}
        self._filled: dict[int, torch.nn.Parameter] = {}

    def __enter__(self) -> _DirectWrites:
        from vllm.model_executor.model_loader.reload import layerwise

        self._count = layerwise.get_numel_loaded
        layerwise.get_numel_loaded = self._counted
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        from vllm.model_executor.model_loader.reload import layerwise

        super().__exit__(*error)  # type: ignore[no-untyped-call]
        layerwise.get_numel_loaded = self._count

    def _counted(self, *args: Any) -> Any:
        self._counting = True
        try:
            return self._count(*args)
        finally:
            self._counting = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        writes = func is torch.ops.aten.copy_.default and not self._counting
        if writes and args[0].is_meta and not args[1].is_meta:
            self._keep(*args[:2])
        return func(*args, **(kwargs or {}))

    def _keep(self, target: torch.Tensor, source: torch.Tensor) -> None:
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        storage = target.untyped_storage()._cdata
        if storage not in self._places:
            self._places = {
                parameter.untyped_storage()._cdata: (layer, name)
                for layer in self._model.modules()
                for name, parameter in layer.named_parameters(recurse=False)
                if parameter.is_meta
            }
        if storage not in self._places:
            return
        layer, name = self._places[storage]
        if storage not in self._filled:
            empty = layer.get_parameter(name)
            real = torch.empty_strided(empty.shape, empty.stride(), dtype=empty.dtype, device=source.device)
            parameter = torch.nn.Parameter(real, requires_grad=False)
            parameter.__dict__.update(empty.__dict__)
            self._filled[storage] = parameter
            setattr(layer, name, parameter)
        whole = self._filled[storage].data
        whole.as_strided(target.size(), target.stride(), target.storage_offset()).copy_(source)
        # Less than all of it: a layer is then completed at the end, when nothing more can come.
        get_layerwise_info(layer).load_numel += target.numel() / 2


def _held(model: torch.nn.Module, dtype: torch.dtype) -> HeldTensors:
    """The model's parameters as they are; on a CPU most are packed for its kernels, where nobody can read them."""
    packed = {
        name: module.cpu_linear
        for name, module in model.named_modules()
        if callable(getattr(module, "cpu_linear", None))
    }
    return HeldTensors(model.named_parameters(), dtype=dtype, packed=packed)


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


def _load_and_report(model: Any, reload: Callable[[], None]) -> tuple[set[str] | None, set[str]]:
    """Reloads, and returns the names the model says it loaded and those that were there to be loaded.

    vLLM itself only logs what it did not find. What it derives from loaded weights afterwards, as the absorbed
    projections of latent attention, is not there while it loads.
    """
    reported: list[tuple[set[str] | None, set[str]]] = []
    load = model.load_weights
    # A tied head is no parameter of its own, except where the CPU backend keeps a packed copy of it.
    skipped: tuple[str, ...] = ("lm_head.",) if _is_tied(model) else ()

    def load_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None:
        expected = {name for name, _ in model.named_parameters() if not name.startswith(skipped)}
        reported.append((load(weights), expected))
        return reported[-1][0]

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
