"""The knobs of an update that do not depend on what the loss is: default, range, unit, effect and source."""

from __future__ import annotations

from typing import Any, ClassVar

from gspo_rllib.knobs import Settings, knob, settings_dataclass
from gspo_rllib.value_forms import schedule, two_decays

HIGHEST_LR = 10.0
"""Largest learning rate: AdamW moves each weight by about as much in a step."""


@settings_dataclass
class UpdateSettings(Settings):
    """The part of ``.training(...)`` that any ``LanguageLearner`` reads."""

    SECTION: ClassVar[str] = "training"

    max_tokens_per_micro_batch: int = knob(
        16384,
        "Token budget of one forward and backward pass; changes memory and speed, never the gradient.",
        unit="tokens",
        low=1,
        source="ours",
    )
    lr: float | list[Any] = knob(
        1e-6,
        "AdamW's learning rate; or an RLlib schedule [[timestep, lr], ...] with straight lines between. Its timesteps "
        "are the turns that the run has sampled so far.",
        low=0.0,
        high=HIGHEST_LR,
        form=schedule(highest=HIGHEST_LR),
        source="verl's GSPO recipe",
    )
    lr_schedule: dict[str, Any] | None = knob(
        None,
        "How lr changes with the number of updates, one for each iteration that trains: {'unit': 'updates', 'warmup': "
        "10, 'decay': 'cosine', 'total': 200, 'min': 1e-7} rises to lr over 10, and falls to 1e-7 until 200. decay: "
        "constant, linear or cosine. A critic's vf_lr moves in proportion.",
        source="ours: none",
    )
    grad_clip: float | None = knob(
        1.0,
        "Largest gradient norm of an optimiser step; None for no limit.",
        low=0.0,
        high=1e12,
        low_open=True,
        source="verl, TRL",
    )
    weight_decay: float = knob(
        0.01, "AdamW's decay of matrices; vectors are not decayed.", low=0.0, high=1e3, source="verl"
    )
    adam_betas: tuple[float, ...] | list[Any] = knob(
        (0.9, 0.999), "AdamW's averaging of gradient and squared gradient.", form=two_decays, source="torch"
    )
    # Below, it is 0 in float32, and a weight without a gradient becomes 0/0.
    adam_epsilon: float = knob(1e-8, "Added to AdamW's denominator.", low=1e-30, high=1.0, source="torch")
    target_kl: float | None = knob(
        None,
        "Largest KL between the policy before the update and the one being trained, mean over the sampled tokens of "
        "the minibatch just seen (k3). Beyond it that minibatch's step is not taken and the update ends; None for no "
        "limit. The first step is always taken.",
        unit="nats per token",
        low=0.0,
        high=1e15,
        low_open=True,
        source="Stable-Baselines3, CleanRL: none",
    )
    undo_overshoot: bool = knob(
        False,
        "Whether the step that went beyond target_kl is undone too, weights and optimiser; costs a copy of both, and a "
        "forward pass after the last step.",
        source="ours",
    )
    router_drift: bool = knob(
        False,
        "Of a mixture of experts: measure how many tokens go to other experts after an update (router_drift in the "
        "result), and in the learner than in the engine (router_gap); costs two forward passes over the first "
        "minibatch, and two over eight trajectories.",
        source="ours",
    )
    routing_replay: bool = knob(
        False,
        "Of a mixture of experts: every step of an update sends a minibatch's tokens to the experts that the policy "
        "before the update chose, weighed by the router as it is (Routing Replay). Costs a forward pass over every "
        "minibatch, over the first alone where old log-probs are the learner's anyway.",
        source="GSPO paper, section 5.3: not needed with a sequence ratio",
    )
    learner_commit_every: int | None = knob(
        10,
        "Learners in processes of their own: how many updates apart their state, 12 bytes per parameter, is kept in "
        "Ray's object store, to rebuild them from where one is lost; the updates since are repeated. None: from the "
        "last checkpoint.",
        unit="updates",
        low=1,
        source="ours: ten updates are repeated in seconds to minutes",
    )
