"""A policy is one distribution: what samples, trains, and is compared with runs in the same mode, evaluation.

Hugging Face models ask ``self.training`` whether to drop activations, skip layers, jitter or sample their routing. A
gradient needs none of that, so they are left in evaluation mode here while gradients flow, whatever their config says.
Two things go by the mode as well: activation checkpointing, which transformers does in training mode only and which is
therefore done here; and shortcuts for sampling that a gradient cannot pass, which are looked for and refused.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from gspo_rllib.errors import ModelError, SettingError

_times_written = operator.attrgetter("_version")
"""How often a tensor was written to in place, as torch's autograd counts it."""


def recompute_activations(model: PreTrainedModel) -> None:
    """Lets every layer of a model forget its activations in the forward pass and compute them again in the backward.

    Args:
        model: Changed in place; its copies must be made before.

    Raises:
        SettingError: The model does not say which its layers are.
    """
    layers = list(_layers(model))
    if not layers:
        raise SettingError(
            f"rl_module.model_config['activation_checkpointing'] is True, but {type(model).__name__} does not say "
            "which its layers are (neither GradientCheckpointingLayer nor _no_split_modules); set it to False."
        )
    for layer in layers:
        layer.forward = functools.partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _layers(model: PreTrainedModel) -> Iterator[torch.nn.Module]:
    """The outermost modules that transformers would checkpoint; where there are none, those it would not split."""
    unsplit = getattr(model, "_no_split_modules", None) or ()
    found = list(_outermost(model, lambda module: isinstance(module, GradientCheckpointingLayer)))
    yield from found or _outermost(model, lambda module: type(module).__name__ in unsplit)


def _outermost(module: torch.nn.Module, wanted: Callable[[torch.nn.Module], bool]) -> Iterator[torch.nn.Module]:
    for child in module.children():
        if wanted(child):
            yield child
        else:
            yield from _outermost(child, wanted)


@contextmanager
def checked_pass(module: torch.nn.Module, *, name: str) -> Iterator[None]:
    """Refuses a model whose evaluation mode cannot be trained, by watching one forward pass of it.

    Args:
        module: What runs inside the ``with`` block.
        name: What to call it in errors.

    Raises:
        ModelError: A part of it ran without a gradient where one was asked for, or it wrote to its own weights.
    """
    without_gradient: list[str] = []

    def watch(part: str, _part: torch.nn.Module, _args: Any) -> None:
        if not torch.is_grad_enabled():
            without_gradient.append(part)

    handles = [
        part.register_forward_pre_hook(functools.partial(watch, part_name))
        for part_name, part in module.named_modules()
        if torch.is_grad_enabled() and any(p.requires_grad for p in part.parameters(recurse=False))
    ]
    writes = {parameter: _times_written(parameter) for parameter in module.parameters()}
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if without_gradient:
        raise ModelError(
            f"{name} runs {without_gradient[0]!r} without a gradient in evaluation mode, the mode a policy samples and "
            "is scored in, so that part would never learn. Where it does so for long inputs only (xLSTM: "
            "max_inference_chunksize in config.json), raise that limit; otherwise use the implementation in "
            "transformers (trust_remote_code False), or another model."
        )
    written = [n for n, parameter in module.named_parameters() if _times_written(parameter) != writes[parameter]]
    if written:
        raise ModelError(
            f"{name} rewrites its own weights in evaluation mode, {written[0]!r} first, so what is trained would not "
            'be what is saved and sampled. Switch that off in its config.json (RWKV: "rescale_every": 0), or use '
            "another model."
        )
