"""The bare forward and backward pass that learners are measured against: a model's layers, and a head with
``cross_entropy`` over the logits of all sampled tokens of a row at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from gspo_rllib import columns


def bare(module: Any, rows: list[dict[str, Any]], *, head: bool, autocast_dtype: str | None = None) -> None:
    """Forward and backward over all rows, into gradients that were forgotten before.

    Args:
        module: The policy.
        rows: Packed rows; those of one segment run with transformers' own attention.
        head: Whether the head is in it; without, the loss is made of hidden states.
        autocast_dtype: ``"bfloat16"`` for mixed precision.
    """
    model = module.model
    forget_gradients(model)
    single = len(rows[0][columns.SEGMENT_LENGTHS]) == 1
    with stock_attention(model) if single else nullcontext():
        for row in rows:
            lengths = {} if single else {"segment_lengths": row[columns.SEGMENT_LENGTHS]}
            device = row[columns.TOKEN_IDS].device.type
            with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast_dtype is not None):
                hidden = model.base_model(
                    input_ids=row[columns.TOKEN_IDS][None],
                    position_ids=row[columns.POSITION_IDS][None],
                    use_cache=False,
                    **lengths,
                ).last_hidden_state[0]
                if head:
                    logits = model.lm_head(hidden[row[columns.LOSS_POSITIONS]])
                    loss = cross_entropy(logits, row[columns.LOSS_TOKEN_IDS])
                else:
                    loss = hidden.float().square().mean()
            loss.backward()


@contextmanager
def stock_attention(model: Any) -> Iterator[None]:
    """transformers' own attention, for as long as the block lasts."""
    own = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def forget_gradients(module: torch.nn.Module) -> None:
    """As if there never had been any."""
    for parameter in module.parameters():
        parameter.grad = None
