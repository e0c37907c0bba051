"""Every knob of the model, once: default, what is allowed, effect and the source of the default."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

from gspo_rllib.knobs import Settings, knob, settings_dataclass
from gspo_rllib.modules.foreign_words import REMEDIES
from gspo_rllib.precision import PRECISIONS


@settings_dataclass
class ModelSettings(Settings):
    """``.rl_module(model_config=...)``.

    There is no setting for dropout or router noise, and those of the model's own config are passed over: the tokens
    were sampled without them, so a policy scored with them is another one, and its ratios to the one that sampled are
    noise. What is set by hand and not exact for the model is refused (``modules.exactness``).
    """

    SECTION: ClassVar[str] = "rl_module.model_config"
    REFUSED: ClassVar[Mapping[str, str]] = REMEDIES

    path: str | pathlib.Path | None = knob(
        None, "Local Hugging Face folder or hub name of the model; required.", source="ours"
    )
    revision: str | None = knob(
        None,
        "Branch, tag or commit of a hub name; each machine that has not got it downloads it.",
        source="transformers",
    )
    precision: str = knob(
        "float32",
        "bfloat16: engines sample and learners multiply in bfloat16, and matrices are sent in it; the learner's "
        "weights, gradients, optimiser state, log-probabilities and loss stay float32.",
        choices=PRECISIONS,
        source="ours: exact log-probs",
    )
    autocast_dtype: str | None = knob(
        None,
        "bfloat16 for the learner alone, whatever precision says; None: precision decides.",
        choices=(None, "bfloat16"),
        source="ours: exact log-probs",
    )
    head_dtype: str | None = knob(
        None,
        "float32 keeps the head exact under mixed precision; None lets it multiply in the precision of the layers.",
        choices=(None, "float32"),
        source="ours",
    )
    activation_checkpointing: bool = knob(
        False,
        "Recomputes activations in the backward pass: about 1.3 times the time for a fraction of the memory.",
        choices=(True, False),
        source="ours",
    )
    max_activation_gb: float | None = knob(
        None,
        "Most memory that the activations of a row may take beside weights, gradients and optimiser. As few layers "
        "recompute theirs as fit into it, and as cheaply: all but attention, all, or all with the largest part of a "
        "layer some tokens at a time. None: activation_checkpointing decides.",
        unit="10^9 bytes",
        low=0.0,
        high=1e6,
        low_open=True,
        source="ours",
    )
    packing: bool | None = knob(
        None,
        "Whether trajectories share rows: True packs, False gives each a row of its own, None packs wherever that is "
        "exact.",
        choices=(None, True, False),
        source="ours",
    )
    attn_implementation: str | None = knob(
        None, "Attention of the learner: None for ours; flash_attention_2 where it is installed.", source="ours"
    )
    trust_remote_code: bool = knob(
        False, "Whether the model folder may run its own code.", choices=(True, False), source="transformers"
    )
    vf_share_layers: bool = knob(
        False,
        "For algorithms with a critic: its value head reads the policy's last hidden states, instead of having layers "
        "of its own, loaded from path (twice the memory).",
        choices=(True, False),
        source="RLlib",
    )
    shared_prefixes: bool | None = knob(
        None,
        "Whether trajectories of a group compute the prompt they share once per packed row, exact to float noise. "
        "None: where it saves enough tokens and model and device (a CPU; a GPU under bfloat16) allow it; True: "
        "wherever two share a token; False: never.",
        choices=(None, True, False),
        source="ours",
    )
    lora: dict[str, Any] | None = knob(
        None,
        "Trains a low-rank adapter in place of the model's own weights, e.g. {'rank': 16, 'alpha': 32}; see "
        "modules.lora_settings. None trains every weight.",
        source="ours",
    )
