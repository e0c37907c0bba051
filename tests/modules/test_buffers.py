"""Buffers that a pass changes are found; those that it only reads are not."""

from __future__ import annotations

from typing import Any

import torch

from gspo_rllib.modules.buffers import buffers_changed_by


def test_a_running_mean_is_found_in_training_mode_and_is_none_in_evaluation_mode() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    rows = torch.randn(5, 3)
    assert buffers_changed_by(lambda: model(rows), model) == [
        "1.num_batches_tracked",
        "1.running_mean",
        "1.running_var",
    ]
    assert buffers_changed_by(lambda: model.eval()(rows), model) == []


def test_a_buffer_that_is_replaced_or_added_is_found() -> None:
    model: Any = torch.nn.Module()
    model.register_buffer("table", torch.ones(2))
    model.register_buffer("constant", torch.ones(2))

    def forward() -> None:
        model.table = torch.ones(4)
        model.register_buffer("late", model.constant * 2)

    assert buffers_changed_by(forward, model) == ["late", "table"]
