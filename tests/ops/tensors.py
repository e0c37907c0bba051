"""Tensors as tests write them."""

from __future__ import annotations

from typing import Any

import torch


def float64(*rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def assert_near(tensor: torch.Tensor, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(tensor, torch.tensor(expected, dtype=tensor.dtype), atol=tolerance, rtol=0)
