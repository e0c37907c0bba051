"""Buffers that a forward pass changes: running statistics, counters, tables that grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.no_grad()
def buffers_changed_by(forward: Callable[[], Any], module: torch.nn.Module) -> list[str]:
    """Names of buffers that have other values after a forward pass, or were not there before.

    Values are compared: a batch norm's running mean changes without torch's count of writes to it.

    Args:
        forward: The pass; it is run without a gradient.
        module: What it runs through.
    """
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    forward()
    after = dict(module.named_buffers())
    changed = [name for name, old in before.items() if name not in after or not torch.equal(after[name], old)]
    return sorted([*changed, *(after.keys() - before.keys())])
