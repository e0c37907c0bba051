"""A LoRA adapter on a language model: what is trained, what is saved, and the model that it makes when it is merged.

The adapter goes into the model by transformers' own ``add_adapter``: class and base model stay what they are, so all
that scores a model scores this one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from gspo_rllib.errors import ModelError, described
from gspo_rllib.model_files import ADAPTER_BASE, ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gspo_rllib.modules.lora_settings import ALL_LINEAR, LoraSettings, adapter_config
from gspo_rllib.modules.sharding import device_of_shares, share_of, together, whole_state

_NAME = "default"
_SAVED = "base_model.model."  # peft's names begin with it
_SAMPLE = 64  # numbers of each tensor that tell one base from another


class Adapter:
    """A low-rank update of some of a model's matrices; the only parameters that are trained.

    Args:
        model: A freshly loaded model; gains the adapter in place, its own parameters are frozen.
        settings: What to add, or the saved adapter to go on from.
        path: Where the model came from.

    Raises:
        ModelError: peft cannot adapt this model, or the saved adapter belongs to another one.
    """

    def __init__(self, model: PreTrainedModel, settings: LoraSettings, *, path: str) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._model, self._path = model, path
        self._base = _fingerprint(model.state_dict())
        config = _peft_config(settings)
        try:
            model.add_adapter(config, adapter_name=_NAME)
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise ModelError(
                f"{type(model).__name__} cannot be given this adapter: {described(error, 400)}. Choose other targets, "
                "or set rl_module.model_config['lora'] to None to train every weight."
            ) from error
        model.eval()  # peft's layers begin in training mode
        config.base_model_name_or_path = path
        self._config = config
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if settings.adapter is not None:
            self.load(settings.adapter)

    @property
    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        """Looked up every time: sharding a model makes them anew."""
        return {name: self._model.get_parameter(name) for name in self._names}

    def parameters(self) -> list[torch.nn.Parameter]:
        """Those that are trained; without those that no loss reaches."""
        return [parameter for parameter in self._parameters.values() if parameter.requires_grad]

    def check_reached(self) -> None:
        """Refuses an adapter that could learn nothing.

        Raises:
            ModelError: No loss reaches any of its parameters.
        """
        if not self.parameters():
            raise self._without_gradient(list(self._parameters))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around the forward and backward passes of an optimiser step: every layer that ran must have a gradient.

        Raises:
            ModelError: A parameter of one has none; it would never learn, and nothing else would say so.
        """
        ran: set[torch.nn.Module] = set()
        handles = [
            layer.register_forward_pre_hook(lambda module, _: ran.add(module)) for layer in self._layers.values()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        lost = [
            names[id(parameter)]
            for layer in ran
            for parameter in layer.parameters()
            if id(parameter) in names and parameter.requires_grad and parameter.grad is None
        ]
        if lost:
            raise self._without_gradient(sorted(set(lost)))

    def _without_gradient(self, names: Sequence[str]) -> ModelError:
        return ModelError(
            f"{type(self._model).__name__}: {len(names)} of the {len(self._parameters)} parameters of the adapter got "
            f"no gradient, {names[0]!r} for one, so they would never learn. Layers that pass no gradient on do that, "
            "as quantised ones on some devices; load the model from a folder that is not quantised."
        )

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside the block the model is the one it was loaded as, bit by bit."""
        trained = self.parameters()
        self._model.disable_adapters()
        try:
            yield
        finally:
            self._model.enable_adapters()
            for parameter in self._parameters.values():
                parameter.requires_grad_(any(parameter is other for other in trained))

    @torch.no_grad()
    def merged_state(self) -> dict[str, Tensor]:
        """The ``state_dict`` of the model that base and adapter make together, under the base's names.

        What is adapted is a new tensor; all else is the model's own, and what is tied has one tensor under two names.
        """
        state = {
            _base_name(name): tensor.detach()
            for name, tensor in self._model.state_dict().items()
            if name not in self._parameters
        }
        for name, layer in self._layers.items():
            full = _base_name(f"{name}.{getattr(layer, 'parameter_name', 'weight')}")
            state[full] = state[full] + layer.get_delta_weight(_NAME).to(state[full].dtype)
        return state

    def state(self) -> dict[str, Tensor]:
        """The adapter's tensors under the names of its file."""
        return {_saved_name(name): parameter.detach() for name, parameter in self._parameters.items()}

    def config_json(self) -> str:
        """The adapter's configuration as its file holds it."""
        config = {name: sorted(v) if isinstance(v, set) else v for name, v in self._config.to_dict().items()}
        as_saved = {"inference_mode": True, "task_type": "CAUSAL_LM"}
        return json.dumps({**config, **as_saved}, indent=2, sort_keys=True, default=str)

    def write(self, folder: str | Path) -> None:
        """Writes a folder that peft loads, and which model it belongs to."""
        from safetensors.torch import save_file

        target, base = Path(folder), {"path": self._path, "weights": self._base}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in whole_state(self._model, self.state()).items()}
        with together(device_of_shares(self._model)):
            if tensors:  # a sharded model's are in the first process
                save_file(tensors, target / ADAPTER_WEIGHTS, metadata={"format": "pt"})
                (target / ADAPTER_CONFIG).write_text(self.config_json(), encoding="utf-8")
                (target / ADAPTER_BASE).write_text(json.dumps(base), encoding="utf-8")

    @torch.no_grad()
    def load(self, folder: str | Path) -> None:
        """Takes the values of a saved adapter, bit by bit.

        Raises:
            ModelError: It belongs to another model, or has other targets or another rank.
        """
        from safetensors.torch import load_file

        said = adapter_config(folder)
        note = Path(folder) / ADAPTER_BASE
        base = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        if base.get("weights", self._base) != self._base:
            raise ModelError(
                f"the adapter in {folder} was trained on the weights of {base.get('path')!r} as they were then; those "
                f"at {self._path!r} are others, and the two together were never a policy. Set "
                "rl_module.model_config['path'] to the model it was trained on."
            )
        saved = load_file(Path(folder) / ADAPTER_WEIGHTS)
        own = {_saved_name(name): parameter for name, parameter in self._parameters.items()}
        odd = sorted(saved.keys() ^ own.keys()) or [n for n in own if own[n].shape != saved[n].shape]
        scale = {n: said.get(n) or 0 for n in ("r", "lora_alpha", "alpha_pattern", "use_rslora")}
        mine = {n: getattr(self._config, n) or 0 for n in scale}
        if odd or scale != mine:
            difference = f"{odd[0]!r} differs" if odd else f"{scale} there, {mine} here"
            raise ModelError(
                f"the adapter in {folder} is another one than this policy's: {difference}. Use the same rank, alpha "
                "and targets, or start from it with rl_module.model_config['lora'] = {'adapter': FOLDER}."
            )
        for name, parameter in own.items():
            parameter.copy_(share_of(saved[name], parameter))


def num_trained(model: PreTrainedModel, settings: LoraSettings) -> int:
    """How many numbers an adapter has.

    Args:
        model: Without storage; gains the adapter.
        settings: The adapter's.
    """
    model.add_adapter(_peft_config(settings), adapter_name=_NAME)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _peft_config(settings: LoraSettings) -> Any:
    from peft import LoraConfig

    if settings.adapter is not None:
        known = {name: value for name, value in adapter_config(settings.adapter).items() if value is not None}
        # How it was begun no longer matters: its values are read from its file.
        ours = {"lora_dropout": 0.0, "inference_mode": False, "init_lora_weights": True, "eva_config": None}
        return LoraConfig.from_peft_type(**{**known, **ours})
    return LoraConfig(
        r=settings.rank,
        lora_alpha=int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha,
        target_modules=ALL_LINEAR if settings.target_modules is None else settings.target_modules,
        target_parameters=settings.target_parameters,
        lora_dropout=0.0,
    )


def _base_name(name: str) -> str:
    """A tensor's name without the layers that peft puts around it; one that updates two parameters has two of them."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def _saved_name(name: str) -> str:
    return _SAVED + name.replace(f".{_NAME}.", ".")


def _fingerprint(state: Mapping[str, Tensor]) -> str:
    """Tells one model's weights from another's by a few numbers of each tensor; of shares, a collective."""
    digest = hashlib.sha256()
    for name in sorted(state):
        held = state[name].detach()
        flat = (held.full_tensor() if isinstance(held, DTensor) else held).reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE].float().cpu().numpy()
        digest.update(f"{name} {tuple(state[name].shape)}".encode() + sample.tobytes())
    return digest.hexdigest()
