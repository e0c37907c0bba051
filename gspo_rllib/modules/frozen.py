"""Which parameters the loss can reach: those it never reaches are frozen before anything waits for their gradient.

A multimodal model that is trained on text keeps its vision tower: loaded, saved and served, but never at work.
``DistributedDataParallel`` waits for the gradient of every parameter that asks for one, so such a tower must not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gspo_rllib import columns
from gspo_rllib.modules.sharding import at_work

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Reach:
    """How far the loss of a module reaches.

    Attributes:
        frozen: Names of the parameters that no loss reaches; they no longer ask for a gradient.
        may_miss: Whether a pass may leave a parameter that is trained without a gradient, as an expert without a token.
    """

    frozen: tuple[str, ...]
    may_miss: bool


def freeze_unreached(
    module: torch.nn.Module,
    models: Sequence[PreTrainedModel],
    score: Callable[[dict[str, Any]], dict[str, Tensor]],
    *,
    attention: str | None = None,
) -> Reach:
    """Freezes what a loss never reaches: parts beside the layers, such as the tower of another kind of input.

    Looked up in the graph of a pass over one token, which costs little more than reading the weights; processes that
    share a module all make it. What that misses inside a list of layers of which it reaches others stays trainable,
    because another input may well reach it: an expert, a layer for images only, a part that is skipped for short
    inputs. What is frozen is logged.

    Args:
        module: The module whose parameters are looked at, and frozen in place.
        models: The Hugging Face models in it; the first is named in the log.
        score: The module's forward pass on a packed row; what it returns is all that a loss can be made of.
        attention: transformers' name of the attention that was chosen for them, if it is not this project's.

    Returns:
        What was found; the same for the same weights, on every learner.
    """
    with torch.enable_grad(), _plain_attention(models, instead_of=attention), at_work(module, models) as names:
        scores = score(_one_token(next(module.parameters()).device))
    reached = {names[key] for key in _reached(scores.values()) if key in names}
    missed = [name for name, p in module.named_parameters() if p.requires_grad and name not in reached]
    lists_at_work = tuple(
        f"{name}."
        for name, part in module.named_modules()
        if isinstance(part, (torch.nn.ModuleList, torch.nn.ModuleDict))
        and any(of_reached.startswith(f"{name}.") for of_reached in reached)
    )
    frozen = [name for name in missed if not name.startswith(lists_at_work)]
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    if frozen and not (torch.distributed.is_initialized() and torch.distributed.get_rank()):
        logger.warning(
            "%s: text does not reach %s, so %.3g of %.3g parameters are frozen: they are sampled with and saved as "
            "they came.",
            type(models[0]).__name__,
            ", ".join(_largest_parts(module, frozen)),
            float(sum(module.get_parameter(name).numel() for name in frozen)),
            float(sum(p.numel() for p in module.parameters())),
        )
    return Reach(tuple(frozen), may_miss=len(frozen) < len(missed))


def _one_token(device: torch.device) -> dict[str, Any]:
    """A packed row of one token, which is also the one whose score is asked for."""
    zero = torch.zeros(1, dtype=torch.long, device=device)
    names = (columns.TOKEN_IDS, columns.POSITION_IDS, columns.LOSS_POSITIONS, columns.LOSS_TOKEN_IDS)
    return {**dict.fromkeys(names, zero), columns.SEGMENT_LENGTHS: [1]}


@contextlib.contextmanager
def _plain_attention(models: Sequence[PreTrainedModel], instead_of: str | None) -> Iterator[None]:
    """Attention that runs where models are built, on a CPU, in place of a chosen one, which may not."""
    for model in models if instead_of else ():
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for model in models if instead_of else ():
            model.set_attn_implementation(instead_of)


def _reached(outputs: Iterable[Tensor]) -> set[int]:
    """Ids of the parameters in the graph of some tensors."""
    found: set[int] = set()
    pending = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        following = {later for later, _ in node.next_functions if later is not None} - seen
        seen |= following
        pending += following
    return found


def _largest_parts(module: torch.nn.Module, frozen: Sequence[str]) -> Iterator[str]:
    """The frozen parameters, named by the outermost modules that are frozen as a whole."""
    names = set(frozen)
    told: tuple[str, ...] = ()
    whole = [
        part
        for part, submodule in module.named_modules()
        if part and (own := [f"{part}.{name}" for name, _ in submodule.named_parameters()]) and names.issuperset(own)
    ]
    for part in [*whole, *frozen]:
        if not part.startswith(told):
            told = (*told, f"{part}.")
            yield part.removeprefix("model.")
