"""Where a command finds a policy: a checkpoint of ours, or any Hugging Face folder together with an environment."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.cluster_address import add_address
from gspo_rllib.cli.named_policy import model_alone
from gspo_rllib.errors import SettingError, shown
from gspo_rllib.knobs import LARGEST_COUNT
from gspo_rllib.places import named_path

if TYPE_CHECKING:
    from gspo_rllib.algorithms import GSPOConfig
    from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner

TRUST_NOTE = (
    "A checkpoint is data: nothing in it is run, and code of yours that its config names only with --trust. One of "
    "gspo-rllib 0.1 holds pickles, which are programs: --trust-pickle opens it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the policy and how it is to play."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a checkpoint; or with --env a Hugging Face folder, a hub name or an adapter's folder",
    )
    add_playing(parser)


def add_playing(parser: argparse.ArgumentParser) -> None:
    """Adds how a policy is to play."""
    parser.add_argument("--env", metavar="ID", help="environment; default: the checkpoint's")
    parser.add_argument(
        "--env-config", nargs="+", default=[], metavar="KEY=VALUE", help="environment settings, e.g. operations=8"
    )
    parser.add_argument("--engine", help="generation engine; default: the checkpoint's, or what is installed")
    parser.add_argument(
        "--temperature", type=float, help="0 takes the most likely token; default: the checkpoint's, or 1"
    )
    parser.add_argument("--max-tokens-per-turn", type=int, metavar="N", help="default: the checkpoint's, or 64")
    parser.add_argument("--seed", type=int, default=0, help="fixes the tasks and the samples; default 0")
    parser.add_argument(
        "--trust",
        metavar="NAME",
        action="append",
        default=[],
        help="module, or module:name, that the checkpoint's config may name code of; may be repeated",
    )
    add_trust_pickle(parser)
    add_address(parser)
    parser.epilog = TRUST_NOTE


def add_trust_pickle(parser: argparse.ArgumentParser) -> None:
    """Adds the option that opens checkpoints of 0.1."""
    parser.add_argument(
        "--trust-pickle", action="store_true", help="open a checkpoint of gspo-rllib 0.1, whose pickles may do anything"
    )


def parse_assignments(items: list[str], *, option: str) -> dict[str, Any]:
    """Parses ``key=value`` items, values written as in YAML.

    Args:
        items: The arguments of the option.
        option: Name of the option, for messages.

    Raises:
        SettingError: An item has no ``=``.

    Example:
        >>> parse_assignments(["operations=8"], option="--env-config")
        {'operations': 8}
    """
    from gspo_rllib.configs import parse_value

    parsed = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator or not key:
            raise SettingError(f"{option} {item!r}: expected key=value.")
        parsed[key] = parse_value(text, source=f"{option} {item!r}")
    return parsed


def check_count(option: str, given: int) -> None:
    """Refuses a number of something that is none, or more than can be counted.

    Raises:
        SettingError: It is.
    """
    if given < 1:
        raise SettingError(f"{option}: expected a whole number >= 1, got {given}.")
    if given > LARGEST_COUNT:
        raise SettingError(f"{option}: expected a whole number <= {LARGEST_COUNT}, got {shown(given)}.")


def policy_config(arguments: argparse.Namespace) -> GSPOConfig:
    """The config to play with: the checkpoint's, changed by the options; its model path is the policy to play.

    Raises:
        CheckpointError: The folder is neither a whole checkpoint of ours nor a Hugging Face folder.
        SettingError: A model was given without an environment.
        ModelError: An adapter does not say on which model it was trained.
    """
    model = model_alone(arguments.checkpoint, env=arguments.env)  # first: it takes no import of a framework

    from gspo_rllib import checkpoints
    from gspo_rllib.agents.settings import AgentSettings
    from gspo_rllib.algorithms import GSPOConfig

    if model is None:
        state = saved_state(arguments, checkpoints.verify(named_path(arguments.checkpoint)))
        config: GSPOConfig = GSPOConfig.from_state(state)
    else:
        config = GSPOConfig().rl_module(model_config=model)
    config.adapter_sync = None  # engines get the whole model from here
    env_config = parse_assignments(arguments.env_config, option="--env-config")
    if arguments.env:
        # Another environment's settings would not fit this one.
        config.env_config = {}
        config.agent(**dataclasses.asdict(AgentSettings())).environment(arguments.env)
    config.environment(env_config=env_config)
    for name in ("engine", "temperature", "max_tokens_per_turn"):
        if getattr(arguments, name) is not None:
            config.generation(**{name: getattr(arguments, name)})
    config.debugging(seed=arguments.seed)
    return config


def saved_state(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The state of the config that a checkpoint was trained with, its policy as the model.

    Args:
        arguments: Have ``trust`` and ``trust_pickle``, and ``env`` where another environment is to be played.
        folder: A verified checkpoint.

    Raises:
        CheckpointError: The config names what it may not.
    """
    from gspo_rllib import checkpoints
    from gspo_rllib.algorithms.policy_gradient.saved_config import PLAYED, load_config
    from gspo_rllib.checkpoints.code import Trust

    if checkpoints.is_pickled(folder):
        return checkpoints.self_contained_config(folder, trust_pickle=arguments.trust_pickle)
    # What the checkpoint would play does not matter, nor what it names for that, where another environment is given.
    passed_over = PLAYED if getattr(arguments, "env", None) else ()
    state = load_config(folder, Trust(arguments.trust), passed_over=passed_over, begins_with_adapter=True)[1]
    # What plays needs no reference; where it begins with an adapter, none of training's own would be the one meant.
    return {**state, "kl_coeff": 0.0, "reference_path": None}


def weights_version(arguments: argparse.Namespace) -> int:
    """What learners that begin with this policy call its weights."""
    from gspo_rllib import checkpoints

    if model_alone(arguments.checkpoint, env=arguments.env) is not None:
        return 0
    return checkpoints.weights_version(named_path(arguments.checkpoint))


@contextlib.contextmanager
def opened_runner(
    config: GSPOConfig, *, episodes: int | None, group_size: int = 1, version: int = 1
) -> Iterator[LanguageEnvRunner]:
    """An env runner in this process, ready to sample; needs no Ray.

    Args:
        config: What ``policy_config`` returned.
        episodes: Trajectories that will be asked for, if that is known; at most the config's number plays at once.
        group_size: Trajectories per task.
        version: What to call the weights.

    Raises:
        EngineError: The engine cannot serve the model.
        WeightSyncError: It samples from another distribution than the model's.
    """
    from gspo_rllib.cli.quiet import hush

    hush(config)
    config.in_evaluation = True
    config.validate()
    config.group_size = group_size
    if episodes is not None:
        config.num_envs_per_env_runner = min(config.num_envs_per_env_runner, episodes)
    with made_runner(config, num_cpus=config.num_cpus_per_env_runner, version=version) as runner:
        yield runner


@contextlib.contextmanager
def made_runner(config: GSPOConfig, *, num_cpus: float, version: int) -> Iterator[LanguageEnvRunner]:
    """An env runner as a validated config has it, in this process, with the weights of the config's model.

    Args:
        config: What it plays.
        num_cpus: CPUs that it is given.
        version: What to call the weights.
    """
    from gspo_rllib.engines.compute_threads import ComputeThreads
    from gspo_rllib.env_runners.engine_spec import threads_for

    with ComputeThreads(threads_for(config.model_config, num_cpus)):
        runner: LanguageEnvRunner = config.env_runner_cls(config=config)
        try:
            give_weights(runner, config, version=version)
            yield runner
        finally:
            runner.stop()


def give_weights(runner: LanguageEnvRunner, config: GSPOConfig, *, version: int = 1) -> None:
    """Loads the configured model into the runner's engine, and compares what that samples with the model.

    Args:
        runner: An env runner in this process.
        config: Names the model.
        version: What to call the weights.

    Raises:
        WeightSyncError: The engine samples from another distribution.
    """
    from gspo_rllib.engines.proof import Conversation, Gap, check_gap, model_log_probs
    from gspo_rllib.modules.merging import load_policy

    model, weights = load_policy(config.model_config)
    # A tied head is there under both of its names.
    runner.set_weights({name: tensor.numpy() for name, tensor in weights.items()}, version)
    vocab_size = model.get_input_embeddings().num_embeddings
    sample = runner.converse(Conversation.of(model.config, vocab_size, temperature=1.0, learner_dtype="float32"))
    if sample is not None:
        check_gap(sample, Gap.between(sample, model_log_probs(model, sample), "float32"))
        runner.mark_proven()
