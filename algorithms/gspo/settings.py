"""Every knob of GSPO, once: default, range, unit, effect and the source of the default."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from gspo_rllib.ops import IMPORTANCE_SAMPLING_LEVELS
from gspo_rllib.settings import Settings, knob

_PAPER = "arXiv:2507.18071v2 §5.1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """``.training(...)``."""

    SECTION: ClassVar[str] = "training"

    group_size: int = knob(
        8, "Trajectories per task (K); the advantage compares them with each other.", low=2, source="verl, TRL"
    )
    groups_per_iteration: int = knob(
        16, "Tasks per iteration (G); an iteration trains on G·K trajectories.", low=1, source="ours"
    )
    num_minibatches: int = knob(
        4, "Optimiser steps an iteration's groups are split into; with 1 the ratio is always 1.", low=1, source=_PAPER
    )
    num_epochs: int = knob(1, "Passes over an iteration's groups.", low=1, source="arXiv:2507.18071v2, one pass")
    clip_low: float = knob(
        3e-4, "How far below 1 the ratio may go before its gradient stops.", low=0.0, high=1.0, source=_PAPER
    )
    clip_high: float = knob(4e-4, "How far above 1 the ratio may go before its gradient stops.", low=0.0, source=_PAPER)
    importance_sampling_level: str = knob(
        "sequence",
        "What one importance ratio spans: the trajectory, the same with per-token gradients, a turn, or a token.",
        choices=IMPORTANCE_SAMPLING_LEVELS,
        source="arXiv:2507.18071v2 eq. 7",
    )
    old_log_probs: str = knob(
        "auto",
        "Denominator of the ratio: the engine's log-probs, or the learner's own before its first step; auto takes the "
        "engine's where both compute in float32.",
        choices=("auto", "engine", "learner"),
        source="ours: bf16 noise is about ten times the clip range",
    )
    max_tokens_per_micro_batch: int = knob(
        16384,
        "Token budget of one forward and backward pass; changes memory and speed, never the gradient.",
        unit="tokens",
        low=1,
        source="ours",
    )
    lr: float | list[Any] = knob(
        1e-6, "AdamW's learning rate, or an RLlib schedule [[timestep, lr], ...].", low=0.0, source="verl's GSPO recipe"
    )
    grad_clip: float | None = knob(
        1.0,
        "Largest gradient norm of an optimiser step; None for no limit.",
        low=0.0,
        low_open=True,
        source="verl, TRL",
    )
    weight_decay: float = knob(0.01, "AdamW's decay of matrices; vectors are not decayed.", low=0.0, source="verl")
    adam_betas: tuple[float, ...] | list[Any] = knob(
        (0.9, 0.999), "AdamW's averaging of gradient and squared gradient.", source="torch"
    )
    adam_epsilon: float = knob(1e-8, "Added to AdamW's denominator.", low=0.0, low_open=True, source="torch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings(Settings):
    """``.generation(...)``."""

    SECTION: ClassVar[str] = "generation"

    engine: str | None = knob(
        None, "Which engine samples; None takes vLLM where it is installed, else transformers.", source="ours"
    )
    temperature: float = knob(
        1.0, "Divides the logits while sampling; the learner scores at the same one.", low=0.0, source="verl, TRL"
    )
    max_tokens_per_turn: int = knob(64, "Most tokens of one reply.", unit="tokens", low=1, source="ours")
    max_turns: int | None = knob(
        None, "Most turns of a trajectory; None leaves it to the environment.", unit="turns", low=1, source="ours"
    )
    max_model_len: int | None = knob(
        None, "Longest context; None takes the model's own.", unit="tokens", low=2, source="the model's config"
    )
    engine_dtype: str = knob(
        "float32",
        "Precision of the engine's weights and cache.",
        choices=("float32", "bfloat16"),
        source="ours: exact log-probs",
    )
    engine_device: str | None = knob(
        None, "Torch device of the transformers engine; None takes a GPU if the runner has one.", source="ours"
    )
    engine_options: dict[str, Any] = knob(
        {}, "Handed to the engine as they are, e.g. vLLM's tensor_parallel_size.", source="ours"
    )
    step_timeout_s: float = knob(
        60.0,
        "Longest an environment may take to make, reset or step before it counts as failed.",
        unit="seconds",
        low=0.0,
        low_open=True,
        source="ours",
    )
    trajectory_retries: int = knob(
        1, "Fresh attempts at a trajectory whose environment failed before its group is replaced.", low=0, source="ours"
    )
