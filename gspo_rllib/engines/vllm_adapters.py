"""vLLM with adapters: the base is loaded once from its folder, and an update is a new adapter beside it.

Every update has an id, a name and a folder of its own. vLLM keeps an adapter whose id it knows whatever is sent under
it, and names its cached keys and values by an adapter's name and folder: so none of another version is ever used, and
requests that are running go on with the adapter they began with.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from vllm.lora.request import LoRARequest

from gspo_rllib.engines.protocol import Engine, EngineSpec, Generation, GenerationRequest
from gspo_rllib.engines.vllm import _VLLM_ERRORS, VLLMEngine
from gspo_rllib.engines.weights import NamedWeights, as_tensor, check_idle
from gspo_rllib.errors import WeightSyncError, described
from gspo_rllib.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gspo_rllib.modules.lora_settings import VLLM_RANKS

_AT_ONCE = 2  # versions in one batch: those that run on, and the newest


def vllm_engine(spec: EngineSpec) -> Engine:
    """The vLLM engine for whole weights or, where the spec has an ``adapter_rank``, for adapters."""
    return VLLMEngine(spec) if spec.adapter_rank is None else VLLMAdapterEngine(spec)


@dataclasses.dataclass(frozen=True, slots=True)
class _Version:
    request: LoRARequest
    version: int


class VLLMAdapterEngine(VLLMEngine):
    """Samples turns with vLLM's own adapters; see ``Engine`` for the contract.

    ``load_weights`` takes the tensors of an adapter under the names of its file, and the bytes of its configuration
    under ``"adapter_config.json"``. Requests that are running keep the adapter they began with.

    Attributes:
        adapter_is_zero: Whether the newest adapter changes nothing, so that what is sampled does not show it.

    Args:
        spec: See ``VLLMEngine``; the base is read from the model's folder.

    Raises:
        EngineError: vLLM cannot start with this model or these options.
        SettingError: A setting or option is illegal.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.adapter_is_zero = False
        self._folders = tempfile.TemporaryDirectory(prefix="gspo_rllib_adapters_")
        self._number = 0
        self._newest: _Version | None = None
        self._used: dict[str, _Version] = {}
        self._kept: list[_Version] = []
        super().__init__(spec)
        # A new version touches none that is at work.
        self.can_update_while_running = True

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request for the newest adapter; see ``Engine.submit``."""
        super().submit(request)
        assert self._newest is not None
        self._used[request.request_id] = self._newest

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forgets unfinished requests; unknown ids are ignored."""
        gone = list(request_ids)
        super().abort(gone)
        for request_id in gone:
            self._used.pop(request_id, None)
        self._drop_unused()

    def load_weights(self, named_weights: NamedWeights, version: int, *, keep_running: bool = False) -> None:
        """Adds an adapter for the requests to come; see the class and ``Engine.load_weights``."""
        engine = self._open()
        if not keep_running:
            check_idle(len(self._unfinished))
        if ADAPTER_CONFIG not in named_weights:
            raise WeightSyncError(
                f"this engine was built for adapters (generation.adapter_sync='swap'), but the update holds "
                f"{len(named_weights)} tensors and no {ADAPTER_CONFIG}. Send an adapter, or use adapter_sync='merged'."
            )
        self._number += 1
        folder = Path(self._folders.name) / str(self._number)
        tensors = {name: as_tensor(array) for name, array in named_weights.items() if name != ADAPTER_CONFIG}
        _write(folder, tensors, bytes(np.asarray(named_weights[ADAPTER_CONFIG])))
        request = LoRARequest(f"version {version}, update {self._number}", self._number, str(folder))
        try:
            with self._eager():
                added = engine.add_lora(request)
        except _VLLM_ERRORS as error:
            shutil.rmtree(folder)
            raise WeightSyncError(
                f"vLLM could not load the adapter: {described(error, 600)}. Use generation.adapter_sync='merged'."
            ) from error
        if not added:
            raise WeightSyncError("vLLM did not take the adapter. Use generation.adapter_sync='merged'.")
        self.adapter_is_zero = not any(t.any() for name, t in tensors.items() if ".lora_B." in name)
        self._newest = _Version(request, version)
        self._kept.append(self._newest)
        self.weights_version = version
        self._drop_unused()

    def close(self) -> None:
        """Stops vLLM, frees the model and its caches, and removes the adapters' folders."""
        super().close()
        self._used.clear()
        self._folders.cleanup()

    def _own_arguments(self, spec: EngineSpec) -> dict[str, Any]:
        assert spec.adapter_rank is not None
        room = next(rank for rank in VLLM_RANKS if rank >= spec.adapter_rank)
        at_once = {"max_loras": _AT_ONCE} if "max_loras" not in spec.options else {}
        return {"load_format": "auto", "enable_lora": True, "max_lora_rank": room, **at_once}

    def _adapter(self) -> LoRARequest:
        assert self._newest is not None
        return self._newest.request

    def _generation(self, output: Any) -> Generation:
        generation = super()._generation(output)
        used = self._used.pop(output.request_id)
        self._drop_unused()
        if used.version == self.weights_version:
            return generation
        versions = np.full(len(generation.token_ids), used.version, dtype=np.int32)
        return dataclasses.replace(generation, token_versions=versions)

    def _drop_unused(self) -> None:
        """Forgets the versions that no request will ask for again; vLLM reads a folder once more after an eviction."""
        needed = {id(version) for version in (*self._used.values(), self._newest)}
        for version in [kept for kept in self._kept if id(kept) not in needed]:
            self._kept.remove(version)
            if self._engine is not None:
                self._engine.remove_lora(version.request.lora_int_id)
            shutil.rmtree(version.request.lora_path)


def _write(folder: Path, tensors: dict[str, Any], config: bytes) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS)
    (folder / ADAPTER_CONFIG).write_bytes(config)
