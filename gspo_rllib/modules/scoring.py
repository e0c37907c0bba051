"""How a row of tokens is scored: the rows a model is called with, and where its head runs.

All ways compute the same for a model that keeps to what they take for granted; ``exactness`` finds out which do.

Shapes: see ``columns``; D hidden, V vocabulary · S rows · T columns of one call's input.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gspo_rllib import columns
from gspo_rllib.errors import ModelError
from gspo_rllib.modules.attention import PACKED
from gspo_rllib.modules.hidden_states import hidden_states, hidden_states_of_call, trunk_of
from gspo_rllib.ops import token_logprobs


class Rows(enum.Enum):
    """What one forward pass holds, fastest first."""

    PACKED = "packed rows"
    PADDED = "padded rows"
    SINGLE = "one segment per forward pass"


class Head(enum.Enum):
    """How hidden states become log-probabilities, least memory first."""

    SPLIT = "the head in blocks, on sampled tokens"
    KEPT = "the model's own logits of sampled tokens"
    ALL = "the model's own logits of all tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """One way to score rows.

    Attributes:
        rows: What a forward pass holds.
        head: Where log-probabilities come from.
        attention: transformers' name of the attention; None for the one it takes when told nothing.
        shares_prefixes: Whether trajectories of a group may have their prompt in a packed row once.
        window: Longest segment, prompt included, that may share: the model attends no further back; None for any.
        max_tokens: Longest segment whose log-probabilities do not depend on how long it will become; None where none
            was found that do.
    """

    rows: Rows
    head: Head
    attention: str | None = None
    shares_prefixes: bool = False
    window: int | None = None
    max_tokens: int | None = None

    @property
    def rows_level(self) -> int:
        """What a forward pass holds, as a number: 0 packed rows that share prompts, 1 packed, 2 padded, 3 single."""
        return list(Rows).index(self.rows) + (not self.shares_prefixes)

    @property
    def head_level(self) -> int:
        """Where log-probabilities come from, as a number: 0 the head in blocks, 1 and 2 the model's own logits."""
        return list(Head).index(self.head)

    def __str__(self) -> str:
        shared = ", shared prompts once" if self.shares_prefixes else ""
        attention = f", attention {self.attention!r}" if self.attention not in (None, PACKED) else ""
        longest = "" if self.max_tokens is None else f", up to {self.max_tokens} tokens"
        return f"{self.rows.value}{shared}, {self.head.value}{attention}{longest}"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a model.

    Attributes:
        inputs: Keyword arguments, tensors of [S, T].
        cell_L: int64, which cells of the flattened [S · T] output predict a sampled token, in the row's order.
    """

    inputs: dict[str, Any]
    cell_L: Tensor


def check_length(batch: dict[str, Any], scoring: Scoring, name: str) -> None:
    """Refuses a row with a segment whose length changes the log-probabilities of its first tokens.

    Args:
        batch: One packed row; see ``columns``.
        scoring: The way it is to be scored.
        name: What the error calls the model.

    Raises:
        ModelError: A segment, its prefix included, is longer than ``max_tokens``.
    """
    if scoring.max_tokens is None:
        return
    lengths = batch[columns.SEGMENT_LENGTHS]
    prefixes = batch.get(columns.SEGMENT_PREFIXES, [-1] * len(lengths))
    longest = max(n + (lengths[prefix] if prefix >= 0 else 0) for n, prefix in zip(lengths, prefixes, strict=True))
    if longest > scoring.max_tokens:
        raise ModelError(
            f"{name} scores a token by how long its context will become: at more than {scoring.max_tokens} tokens its "
            f"positions are others, for the tokens before, too, and a trajectory has {longest}. Sample with "
            f"generation(max_model_len={scoring.max_tokens})."
        )


def num_cells(batch: dict[str, Any], scoring: Scoring) -> int:
    """Tokens that a model is called with to score a packed row, padding included."""
    lengths = batch[columns.SEGMENT_LENGTHS]
    return len(lengths) * max(lengths) if scoring.rows is Rows.PADDED else len(batch[columns.TOKEN_IDS])


def short_row(batch: dict[str, Any], tokens: int) -> dict[str, Any]:
    """A row of the first so many tokens of the longest segment, all but one of them sampled; see ``columns``."""
    lengths = batch[columns.SEGMENT_LENGTHS]
    longest = lengths.index(max(lengths))
    start = sum(lengths[:longest])
    ids = batch[columns.TOKEN_IDS][start : start + tokens]
    position = torch.arange(tokens, device=ids.device)
    return {
        columns.TOKEN_IDS: ids,
        columns.POSITION_IDS: position,
        columns.SEGMENT_LENGTHS: [tokens],
        columns.LOSS_POSITIONS: position[:-1],
        columns.LOSS_TOKEN_IDS: ids[1:],
    }


def calls(batch: dict[str, Any], scoring: Scoring) -> list[Call]:
    """What a model is called with to score a packed row; its parts are in the row's order of sampled tokens."""
    if scoring.rows is Rows.PACKED:
        return [_packed(batch, scoring)]
    return [_padded(batch)] if scoring.rows is Rows.PADDED else list(_single(batch))


def _packed(batch: dict[str, Any], scoring: Scoring) -> Call:
    inputs = {
        "input_ids": batch[columns.TOKEN_IDS][None],
        "position_ids": batch[columns.POSITION_IDS][None],
        "use_cache": False,
    }
    if scoring.attention == PACKED:
        inputs["segment_lengths"] = batch[columns.SEGMENT_LENGTHS]
    if columns.SEGMENT_PREFIXES in batch:
        inputs["segment_prefixes"] = batch[columns.SEGMENT_PREFIXES]
    return Call(inputs, batch[columns.LOSS_POSITIONS])


def _padded(batch: dict[str, Any]) -> Call:
    """The same tokens as a right-padded table, for models whose layers mix neighbouring tokens."""
    lengths = batch[columns.SEGMENT_LENGTHS]
    rows = batch[columns.TOKEN_IDS].split(lengths)
    token_ids_ST = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    device = token_ids_ST.device
    length_S = torch.tensor(lengths, device=device)
    mask_ST = torch.arange(token_ids_ST.shape[1], device=device)[None, :] < length_S[:, None]
    segment_T = torch.repeat_interleave(torch.arange(len(lengths), device=device), length_S)
    cell_L = (segment_T * token_ids_ST.shape[1] + batch[columns.POSITION_IDS])[batch[columns.LOSS_POSITIONS]]
    return Call({"input_ids": token_ids_ST, "attention_mask": mask_ST.long(), "use_cache": False}, cell_L)


def _single(batch: dict[str, Any]) -> Iterator[Call]:
    """Every segment with a sampled token on its own, for models in which rows of one call are not independent."""
    start = 0
    for ids in batch[columns.TOKEN_IDS].split(batch[columns.SEGMENT_LENGTHS]):
        position_L = batch[columns.LOSS_POSITIONS]
        cell = position_L[(position_L >= start) & (position_L < start + len(ids))] - start
        if len(cell):
            yield Call({"input_ids": ids[None], "use_cache": False}, cell)
        start += len(ids)


def trunk_states(trunk: Any, batch: dict[str, Any], scoring: Scoring) -> Tensor:
    """[L, D] last hidden states of a model without its head, where each sampled token is predicted."""
    return _joined([hidden_states(trunk, call.inputs, call.cell_L) for call in calls(batch, scoring)])


def score(
    model: PreTrainedModel,
    batch: dict[str, Any],
    scoring: Scoring,
    *,
    temperature: float = 1.0,
    exact_head: bool = False,
    keep_states: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores the sampled tokens of a packed row.

    Args:
        model: A causal language model whose attention is the one of ``scoring``.
        batch: One packed row; see ``columns``.
        scoring: The way to do it.
        temperature: Divides the logits, > 0.
        exact_head: Multiply with the head in float32 whatever the precision of the layers; a split head only.
        keep_states: Whether hidden states are wanted where the way does not yield them anyway.

    Returns:
        ``(logp_L, entropy_L, hidden_LD)``, the first two in float32 nats; no hidden states where the model's own logits
        are read and ``keep_states`` is False.
    """
    if scoring.head is Head.SPLIT:
        hidden_LD = trunk_states(trunk_of(model), batch, scoring)
        return *_score_states(model, hidden_LD, batch, temperature, exact_head), hidden_LD
    logits: list[Tensor] = []
    states: list[list[Tensor]] = []
    for call in calls(batch, scoring):
        with contextlib.ExitStack() as stack:
            if keep_states:
                states.append(stack.enter_context(hidden_states_of_call(trunk_of(model), call.cell_L)))
            logits.append(_logits(model, call, scoring))
    logp_LV = (_joined(logits).float() / temperature).log_softmax(dim=-1)
    entropy_L = -(logp_LV.exp() * logp_LV).sum(dim=-1)
    logp_L = logp_LV.gather(1, batch[columns.LOSS_TOKEN_IDS][:, None]).squeeze(1)
    return logp_L, entropy_L, _joined([of_call[0] for of_call in states]) if keep_states else None


def _score_states(
    model: PreTrainedModel, hidden_LD: Tensor, batch: dict[str, Any], temperature: float, exact: bool
) -> tuple[Tensor, Tensor]:
    head: Any = model.get_output_embeddings()
    with torch.autocast(hidden_LD.device.type, enabled=False) if exact else contextlib.nullcontext():
        return token_logprobs(
            hidden_LD.float() if exact else hidden_LD,
            head.weight,
            batch[columns.LOSS_TOKEN_IDS],
            temperature=temperature,
            bias_V=head.bias,
        )


def _logits(model: PreTrainedModel, call: Call, scoring: Scoring) -> Tensor:
    """[L, V]; cells of several rows cannot be asked for alone."""
    if scoring.head is Head.KEPT and scoring.rows is not Rows.PADDED:
        logits_LV: Tensor = model(**call.inputs, logits_to_keep=call.cell_L).logits[0]
    else:
        logits_LV = model(**call.inputs).logits.flatten(0, 1)[call.cell_L]
    return logits_LV


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
