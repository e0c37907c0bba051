"""``gspo-rllib plan``: what a config needs of each GPU, whether it fits, and what to set where it does not."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.train import add_config_arguments, overrides_of
from gspo_rllib.errors import SettingError
from gspo_rllib.precision import engine_dtype, sync_dtype

if TYPE_CHECKING:
    from gspo_rllib.algorithms import GSPOConfig
    from gspo_rllib.modules.memory import LearnerMemory, ModelSizes

EXIT_DOES_NOT_FIT = 1


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
    from gspo_rllib.algorithms.policy_gradient.memory_plan import learner_memory, memory_problems, model_sizes
    from gspo_rllib.configs import load_run
    from gspo_rllib.engines.device_room import FILLABLE

    for option in ("gpus", "memory", "params"):
        given = getattr(arguments, option)
        if given is not None and not 0 < given < float("inf"):
            raise SettingError(f"--{option}: expected a number > 0, got {given:g}.")
    config = load_run(arguments.config, overrides_of(arguments)).config
    sizes = model_sizes(config, params=arguments.params)
    memory = learner_memory(config, sizes)
    room = arguments.memory * 1e9 * FILLABLE
    for line in [
        f"model      {sizes.parameters / 1e9:.3g} B parameters, {sizes.layers} layers, hidden {sizes.hidden}, "
        f"vocabulary {sizes.vocabulary}",
        *learner_lines(config, sizes, memory),
        *engine_lines(config, sizes, memory, room),
    ]:
        print(line)
    problems = [*gpu_problems(config, arguments.gpus), *memory_problems(config, sizes, memory, room, arguments.gpus)]
    print(*(f"does not fit: {problem}" for problem in problems) if problems else ["fits"], sep="\n")
    return EXIT_DOES_NOT_FIT if problems else 0


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


def engine_lines(config: GSPOConfig, sizes: ModelSizes, memory: LearnerMemory, room: float) -> Iterator[str]:
    """What an engine holds, and how much it can remember."""
    from gspo_rllib.algorithms.policy_gradient.memory_plan import ENGINE_BYTES

    dtype = engine_dtype(config, config.model_config)
    number = ENGINE_BYTES[dtype]
    ranks = int(config.engine_options.get("tensor_parallel_size", 1))
    weights, token = number * sizes.parameters / ranks, number * sizes.kv_numbers / ranks
    share = 1 if config.colocate else config.num_gpus_per_env_runner or 0
    sent = sync_dtype(config, config.model_config)
    if not config.colocate:
        yield f"sync       {ENGINE_BYTES[sent] * sizes.parameters / 1e9:.3g} GB are sent after an update ({sent})"
    yield f"engine     {weights / 1e9:.3g} GB of weights ({dtype}), {token / 1e3:.3g} kB of cache a token"
    if share:
        kept = memory.kept if config.colocate else 0.0
        left = room * min(share, 1) - weights - kept
        yield f"  beside them, its GPU has room for {max(left, 0) / token / 1e3:.0f} thousand tokens of cache"


def gpu_problems(config: GSPOConfig, gpus: int) -> Iterator[str]:
    """Whether there are as many GPUs as are asked for."""
    from gspo_rllib.algorithms.policy_gradient.resources import requests

    asked = requests(config, main_process=True)
    total = sum(request.count * request.each.get("GPU", 0.0) for request in asked)
    if total > gpus:
        yield f"{', '.join(map(str, asked))} need {total:g} GPUs, and there are {gpus}. Lower their numbers or shares"
