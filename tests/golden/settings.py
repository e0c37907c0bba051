"""The arguments of ``policy_loss`` that make each library's objective."""

from __future__ import annotations

from typing import Any

import torch


def _all_rows(mask_BT: torch.Tensor) -> int:
    """Every row counts, also one without a sampled token."""
    return len(mask_BT)


def _width(mask_BT: torch.Tensor) -> int:
    """The longest completion allowed, which in these cases is the width of the batch."""
    return mask_BT.shape[1]


# Implementation -> the arguments of `policy_loss` that make it. A function is called with the mask.
SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper_gspo_token": {"importance_sampling_level": "sequence_token"},
    "trl_grpo": {"denominator": _all_rows},
    "trl_dapo": {"reduction": "token_mean"},
    "trl_dr_grpo": {"reduction": "token_sum", "token_sum_length": _width, "denominator": _all_rows},
    "trl_luspo": {"reduction": "token_sum", "token_sum_length": 1.0, "denominator": _all_rows},
    "verl_seq_mean_token_mean": {"importance_sampling_level": "sequence_token", "max_log_ratio": 10.0},
    "verl_token_mean": {
        "importance_sampling_level": "sequence_token",
        "max_log_ratio": 10.0,
        "reduction": "token_mean",
    },
    "areal_2d": {"reduction": "token_mean"},
    "areal_packed": {"reduction": "token_mean"},
    "skyrl_sequence_mean": {
        "importance_sampling_level": "sequence_token",
        "max_log_ratio": 10.0,
        "denominator": _all_rows,
    },
    "art_sequence_ppo": {"reduction": "token_mean"},
    "slime_gspo": {"denominator": _all_rows},
}
# Those that average per-token advantages over the sequence before the loss.
AGGREGATED = {"areal_2d", "areal_packed"}
