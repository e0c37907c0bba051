"""What a model takes in memory, worked out before it is loaded: in a learner, and in an engine.

Parameters are counted on a model without storage. What a layer keeps for its backward pass is estimated by no formula
but watched: one and two layers of the architecture, with its real widths, run a few tokens through, and the bytes that
autograd saves are counted. A layer of a mixture of experts has as many experts there as a token visits.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from gspo_rllib.modules.adapter import num_trained
from gspo_rllib.modules.hidden_states import trunk_of
from gspo_rllib.modules.lora_settings import LoraSettings
from gspo_rllib.modules.recomputation import decoder_layers
from gspo_rllib.ops.token_logprobs import OTHER_BLOCK

FLOAT32, BFLOAT16 = 4, 2
"""Bytes of a number."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_FEW, _MORE = 4, 12


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model.

    Attributes:
        parameters: Trained numbers; a tied head counts once.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        vocabulary: Words.
        kv_numbers: Numbers that a token adds to an engine's cache, all layers together.
        layer_bytes: What one layer saves for the backward pass, in bytes per token.
        other_bytes: What the rest of the trunk saves, in bytes per token.
        cast_bytes: Under autocast, the copies of one layer's weights that are saved, in bytes.
        layer_parameters: Trained numbers of the largest layer; 0 where the model does not say which its layers are.
        adapter: Numbers of an adapter, which alone are trained then; None without one.
        critic: Numbers of a critic's own, its value head's among them.
        passes: How often a token goes through layers: twice where a critic has some of its own.
    """

    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    kv_numbers: int
    layer_bytes: float
    other_bytes: float
    cast_bytes: float
    layer_parameters: int = 0
    adapter: int | None = None
    critic: int = 0
    passes: int = 1

    @classmethod
    def of(
        cls,
        config: PretrainedConfig,
        *,
        autocast: bool,
        lora: LoraSettings | None = None,
        critic: Literal["of its own", "shared"] | None = None,
    ) -> ModelSizes:
        """Works them out.

        Args:
            config: The model's own config.
            autocast: Whether layers multiply in bfloat16.
            lora: What adapter is trained; None for all weights.
            critic: Whether there is a critic, and whose layers it has.
        """
        text = config.get_text_config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        parameters = sum(p.numel() for p in model.parameters())
        own_layers = critic == "of its own"
        of_critic = sum(p.numel() for p in trunk_of(model).parameters()) if own_layers else 0
        of_critic += text.hidden_size + 1 if critic is not None else 0
        per_layer = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(model)]
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        saved = {
            (layers, tokens): _saved_bytes(text, layers, tokens, autocast=autocast)
            for layers in (1, 2)
            for tokens in (_FEW, _MORE)
        }
        one, two = ((saved[n, _MORE] - saved[n, _FEW]) / (_MORE - _FEW) for n in (1, 2))
        return cls(
            parameters=parameters,
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            vocabulary=text.vocab_size,
            kv_numbers=2 * text.num_hidden_layers * heads * width,
            layer_bytes=two - one,
            other_bytes=2 * one - two,
            cast_bytes=saved[2, _FEW] - saved[1, _FEW] - (two - one) * _FEW,
            layer_parameters=max(per_layer, default=0),
            adapter=None if lora is None else num_trained(model, lora),
            critic=of_critic,
            passes=2 if own_layers else 1,
        )

    @property
    def trained(self) -> int:
        """Numbers that have a gradient and an optimiser's state."""
        return (self.parameters if self.adapter is None else self.adapter) + self.critic

    @property
    def held(self) -> int:
        """Numbers of the policy and of what is trained beside it."""
        return self.parameters + (self.adapter or 0) + self.critic

    def activation_bytes(self, tokens: int, *, checkpointing: bool) -> float:
        """What the trunk holds between the forward pass and the backward pass of a micro-batch.

        Args:
            tokens: Tokens of the micro-batch.
            checkpointing: Whether layers keep only what came in, and compute the rest again one by one.
        """
        other, casts = self.other_bytes * tokens, self.cast_bytes * self.layers
        if not checkpointing:
            return self.passes * (self.layers * self.layer_bytes * tokens + other + casts)
        kept = self.layers * self.hidden * FLOAT32 * tokens
        return self.passes * (kept + other + casts) + self.layer_bytes * tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerMemory:
    """What one learner holds at the peak of a step, in bytes.

    Attributes:
        weights: Float32 weights.
        gradients: Their gradients.
        buckets: The copies of gradients that several learners reduce over.
        gathered: What learners that share the model hold whole while it runs: the parts outside of layers and their
            gradients; two layers, of which one is fetched ahead; the gradient of a layer, and the copy that is reduced.
        optimiser: AdamW's two moments.
        reference: The frozen reference policy, if there is one.
        activations: Between forward and backward pass of a micro-batch.
        logits: Blocks of logits that the loss walks through, on an accelerator.
    """

    weights: float
    gradients: float
    buckets: float
    gathered: float
    optimiser: float
    reference: float
    activations: float
    logits: float

    @classmethod
    def of(
        cls,
        sizes: ModelSizes,
        *,
        tokens: int,
        checkpointing: bool,
        learners: int,
        reference: bool,
        sharded: bool = False,
        logits_bytes: float = 3 * FLOAT32 * OTHER_BLOCK[1],
    ) -> LearnerMemory:
        """Works it out for one of so many learners.

        Args:
            sizes: The model's.
            tokens: Tokens of a micro-batch.
            checkpointing: See ``ModelSizes.activation_bytes``.
            learners: How many there are; 0 and 1 reduce nothing.
            reference: Whether there is a reference policy.
            sharded: Whether each holds its share, and not everything.
            logits_bytes: A block of logits and what is computed of it, at once.
        """
        copies = max(learners, 1) if sharded else 1
        gradients = float(sizes.trained * FLOAT32)
        buckets = gradients if learners > 1 and not sharded else 0.0
        gathered = 0.0
        if sharded:
            outside = max(sizes.parameters - sizes.layers * sizes.layer_parameters, 0)
            gathered = float(FLOAT32 * (2 * outside + 4 * sizes.layer_parameters))
        return cls(
            weights=sizes.held * FLOAT32 / copies,
            gradients=gradients / copies,
            buckets=buckets,
            gathered=gathered,
            optimiser=2 * gradients / copies,
            reference=sizes.parameters * FLOAT32 / copies if reference else 0.0,
            activations=sizes.activation_bytes(tokens, checkpointing=checkpointing),
            logits=logits_bytes,
        )

    @property
    def kept(self) -> float:
        """What stays there between two updates, in bytes."""
        return self.weights + self.optimiser + self.reference

    @property
    def total(self) -> float:
        """All of it together."""
        return float(sum(dataclasses.astuple(self)))


def _saved_bytes(text: Any, layers: int, tokens: int, *, autocast: bool) -> int:
    """What the trunk of a model with so few layers saves for its backward pass; weights themselves are not counted."""
    small = copy.deepcopy(text)
    small.num_hidden_layers = layers
    small.vocab_size, small.pad_token_id, small.tie_word_embeddings = 8, None, False
    small.use_cache = False
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:layers]
    visited = getattr(small, "num_experts_per_tok", None)
    for name in _EXPERTS:
        if visited and hasattr(small, name):
            setattr(small, name, visited)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    # Storage that nobody writes to: what the numbers are is of no matter.
    trunk = model.to_empty(device="cpu").eval().base_model
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*trunk.parameters(), *trunk.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        state = trunk(input_ids=torch.zeros(1, tokens, dtype=torch.long), position_ids=torch.arange(tokens)[None])
    del state
    return sum(storage.nbytes() for storage in kept.values())
