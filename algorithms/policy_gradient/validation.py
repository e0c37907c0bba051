"""What is checked about the settings themselves before the first actor starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ray.util import log_once

from gspo_rllib.agents.address import LOOPBACK, check_server_packages
from gspo_rllib.agents.external import check_external
from gspo_rllib.agents.function import find_play
from gspo_rllib.agents.process_workers import importable_name
from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.agents.tasks import Tasks
from gspo_rllib.algorithms.policy_gradient.choices import SCHEDULES
from gspo_rllib.algorithms.policy_gradient.guards import cautions, refusals
from gspo_rllib.algorithms.policy_gradient.idle_settings import idle_settings
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.chat.trial import check_ends
from gspo_rllib.engines.registry import available_engines
from gspo_rllib.env_pool.factory import LanguageEnvSpec
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.chat_probe import check_conversation
from gspo_rllib.env_runners.curriculum import played_envs
from gspo_rllib.env_runners.engine_spec import (
    check_vocabulary,
    load_renderer,
    load_runner_tokenizer,
    resolve_max_model_len,
    vocabulary_size,
)
from gspo_rllib.env_runners.long_context import Segments
from gspo_rllib.env_runners.settings import UPDATES_WITHIN_TURNS, GenerationSettings
from gspo_rllib.errors import EnvError, ModelError, SettingError, shown
from gspo_rllib.learners.lr_schedule import LRSchedule
from gspo_rllib.model_check import check_model
from gspo_rllib.model_folder import model_path

logger = logging.getLogger("gspo_rllib")


def check_training(
    settings: TrainingSettings,
    generation: GenerationSettings,
    *,
    recomputes_old_log_probs: bool,
    explore: bool,
) -> None:
    """Refuses, or warns about, training settings that would not do what they are called.

    Args:
        settings: The training settings.
        generation: The generation settings, which some training settings must agree with.
        recomputes_old_log_probs: Whether the ratio's denominator is the learner's own.
        explore: Whether env runners sample, or take the likeliest token.

    Raises:
        SettingError: A value or a combination is refused.
    """
    if not explore:
        raise SettingError(
            f"env_runners.explore is {explore!r}: all trajectories of a group would be the same, their advantages 0. "
            "Leave it True for training; evaluation can be greedy with evaluation_config={'explore': False}."
        )
    LRSchedule.of(settings.lr_schedule, settings.lr)
    if settings.num_minibatches > settings.groups_per_iteration:
        raise SettingError(
            f"training.num_minibatches is {settings.num_minibatches}, but there are only "
            f"{settings.groups_per_iteration} groups_per_iteration; a minibatch holds whole groups."
        )
    whole = None if settings.max_staleness else ("max_staleness=0", "max_staleness=1")
    if settings.max_staleness and SCHEDULES[settings.schedule]:
        whole = f"schedule={settings.schedule!r}", "schedule='free'"
    if UPDATES_WITHIN_TURNS[generation.weight_update] and whole is not None:
        raise SettingError(
            f"generation.weight_update is {generation.weight_update!r}, which has no effect with "
            f"training.{whole[0]}: no turn is being sampled when weights change. Use 'turn', or {whole[1]}."
        )
    for problem in idle_settings(settings):
        raise SettingError(f"training.{problem}")
    for problem in refusals(settings, recomputes_old_log_probs=recomputes_old_log_probs):
        raise SettingError(f"training.{problem}")
    for problem in cautions(settings):
        logger.warning("training.%s", problem)


def check_generation(settings: GenerationSettings, *, num_envs_per_env_runner: int, training: bool) -> None:
    """Refuses generation settings that could not train anything.

    Args:
        settings: The generation settings.
        num_envs_per_env_runner: Trajectories a runner plays at a time.
        training: Whether the settings are for training, not for evaluation alone.

    Raises:
        SettingError: A value is refused.
    """
    if settings.temperature == 0.0 and training:
        raise SettingError(
            "generation.temperature is 0: all trajectories of a group would be the same and their advantages 0. Use "
            "1.0 for training; evaluation can be greedy with explore=False."
        )
    if num_envs_per_env_runner < 1:
        raise SettingError(
            f"env_runners.num_envs_per_env_runner is {num_envs_per_env_runner}; it is the number of "
            "trajectories a runner plays at a time and must be >= 1"
        )


def check_chats(
    generation: GenerationSettings,
    model_config: Mapping[str, Any],
    envs: Sequence[LanguageEnvSpec],
    *,
    name: str,
    room: int,
) -> None:
    """Refuses a model whose chat template cannot frame the conversations; tells what else to know.

    Args:
        generation: The generation settings.
        model_config: What ``rl_module`` was given.
        envs: What is known about the environments that are played; none where agents play.
        name: What to call the environments.
        room: Longest context, in tokens.

    Raises:
        ModelError: There is no tokenizer with a chat template, the template cannot frame these conversations, or it
            writes tokens that the model does not have.
        SettingError: ``template_kwargs`` holds a name that is not the run's to set.
        EnvError: What an environment says first fits no context.
    """
    path = str(model_config["path"])
    check_ends(load_runner_tokenizer(model_config).chat_template, generation.template_kwargs, model=path)
    if not envs:
        check_vocabulary(load_renderer(generation, model_config, None), model_config)
    for env in envs:
        renderer = load_renderer(generation, model_config, env.chat)
        limits = (generation.max_turns, env.max_turns, renderer.chat.max_turns)
        # A summary is asked for by the user, whatever role the observations have.
        roles = {env.obs_role, *(["user"] if generation.asks_for_summaries else [])}
        check_conversation(renderer, model=path, roles=sorted(roles), one_turn=1 in limits)
        check_vocabulary(renderer, model_config)
        _check_room(renderer, env, generation, room=room)
        _say_if_narrow(env, name)


def _check_room(renderer: ChatRenderer, env: LanguageEnvSpec, generation: GenerationSettings, *, room: int) -> None:
    """Refuses an environment of which no task fits the context; warns of one of which some do not."""
    lengths = [len(renderer.first_prompt(observation)) for observation in env.first_observations]
    reserve = Segments(renderer, generation, budget=0).reserve
    too_long = [length for length in lengths if length >= room - reserve]
    if not too_long:
        return
    kept = f", {reserve} of them kept for a summary," if reserve else ","
    message = (
        f"environment: the first prompts of {len(too_long)} of {len(lengths)} tasks that were tried have up to "
        f"{max(too_long)} tokens, while a context has {room}{kept} and a reply needs one at least. Raise "
        "generation.max_model_len, use a model with a longer context, or shorten what the environment says first."
    )
    if len(too_long) == len(lengths):
        raise EnvError(message)
    logger.warning("%s Trajectories of such tasks fail.", message)


def check_models(settings: TrainingSettings, model_config: Mapping[str, Any], *, training: bool) -> None:
    """Refuses a model, or a reference, whose folder does not hold what its config says.

    Args:
        settings: The training settings, which name the reference.
        model_config: What ``rl_module`` was given.
        training: Whether the settings are for training, not for evaluation alone.

    Raises:
        ModelError: The config, the weights or both together cannot be loaded, or the reference speaks other tokens.
    """
    trusted = bool(model_config["trust_remote_code"])
    check_model(model_path(model_config), trust_remote_code=trusted)
    if not training or not settings.kl_coeff or settings.reference_path is None:
        return
    reference = {**model_config, "path": settings.reference_path, "revision": None}
    check_model(model_path(reference), trust_remote_code=trusted)
    sizes = [vocabulary_size(config) for config in (model_config, reference)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ModelError(
            f"training.reference_path is {settings.reference_path!r}, whose model has {sizes[1]} token ids, while the "
            f"one that is trained has {sizes[0]}; the divergence is between models of one vocabulary. Use the model "
            "that training starts from, or a relative of it."
        )


def check_recorded_file(settings: TrainingSettings) -> None:
    """Refuses a file of groups that is not there; what it holds is checked when it is trained on.

    Raises:
        SettingError: It is not.
    """
    path = settings.recorded_groups
    if path is not None and not os.path.isfile(path):
        raise SettingError(
            f"training.recorded_groups={path!r}: no such file; it must be a JSONL file with a group on each line."
        )


def _say_if_narrow(env: LanguageEnvSpec, name: str) -> None:
    """Tells what `gspo-rllib check-env` refuses: here no text is ever compared with a space."""
    for kind in ("observation_space", "action_space"):
        space = getattr(env, kind)
        if not (space.contains("") and space.contains("\u00e9 \n\u4e2d")) and log_once(f"gspo_rllib_{name}_{kind}"):
            logger.warning(
                "environment %s: its %s %s does not contain every text, and a model may write any. Texts are passed on "
                "all the same; `gspo-rllib check-env` refuses it. Use gspo_rllib.envs.UnicodeText().",
                name,
                kind,
                shown(space, 80),
            )


def check_played(config: Any) -> None:
    """``check_chats`` and ``check_context`` for what a config plays: for evaluation, another environment maybe.

    Args:
        config: An ``AlgorithmConfig`` whose model and environment were named.

    Raises:
        GSPOError: See those functions.
    """
    generation = GenerationSettings.of(config)
    room = resolve_max_model_len(generation.max_model_len, config.model_config)
    check_context(generation.max_tokens_per_turn, room=room)
    envs = [] if AgentSettings.of(config).plays else played_envs(config)
    check_chats(generation, config.model_config, envs, name=str(config.env), room=room)


def check_agent(
    agent: AgentSettings, generation: GenerationSettings, *, env: Any, curriculum: Sequence[Any] = ()
) -> None:
    """Refuses an agent that could not play, and settings that would have no effect on it.

    Args:
        agent: The agent's settings.
        generation: How text is sampled.
        env: The environment that is set, if any.
        curriculum: Stages of an environment, which an agent has none of.

    Raises:
        SettingError: The agent or its tasks cannot be found or are not what they must be, or a setting is refused.
    """
    if not agent.plays:
        given = [name for name in ("tasks", "addresses", "tool_parser") if getattr(agent, name) is not None]
        given += ["host"] if agent.host != LOOPBACK else []
        given += [f"workers={agent.workers!r}"] if agent.workers != "thread" else []
        if given:
            raise SettingError(f"agent.{given[0]} is set, but agent.play is not: name the function that plays.")
        return
    if env is not None:
        played_by = "agent.workers='external'" if agent.play is None else f"agent.play={agent.play!r}"
        raise SettingError(
            f"{played_by} and environment.env={env!r} are both set; an agent plays in place of an environment. Remove "
            "one of the two."
        )
    if curriculum:
        raise SettingError("training.curriculum has no effect on an agent: have its tasks say how hard they are.")
    if generation.edits_history:
        raise SettingError(
            f"generation.context_overflow is {generation.context_overflow!r}, which has no effect on an agent: it is "
            "told that its messages do not fit, and shortens them itself. Use 'truncate'."
        )
    if agent.tool_parser is not None and "vllm" not in available_engines():
        raise SettingError(
            f"agent.tool_parser={agent.tool_parser!r} is one of vLLM's, which is not installed: pip install "
            "'gspo-rllib[vllm]', or leave it None."
        )
    tasks = Tasks(agent.tasks)
    if agent.workers == "external":
        if agent.play is not None:
            raise SettingError(
                f"agent.play={shown(agent.play)} and agent.workers='external' are both set; a harness outside plays "
                "then, and nothing is started here. Remove one of the two."
            )
        check_external(agent)
    else:
        assert agent.play is not None
        find_play(agent.play)
        if agent.workers == "process":
            importable_name(agent.play)
        if agent.addresses is not None or agent.host != LOOPBACK:
            name = "host" if agent.addresses is None else "addresses"
            raise SettingError(f"agent.{name} is set, but has no effect unless agent.workers='external'.")
    if agent.workers != "thread":
        tasks.check_plain()
        check_server_packages(f"agent.workers={agent.workers!r}")


def check_devices(*, num_gpus_per_learner: float, num_env_runners: int, num_gpus_per_env_runner: float) -> None:
    """Warns where a GPU of this machine would not be used: RLlib gives nobody one who does not ask for it.

    Args:
        num_gpus_per_learner: GPUs of each learner; a part of one where it shares it.
        num_env_runners: Env runners in actors; with 0 the driver's sees whatever the driver sees.
        num_gpus_per_env_runner: GPUs of each of them.
    """
    import torch

    if not torch.cuda.is_available():
        return
    if not num_gpus_per_learner:
        logger.warning(
            "learners.num_gpus_per_learner is 0: learners train on the CPU, although this machine has a GPU. Set it to "
            "1, or to a part where learners and env runners in actors share one (0.5 each)."
        )
    if num_env_runners and not num_gpus_per_env_runner:
        logger.warning(
            "env_runners.num_gpus_per_env_runner is 0: env runners sample on the CPU, although this machine has a GPU "
            "(a vllm that is built for GPUs cannot). Set it to 1, or to a part of one that they share (0.5)."
        )


def check_context(max_tokens_per_turn: int, *, room: int) -> None:
    """Refuses a context that one reply would fill.

    Args:
        max_tokens_per_turn: Most tokens of one reply.
        room: Longest context, in tokens.

    Raises:
        SettingError: Nothing is left for a prompt.
    """
    if max_tokens_per_turn >= room:
        raise SettingError(
            f"generation.max_tokens_per_turn is {max_tokens_per_turn}, which leaves no room for a prompt in a "
            f"context of {room} tokens. Lower it or raise generation.max_model_len."
        )


def say_if_evaluation_repeats_training(num_tasks: int | None) -> None:
    """Warns where the tasks that are evaluated are the ones that are trained.

    Args:
        num_tasks: How many tasks both have in common; None where they cannot run out, or are others.
    """
    if num_tasks is not None:
        logger.warning(
            "evaluation plays the same %d tasks that are trained on: its success says how well they are known by now, "
            "not how well others would be solved. Give it others: "
            ".evaluation(evaluation_config={'env_config': {...}}).",
            num_tasks,
        )


def check_evaluation_runner(
    *, num_env_runners: int, evaluation_num_env_runners: int, create_local_env_runner: bool
) -> None:
    """Refuses an evaluation that RLlib could not start.

    Args:
        num_env_runners: Remote training runners.
        evaluation_num_env_runners: Remote evaluation runners.
        create_local_env_runner: Whether there is a local training runner beside the remote ones.

    Raises:
        SettingError: There is neither an evaluation runner nor a local one.
    """
    if num_env_runners and not evaluation_num_env_runners and not create_local_env_runner:
        raise SettingError(
            "env_runners.create_local_env_runner is False, but with evaluation.evaluation_num_env_runners=0 RLlib "
            "starts evaluations through the local one, which loads no model. Leave it True, or set "
            "evaluation_num_env_runners=1."
        )


def check_all_tasks(num_tasks: int | None, env: Any, unit: str) -> None:
    """Refuses ``evaluation_duration="all"`` where there is no such thing.

    Args:
        num_tasks: How many tasks the evaluation's environment counts; None where it does not.
        env: The environment, as messages call it.
        unit: What the duration is counted in.

    Raises:
        SettingError: Tasks are not counted, or the unit is another.
    """
    if num_tasks is None:
        raise SettingError(
            f"evaluation.evaluation_duration is 'all', but the environment {env} does not count its tasks (it has no "
            "num_tasks()), so there is no 'every' one. Give a number of episodes."
        )
    if unit != "episodes":
        raise SettingError(
            f"evaluation.evaluation_duration_unit is {unit!r}, but an evaluation_duration of 'all' means every task; "
            "set it to 'episodes'."
        )
