"""What a model says of a few tokens, by its own forward pass or by any way to score them: log-probs and a gradient.

The gradient is of what goes into the layers, by token, and of the model's vectors (norms, biases): everything that a
wrong mask, position or head would change, at the cost of no tensor of a model's size.

Shapes: see ``columns``; D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gspo_rllib import columns
from gspo_rllib.errors import ModelError

_PREFIX, _BRANCHES, _OTHER = 6, (3, 7), 29
"""Tokens of a prompt, of the two replies that continue it, and of a segment that has nothing to do with them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the sampled tokens of a row are scored with.

    Attributes:
        logp_L: Nats.
        entropy_L: Nats.
        gradients: A sum over both differentiated: [ids, D] by what goes into the layers, by id, and [n] by all vectors.
    """

    logp_L: Tensor
    entropy_L: Tensor
    gradients: tuple[Tensor, Tensor]

    def distance(self, other: Answer) -> Distance:
        """How far another answer to the same question is from this one."""
        pairs = ((self.logp_L, other.logp_L), (self.entropy_L, other.entropy_L))
        nats = max(largest(a - b) for a, b in pairs)
        shares = [
            largest((a - b).norm() / a.norm().clamp_min(torch.finfo(a.dtype).tiny))
            for a, b in zip(self.gradients, other.gradients, strict=True)
            if a.numel() and (a.any() or b.any())
        ]
        return Distance(nats, max(shares, default=0.0))


@dataclass(frozen=True, slots=True)
class Distance:
    """Between two answers.

    Attributes:
        nats: Largest difference of a log-probability or entropy; infinite where one is not finite.
        gradient: Difference of a gradient as a share of its size, the larger of both.
    """

    nats: float
    gradient: float

    def __str__(self) -> str:
        return f"{self.nats:.2g} nats (gradient {100 * self.gradient:.2g} %)"


def largest(difference: Tensor) -> float:
    """Largest absolute value; infinite where one is not finite, as NaN is no small difference."""
    value = float(difference.abs().max())
    return value if value < float("inf") else float("inf")


class Probe:
    """Three short segments of ordinary tokens, two of which start alike.

    Args:
        ids: Ids that a policy samples and that mean nothing special.
        longest: Tokens that no segment may exceed; None for any number.
        device: Where tensors go.
    """

    def __init__(self, ids: list[int], longest: int | None, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        most = max(longest or _OTHER, 4)
        self._shown = min(_PREFIX, most // 3)
        sizes = [self._shown, *(min(size, most - self._shown) for size in _BRANCHES), min(_OTHER, most)]
        drawn = torch.tensor(ids)[torch.randint(len(ids), (sum(sizes),), generator=generator)].to(device)
        prefix, *branches, other = drawn.split(sizes)
        self.segments = [*(torch.cat([prefix, branch]) for branch in branches), other]
        self.packed = self._row(self.segments, [-1, -1, -1], [self._shown] * 3)
        self.shared = self._row([prefix, *branches, other], [-1, 0, 0, -1], [0, 0, 0, self._shown])
        self.known = torch.unique(drawn)
        self.weight_L = torch.rand(len(self.packed[columns.LOSS_TOKEN_IDS]), generator=generator).to(device) + 0.5

    def _row(self, segments: list[Tensor], prefixes: list[int], shown: list[int]) -> dict[str, Any]:
        """A packed row (``columns``) whose segments are sampled but for their first ``shown`` tokens."""
        device = segments[0].device
        lengths = [len(ids) for ids in segments]
        position, predicted_by, sampled, start = [], [], [], 0
        for ids, prefix, skip in zip(segments, prefixes, shown, strict=True):
            cells = torch.arange(start, start + len(ids), device=device)
            position.append(cells - start + (lengths[prefix] if prefix >= 0 else 0))
            if prefix >= 0:  # all of it is sampled; the prefix's last token predicts the first
                predicted_by.append(torch.cat([cells.new_tensor([lengths[prefix] - 1]), cells[:-1]]))
                sampled.append(ids)
            elif skip:
                predicted_by.append(cells[skip - 1 : -1])
                sampled.append(ids[skip:])
            start += len(ids)
        row = {
            columns.TOKEN_IDS: torch.cat(segments),
            columns.POSITION_IDS: torch.cat(position),
            columns.SEGMENT_LENGTHS: lengths,
            columns.LOSS_POSITIONS: torch.cat(predicted_by),
            columns.LOSS_TOKEN_IDS: torch.cat(sampled),
        }
        return row | ({columns.SEGMENT_PREFIXES: prefixes} if max(prefixes) >= 0 else {})

    @property
    def longest(self) -> Tensor:
        """Ids of the longest segment."""
        ids_T: Tensor = self.segments[-1]
        return ids_T

    @property
    def shortest(self) -> Tensor:
        """A few ids."""
        ids_T: Tensor = self.longest[:4]
        return ids_T

    def own_answer(self, model: PreTrainedModel, temperature: float) -> Answer:
        """The model's: its own forward pass and attention, all logits, every segment alone."""
        return self.answer(model, lambda: self._own_scores(model, temperature))

    def _own_scores(self, model: PreTrainedModel, temperature: float) -> tuple[Tensor, Tensor]:
        logp, entropy = [], []
        for ids in self.segments:
            logp_TV = (own_logits(model, ids)[self._shown - 1 : -1].float() / temperature).log_softmax(-1)
            logp.append(logp_TV.gather(1, ids[self._shown :, None]).squeeze(1))
            entropy.append(-(logp_TV.exp() * logp_TV).sum(-1))
        return torch.cat(logp), torch.cat(entropy)

    def answer(self, model: PreTrainedModel, scores: Callable[[], tuple[Tensor, Tensor]]) -> Answer:
        """Of any function that calls the model and returns ``(logp_L, entropy_L)`` of a row of this probe."""
        with _leaves(model) as (inputs, vectors), torch.enable_grad():
            logp_L, entropy_L = scores()
            loss = (self.weight_L * logp_L).sum() + 0.1 * entropy_L.sum()
            wanted = [leaf for _, leaf in inputs] + vectors
            found = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
        of_inputs = zip(inputs, found[: len(inputs)], strict=True)
        by_id = [self._by_id(ids, grad) for (ids, _), grad in of_inputs if grad is not None]
        of_vectors = [
            (torch.zeros_like(vector) if grad is None else grad).flatten()
            for vector, grad in zip(vectors, found[len(inputs) :], strict=True)
        ]
        none = torch.zeros(0)
        gradients = (sum(by_id, torch.zeros(())) if by_id else none, torch.cat(of_vectors) if of_vectors else none)
        return Answer(logp_L.detach(), entropy_L.detach(), gradients)

    @torch.no_grad()
    def rounding(self, model: PreTrainedModel) -> float:
        """Nats by which a log-probability moves with the last digit of what goes into the layers."""
        generator = torch.Generator().manual_seed(0)

        def shake(_module: Any, _args: Any, output: Tensor) -> Tensor:
            noise = torch.randn(output.shape, generator=generator).to(output)
            return output * (1 + torch.finfo(output.dtype).eps * noise)

        still = own_logits(model, self.longest).float().log_softmax(-1)
        handle = model.get_input_embeddings().register_forward_hook(shake)
        try:
            moved = own_logits(model, self.longest).float().log_softmax(-1)
        finally:
            handle.remove()
        return largest(moved - still)

    def _by_id(self, ids: Tensor, gradient: Tensor) -> Tensor:
        """[ids, D] sums over the cells of each id; those of padding are left out."""
        flat, rows = ids.flatten(), gradient.reshape(ids.numel(), -1)
        place = torch.searchsorted(self.known, flat).clamp_max(len(self.known) - 1)
        rows = torch.where((self.known[place] == flat)[:, None], rows, 0.0)
        return rows.new_zeros(len(self.known), rows.shape[1]).index_add_(0, place, rows)


def own_logits(model: PreTrainedModel, ids_T: Tensor) -> Tensor:
    """[T, V] of one segment, by the model's own forward pass."""
    logits_TV: Tensor = model(input_ids=ids_T[None], use_cache=False).logits[0]
    return logits_TV


@contextmanager
def _leaves(model: PreTrainedModel) -> Iterator[tuple[list[tuple[Tensor, Tensor]], list[torch.nn.Parameter]]]:
    """Where gradients end inside the block: ``(ids, embedded ids)`` of every call, and the model's vectors."""
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    inputs: list[tuple[Tensor, Tensor]] = []

    def leaf(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        ids = args[0] if args else next(iter(kwargs.values()))
        cut = output.detach().requires_grad_()
        inputs.append((ids, cut))
        return cut.clone()  # some write to it

    handle = model.get_input_embeddings().register_forward_hook(leaf, with_kwargs=True)
    try:
        for parameter, trains in wanted:
            parameter.requires_grad_(trains and parameter.dim() < 2)
        yield inputs, [parameter for parameter, trains in wanted if trains and parameter.dim() < 2]
    finally:
        handle.remove()
        for parameter, trains in wanted:
            parameter.requires_grad_(trains)


def ordinary_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Ids that are in the vocabulary and stand for nothing but text: no image, no padding, no end."""
    special = set(tokenizer.all_special_ids) | set(_special_ids(model.config.to_dict()))
    size = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    ids = [i for i in range(size) if i not in special]
    if len(ids) < 2:
        raise ModelError(f"{type(model).__name__} has no vocabulary: {size} tokens, all but {len(ids)} of them special")
    return ids


def _special_ids(config: dict[str, Any]) -> Iterator[int]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _special_ids(value)
        elif str(name).endswith(("token_id", "token_index")) and isinstance(value, int):
            yield value
