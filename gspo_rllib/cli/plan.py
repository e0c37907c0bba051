"""``gspo-rllib plan``: what a config needs of each GPU, whether it fits, and what to set where it does not."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.train import add_config_arguments, overrides_of
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.precision import engine_dtype, learner_dtype, sync_dtype

if TYPE_CHECKING:
    from gspo_rllib.algorithms import GSPOConfig
    from gspo_rllib.modules.memory import LearnerMemory, ModelSizes

EXIT_DOES_NOT_FIT = 1
_HEADROOM = 0.92
"""Share of a GPU that can be filled: the rest is the CUDA context, the allocator's holes and libraries' workspaces."""
_ENGINE_BYTES = {"float32": 4, "bfloat16": 2}


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("plan", help="memory that a config needs, and what fits", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="GPUs there are")
    parser.add_argument("--memory", type=float, required=True, metavar="GB", help="memory of each, in 10⁹ bytes")
    parser.add_argument(
        "--params",
        type=float,
        metavar="N",
        help="parameters, e.g. 7.6e9, where they are not those of the model's config",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the arithmetic.

    Returns:
        0 where everything fits; 1 where it does not.
    """
    from gspo_rllib.configs import load_run

    for option in ("gpus", "memory", "params"):
        given = getattr(arguments, option)
        if given is not None and not 0 < given < float("inf"):
            raise SettingError(f"--{option}: expected a number > 0, got {given:g}.")
    config = load_run(arguments.config, overrides_of(arguments)).config
    sizes = model_sizes(config, params=arguments.params)
    memory = learner_memory(config, sizes)
    room = arguments.memory * 1e9 * _HEADROOM
    for line in [
        f"model      {sizes.parameters / 1e9:.3g} B parameters, {sizes.layers} layers, hidden {sizes.hidden}, "
        f"vocabulary {sizes.vocabulary}",
        *learner_lines(config, sizes, memory),
        *engine_lines(config, sizes, room),
    ]:
        print(line)
    problems = [*gpu_problems(config, arguments.gpus), *memory_problems(config, sizes, memory, room, arguments.gpus)]
    print(*(f"does not fit: {problem}" for problem in problems) if problems else ["fits"], sep="\n")
    return EXIT_DOES_NOT_FIT if problems else 0


def model_sizes(config: GSPOConfig, *, params: float | None) -> ModelSizes:
    """The sizes of the model that a config names; only its ``config.json`` is read.

    Args:
        config: Names the model.
        params: Parameters, where they are to be others than the model's.

    Raises:
        ModelError: There is no such model, or its architecture cannot be built.
    """
    from gspo_rllib.model_folder import load_model_config, model_path
    from gspo_rllib.modules.lora_settings import LoraSettings
    from gspo_rllib.modules.memory import ModelSizes
    from gspo_rllib.modules.model_config import check_model_config

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


def learner_memory(config: GSPOConfig, sizes: ModelSizes, **changes: Any) -> LearnerMemory:
    """What one learner of a config holds.

    Args:
        config: The config.
        sizes: Sizes of the model.
        changes: Arguments of ``LearnerMemory.of`` that are to be others.
    """
    from gspo_rllib.algorithms.policy_gradient.adapter_checks import reference_settings
    from gspo_rllib.learners.sharding_settings import shards
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


def learner_lines(config: GSPOConfig, sizes: ModelSizes, memory: LearnerMemory) -> Iterator[str]:
    """What a learner holds, part by part."""
    ranks = max(config.num_learners, 1)
    yield f"learner    each of {ranks} holds {memory.total / 1e9:.3g} GB at the peak of a step:"
    for name, amount in dataclasses.asdict(memory).items():
        if amount:
            yield f"  {name:<12} {amount / 1e9:>9.3f} GB"
    tokens = config.settings(config.training_settings).max_tokens_per_micro_batch
    per_token = memory.activations / tokens
    yield f"  (activations: {tokens} tokens of a micro-batch, {per_token / 1e3:.0f} kB each)"


def engine_lines(config: GSPOConfig, sizes: ModelSizes, room: float) -> Iterator[str]:
    """What an engine holds, and how much it can remember."""
    dtype = engine_dtype(config, config.model_config)
    number = _ENGINE_BYTES[dtype]
    ranks = int(config.engine_options.get("tensor_parallel_size", 1))
    weights, token = number * sizes.parameters / ranks, number * sizes.kv_numbers / ranks
    share = config.num_gpus_per_env_runner or 0
    sent = sync_dtype(config, config.model_config)
    yield f"sync       {_ENGINE_BYTES[sent] * sizes.parameters / 1e9:.3g} GB are sent after an update ({sent})"
    yield f"engine     {weights / 1e9:.3g} GB of weights ({dtype}), {token / 1e3:.3g} kB of cache a token"
    if share:
        left = room * min(share, 1) - weights
        yield f"  beside them, its GPU has room for {max(left, 0) / token / 1e3:.0f} thousand tokens of cache"


def gpu_problems(config: GSPOConfig, gpus: int) -> Iterator[str]:
    """Whether there are as many GPUs as are asked for."""
    from gspo_rllib.algorithms.policy_gradient.resources import requests

    asked = requests(config, main_process=True)
    total = sum(request.count * request.each.get("GPU", 0.0) for request in asked)
    if total > gpus:
        yield f"{', '.join(map(str, asked))} need {total:g} GPUs, and there are {gpus}. Lower their numbers or shares"


def memory_problems(
    config: GSPOConfig, sizes: ModelSizes, memory: LearnerMemory, room: float, gpus: int
) -> Iterator[str]:
    """What is too large for a GPU, and which settings would make it fit."""
    share = config.num_gpus_per_learner or 0
    learner_room = room * (min(share, 1) if share else 1)
    if memory.total > learner_room:
        advice = "; ".join(remedies(config, sizes, memory, learner_room, gpus)) or "use a smaller model"
        yield f"a learner needs {memory.total / 1e9:.3g} GB, of {learner_room / 1e9:.3g} GB that it can fill: {advice}"
    number = _ENGINE_BYTES[engine_dtype(config, config.model_config)]
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


def remedies(config: GSPOConfig, sizes: ModelSizes, memory: LearnerMemory, room: float, gpus: int) -> Iterator[str]:
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


def fitting_ranks(config: GSPOConfig, sizes: ModelSizes, room: float) -> int | None:
    """The fewest learners that could share the model, with checkpointing; None where no number helps."""
    for ranks in range(2, 4097):
        if learner_memory(config, sizes, checkpointing=True, sharded=True, learners=ranks).total <= room:
            return ranks
    return None


def best_activations(config: GSPOConfig, sizes: ModelSizes) -> float:
    """Activations of a micro-batch with checkpointing, in bytes."""
    return learner_memory(config, sizes, checkpointing=True).activations
