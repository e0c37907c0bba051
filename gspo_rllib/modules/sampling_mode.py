"""A policy is one distribution: what samples, trains, and is compared with runs in the same mode, evaluation.

Hugging Face models ask ``self.training`` whether to drop activations, skip layers, jitter or sample their routing. A
gradient needs none of that, so they are left in evaluation mode here while gradients flow, whatever their config says.
Two things go by the mode as well: activation checkpointing, which transformers does in training mode only and which is
therefore done in ``recomputation``; and shortcuts for sampling that a gradient cannot pass, which are looked for here
and refused.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.distributed.tensor import DTensor

from gspo_rllib.errors import ModelError
from gspo_rllib.modules.compilation import as_written

_T = TypeVar("_T")

_times_written = operator.attrgetter("_version")
"""How often a tensor was written to in place, as torch's autograd counts it."""

_SAMPLE = 64  # numbers of a frozen parameter


def checked_pass(models: Sequence[torch.nn.Module], forward: Callable[[], _T], *, may_repeat: bool = True) -> _T:
    """Runs a forward pass, and refuses a model whose evaluation mode cannot be trained.

    Args:
        models: In evaluation mode; the first is named in errors.
        forward: The pass; it calls them.
        may_repeat: Whether a part without a gradient may be looked at in a second pass. Where several processes share
            a model's weights, a pass of one alone would wait for ever: such a part is then refused, by design or not.

    Returns:
        What the pass returned.

    Raises:
        ModelError: A part ran without a gradient that has one in training mode, or the models wrote to their weights.
    """
    name = type(models[0]).__name__
    parameters = [named for model in models for named in model.named_parameters()]
    writes = [_written(parameter) for _, parameter in parameters]
    # What watches a pass would be compiled into it.
    with as_written(models), _parts_without_gradient(models) as lost:
        result = forward()
    written = [n for (n, p), count in zip(parameters, writes, strict=True) if _written(p) != count]
    if written:
        raise ModelError(
            f"{name} rewrites its own weights in evaluation mode, {written[0]!r} first, so what is trained would not "
            'be what is saved and sampled. Switch that off in its config.json (RWKV: "rescale_every": 0), or use '
            "another model."
        )
    # Some have no gradient by design, as what selects the keys of sparse attention: that is so in training mode, too.
    lost -= _parts_without_gradient_in_training_mode(models, forward) if lost and may_repeat else set()
    if lost:
        raise ModelError(
            f"{name} runs {min(lost)!r} without a gradient in evaluation mode, the mode a policy samples and is scored "
            "in, so that part would never learn. Where it does so for long inputs only (xLSTM: max_inference_chunksize "
            "in config.json), raise that limit; otherwise use the implementation in transformers (trust_remote_code "
            "False), or another model."
        )
    return result


def _written(parameter: torch.Tensor) -> Any:
    """What changes where a parameter is written to in place: torch's count, or some numbers of a frozen one.

    An adapter takes a frozen parameter away for a pass and puts it back, which torch counts.
    """
    if parameter.requires_grad:
        return _times_written(parameter)
    # Of a share, what is here: others are not asked.
    held: Any = parameter.detach()
    flat = (held.to_local() if isinstance(held, DTensor) else held).reshape(-1)
    # Cloned: memory that numpy has seen cannot be freed when a gathered parameter goes.
    return flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE].clone().float().cpu().numpy().tobytes()


@contextmanager
def _parts_without_gradient(models: Sequence[torch.nn.Module]) -> Iterator[set[str]]:
    """Names of modules with parameters to train that run without a gradient inside the block, if it asks for one."""
    found: set[str] = set()

    def watch(part: str, _part: torch.nn.Module, _args: Any) -> None:
        if not torch.is_grad_enabled():
            found.add(part)

    handles = [
        part.register_forward_pre_hook(functools.partial(watch, name))
        for model in models
        for name, part in model.named_modules()
        if torch.is_grad_enabled() and any(p.requires_grad for p in part.parameters(recurse=False))
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _parts_without_gradient_in_training_mode(models: Sequence[torch.nn.Module], forward: Callable[[], Any]) -> set[str]:
    for model in models:
        model.train()
    try:
        with torch.random.fork_rng(), _parts_without_gradient(models) as found:
            forward()
    except Exception:  # noqa: BLE001  # a model without a training mode: nothing says that it means to lose a part
        return set()
    finally:
        for model in models:
            model.eval()
    return found
