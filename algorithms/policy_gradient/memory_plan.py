"""What a config takes of a GPU, worked out before anything is loaded; and what to set where it does not fit."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gspo_rllib.algorithms.policy_gradient.adapter_checks import reference_settings
from gspo_rllib.errors import ModelError
from gspo_rllib.learners.sharding_settings import shards
from gspo_rllib.model_folder import load_model_config, model_path
from gspo_rllib.modules.lora_settings import LoraSettings
from gspo_rllib.modules.model_config import check_model_config
from gspo_rllib.precision import engine_dtype, learner_dtype

if TYPE_CHECKING:
    from gspo_rllib.modules.memory import LearnerMemory, ModelSizes

ENGINE_BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of a number in an engine."""

ASLEEP_BYTES = 2e9
"""What an engine that sleeps keeps of a GPU: its CUDA graphs, and the CUDA context of a process of its own."""


def model_sizes(config: Any, *, params: float | None = None) -> ModelSizes:
    """The sizes of the model that a config names; only its ``config.json`` is read.

    Args:
        config: Names the model.
        params: Parameters, where they are to be others than the model's.

    Raises:
        ModelError: There is no such model, or its architecture cannot be built.
    """
    from gspo_rllib.modules.memory import ModelSizes  # its transformers takes seconds: only where it is asked for

    settings = check_model_config(config._model_config or {})
    path, trust = model_path(settings), settings["trust_remote_code"]
    model = load_model_config(path, trust_remote_code=trust)
    lora = None if settings["lora"] is None else LoraSettings(**settings["lora"])
    critic: Any = ("shared" if settings["vf_share_layers"] else "of its own") if config.uses_critic else None
    try:
        sizes = ModelSizes.of(model, autocast=learner_dtype(settings) == "bfloat16", lora=lora, critic=critic)
    except Exception as error:  # of any class: transformers' models fail in as many ways as there are
        raise ModelError(
            f"model path {path!r}: its memory cannot be worked out: a small copy of {type(model).__name__} does not "
            f"run ({type(error).__name__}: {str(error)[:200]})."
        ) from error
    if params is None:
        return sizes
    times = params / sizes.parameters
    grown = {name: round(getattr(sizes, name) * times) for name in ("parameters", "layer_parameters", "critic")}
    # An adapter grows with the width of matrices, so with less than their size.
    adapter = None if sizes.adapter is None else round(sizes.adapter * max(times, 1.0))
    return dataclasses.replace(sizes, **grown, adapter=adapter)


def learner_memory(config: Any, sizes: ModelSizes, **changes: Any) -> LearnerMemory:
    """What one learner of a config holds.

    Args:
        config: The config.
        sizes: Sizes of the model.
        changes: Arguments of ``LearnerMemory.of`` that are to be others.
    """
    from gspo_rllib.modules.memory import LearnerMemory

    settings = config.settings(config.training_settings)
    # A policy with its adapter off is its own reference.
    is_a_copy = reference_settings(config.model_config, settings.reference_path) is not None
    known = {
        "tokens": settings.max_tokens_per_micro_batch,
        "checkpointing": bool(config.model_config.get("activation_checkpointing")),
        "learners": config.num_learners,
        "reference": bool(settings.kl_coeff) and is_a_copy,
        "sharded": shards(config),
    }
    memory = LearnerMemory.of(sizes, **(known | changes))
    limit = config.model_config.get("max_activation_gb")
    if limit is None or "checkpointing" in changes:
        return memory
    # Layers recompute until the limit is met, or all of them do.
    least = LearnerMemory.of(sizes, **{**known, "checkpointing": True, **changes}).activations
    return dataclasses.replace(memory, activations=min(memory.activations, max(limit * 1e9, least)))


def memory_problems(config: Any, sizes: ModelSizes, memory: LearnerMemory, room: float, gpus: int) -> Iterator[str]:
    """What is too large for a GPU, and which settings would make it fit."""
    if config.colocate:
        yield from colocation_problems(config, sizes, memory, room, gpus)
        return
    share = config.num_gpus_per_learner or 0
    learner_room = room * (min(share, 1) if share else 1)
    if memory.total > learner_room:
        advice = "; ".join(remedies(config, sizes, memory, learner_room, gpus)) or "use a smaller model"
        yield f"a learner needs {memory.total / 1e9:.3g} GB, of {learner_room / 1e9:.3g} GB that it can fill: {advice}"
    number = ENGINE_BYTES[engine_dtype(config, config.model_config)]
    ranks = int(config.engine_options.get("tensor_parallel_size", 1))
    runner_share = config.num_gpus_per_env_runner or 0
    engine_room = room * (min(runner_share, 1) if runner_share else 1)
    weights = number * sizes.parameters / ranks
    if weights > 0.9 * engine_room:
        least = next((n for n in (2, 4, 8, 16) if number * sizes.parameters / n <= 0.6 * room), 16)
        half = "rl_module.model_config.precision=bfloat16; " if number == 4 else ""
        yield (
            f"an engine's weights are {weights / 1e9:.3g} GB, of {engine_room / 1e9:.3g} GB, which leaves no cache: "
            f"{half}generation.engine_options={{tensor_parallel_size: {least}}} with as many GPUs per env runner"
        )


def remedies(config: Any, sizes: ModelSizes, memory: LearnerMemory, room: float, gpus: int) -> Iterator[str]:
    """Settings that would help, the least costly first, each with what it leaves."""
    tokens = config.settings(config.training_settings).max_tokens_per_micro_batch
    settings = config.model_config
    checkpointing = bool(settings.get("activation_checkpointing")) or settings.get("max_activation_gb") is not None
    fixed = memory.total - memory.activations
    if not checkpointing:
        less = learner_memory(config, sizes, checkpointing=True)
        yield f"rl_module.model_config.activation_checkpointing=true leaves {less.total / 1e9:.3g} GB"
    if fixed < room:
        best = learner_memory(config, sizes, checkpointing=True)
        fitting = int(tokens * (room - fixed) / best.activations) // 256 * 256
        if 0 < fitting < tokens:
            yield f"with it, training.max_tokens_per_micro_batch={fitting} fits"
        return
    if sizes.adapter is None:
        left = memory.weights + memory.gathered + memory.logits + best_activations(config, sizes)
        yield (
            "rl_module.model_config.lora trains an adapter: weights stay, gradients and optimiser state all but go, "
            f"{left / 1e9:.3g} GB and the adapter's"
        )
    ranks = fitting_ranks(config, sizes, room)
    if ranks is not None:
        yield f"learners.sharding=fsdp2 over {ranks} learners or more ({gpus} GPUs are given)"


def fitting_ranks(config: Any, sizes: ModelSizes, room: float) -> int | None:
    """The fewest learners that could share the model, with checkpointing; None where no number helps."""

    def fits(ranks: int) -> bool:
        return learner_memory(config, sizes, checkpointing=True, sharded=True, learners=ranks).total <= room

    # The more share it, the less each holds.
    numbers = range(2, 4097)
    found = bisect.bisect_left(numbers, True, key=fits)
    return numbers[found] if found < len(numbers) else None


def best_activations(config: Any, sizes: ModelSizes) -> float:
    """Activations of a micro-batch with checkpointing, in bytes."""
    return learner_memory(config, sizes, checkpointing=True).activations


def colocation_problems(config: Any, sizes: ModelSizes, memory: LearnerMemory, room: float, gpus: int) -> Iterator[str]:
    """The same where engine and learner take turns on one GPU: what is too large while the one works, or the other.

    Args:
        config: The config.
        sizes: Sizes of the model.
        memory: What the learner holds at the peak of a step.
        room: What can be filled of the GPU, in bytes.
        gpus: How many GPUs there are.
    """
    learner_room = room - ASLEEP_BYTES
    if memory.total > learner_room:
        advice = "; ".join(remedies(config, sizes, memory, learner_room, gpus)) or "use a smaller model"
        yield (
            f"while the learner trains it needs {memory.total / 1e9:.3g} GB, of {learner_room / 1e9:.3g} GB that it "
            f"can fill beside an engine that sleeps: {advice}"
        )
    engine = ENGINE_BYTES[engine_dtype(config, config.model_config)]
    context = engine * (sizes.parameters + sizes.kv_numbers * config.resolved_max_model_len)
    if memory.kept + context > room:
        half = "rl_module.model_config.precision=bfloat16; " if engine == 4 else ""
        yield (
            f"while the engine samples, its weights and one context of {config.resolved_max_model_len} tokens take "
            f"{context / 1e9:.3g} GB beside {memory.kept / 1e9:.3g} GB that the learner keeps, of {room / 1e9:.3g} GB: "
            f"{half}a smaller generation.max_model_len; a GPU for each, without generation.colocate"
        )


def kept_bytes(config: Any) -> int:
    """What a config's learner keeps on its device while engines sample."""
    return int(learner_memory(config, model_sizes(config)).kept)
