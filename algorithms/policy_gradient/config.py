"""``PolicyGradientConfig``: RLlib's ``AlgorithmConfig`` with the settings every algorithm here shares."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.learner import LearnerConnectorPipeline
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.from_config import NotProvided
from ray.util.debug import log_once

from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.agents.tasks import Tasks
from gspo_rllib.algorithms.policy_gradient import adapter_checks, learner_checks, rllib_checks, validation
from gspo_rllib.algorithms.policy_gradient.derived import Derived
from gspo_rllib.algorithms.policy_gradient.engine_checks import check_engine_fits
from gspo_rllib.algorithms.policy_gradient.guarded_config import GuardedConfig, translated
from gspo_rllib.algorithms.policy_gradient.idle_settings import unread_settings
from gspo_rllib.algorithms.policy_gradient.reporting_settings import ReportingSettings
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.connectors import (
    EpisodesToTokens,
    GeneralAdvantageEstimation,
    GroupAdvantages,
    KLPenalty,
    OverlongPenalty,
    ReferenceLogProbs,
    group_estimator,
)
from gspo_rllib.driver.learner_team import LearnerTeam
from gspo_rllib.env_pool.factory import check_language_env_spec
from gspo_rllib.env_runners.agent_env_runner import AgentEnvRunner
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.env_runners.settings import GenerationSettings, GroupSettings
from gspo_rllib.errors import SettingError
from gspo_rllib.knobs import Settings, default_of, is_one_of, takes
from gspo_rllib.learners.sharding_settings import LearnersSettings
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.modules.model_config import check_model_config

_S = TypeVar("_S", bound=Settings)
# Builders decorated with ``takes`` are annotated with this variable, because mypy loses typing.Self there.
_Self = TypeVar("_Self", bound="PolicyGradientConfig")

if TYPE_CHECKING:

    class _FlatSettings(
        TrainingSettings, GenerationSettings, AgentSettings, ReportingSettings, LearnersSettings, GuardedConfig
    ):
        """A config as type checkers see it: every knob is an attribute of the type that its settings class declares."""

        def __init__(self, algo_class: type | None = None) -> None: ...

else:

    class _FlatSettings(GuardedConfig):
        """At run time ``__init__`` sets the knobs; what follows from them is the settings' own properties."""

    for _name, _property in vars(TrainingSettings).items():
        if isinstance(_property, property):
            setattr(_FlatSettings, _name, _property)


class PolicyGradientConfig(Derived, _FlatSettings):
    """Configures policy-gradient training of a language-model agent; each algorithm is a subclass with its defaults.

    A user of RLlib's PPO finds every builder where it is; ``generation`` and ``agent`` are the only new ones. Settings
    are checked when the algorithm is built (``build_algo``), all of them before the first actor starts.
    """

    evaluation_duration: int | str

    training_settings: ClassVar[type[TrainingSettings]] = TrainingSettings
    """What ``training`` takes; a related algorithm has other defaults here.

    One with knobs of its own subclasses ``TrainingSettings``, and writes
    ``training = takes(ItsSettings)(PolicyGradientConfig.training)`` below it if type checkers shall know them.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The builder's signature and docstring show the algorithm's own defaults.
        if "training_settings" in vars(cls):
            training: Any = takes(cls.training_settings)(inspect.unwrap(PolicyGradientConfig.training))
            # mypy takes a method that is assigned for a mistake; this one takes the same knobs as the one it replaces.
            cls.training = training  # type: ignore[method-assign]

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        groups: tuple[type[Settings], ...] = (GenerationSettings, AgentSettings, ReportingSettings, LearnersSettings)
        for settings in (self.training_settings, *groups):
            for field in dataclasses.fields(settings):
                setattr(self, field.name, default_of(field))
        self.framework_str = "torch"
        self.env_runner_cls = LanguageEnvRunner
        self.num_envs_per_env_runner = 32
        self.batch_mode = "complete_episodes"
        # A slow rollout is waited for: RLlib's time-outs would drop its groups without a message.
        self.sample_timeout_s = self.evaluation_sample_timeout_s = None
        # The algorithm pushes weights itself and has each runner acknowledge them.
        self._dont_auto_sync_env_runner_states = True
        self.add_default_connectors_to_env_to_module_pipeline = False
        self.add_default_connectors_to_module_to_env_pipeline = False
        self.add_default_connectors_to_learner_pipeline = False
        # A failed runner comes back within an iteration, a stopped one within 30 s, instead of RLlib's minutes.
        self.delay_between_env_runner_restarts_s, self.env_runner_health_probe_timeout_s = 1.0, 10.0
        self.env_runner_restore_timeout_s = 300.0
        self._model_config: dict[str, Any] = {}

    @takes(TrainingSettings)
    def training(self: _Self, **kwargs: Any) -> _Self:
        """Sets the objective, the optimiser and the batch.

        A Tune search space may stand for any value. Type checkers do not know that; they accept
        ``update_from_dict({"lr": tune.grid_search([1e-6, 1e-5])})``.
        """
        super().training(**kwargs)
        # Tune moves trials elsewhere.
        if isinstance(self.recorded_groups, str):
            self.recorded_groups = os.path.abspath(os.path.expanduser(self.recorded_groups))
        return self

    @takes(GenerationSettings)
    def generation(self: _Self, **kwargs: Any) -> _Self:
        """Sets how the env runners sample text."""
        del kwargs  # every accepted name is a setting
        return self

    @takes(AgentSettings)
    def agent(self: _Self, **kwargs: Any) -> _Self:
        """Has a function of your own, or a harness outside, play the trajectories in place of an environment."""
        del kwargs  # every accepted name is a setting
        # Tune moves trials elsewhere.
        if isinstance(self.tasks, str) and os.path.isfile(self.tasks):
            self.tasks = os.path.abspath(self.tasks)
        if isinstance(self.addresses, str) and self.addresses:
            self.addresses = os.path.abspath(os.path.expanduser(self.addresses))
        plays = self.play is not None or is_one_of(self.workers, ("external",))
        self.env_runner_cls = AgentEnvRunner if plays else LanguageEnvRunner
        return self

    if TYPE_CHECKING:

        def reporting(self, *, keep_trajectories: int = ..., **kwargs: Any) -> Self:
            """For type checkers, who know nothing of RLlib's own arguments."""

        def learners(self, *, sharding: Literal["none", "fsdp2"] = ..., **kwargs: Any) -> Self:
            """The same."""

    else:

        @takes(ReportingSettings)
        def reporting(self, **kwargs: Any) -> Self:
            """RLlib's ``reporting``; and how many trajectories are kept to be looked at."""
            super().reporting(**kwargs)
            return self

        @takes(LearnersSettings)
        def learners(self, **kwargs: Any) -> Self:
            """RLlib's ``learners``; and whether each holds all of the model."""
            super().learners(**kwargs)
            return self

    def rl_module(self, *, model_config: dict[str, Any] | Any = NotProvided, **kwargs: Any) -> Self:
        """RLlib's ``rl_module``; a ``path`` that is a folder here becomes absolute, as Tune moves trials elsewhere."""
        path = model_config.get("path") if isinstance(model_config, dict) else None
        if isinstance(path, str | os.PathLike) and os.path.isdir(folder := os.path.expanduser(path)):
            model_config = {**model_config, "path": os.path.abspath(folder)}
        super().rl_module(model_config=model_config, **kwargs)
        return self

    def settings(self, kind: type[_S]) -> _S:
        """The current values of one group of settings, checked.

        Raises:
            SettingError: A value is illegal.
        """
        return kind.of(self)

    def validate(self) -> None:
        """Checks every setting, the environment or agent, and the model; called when the algorithm is built.

        Raises:
            SettingError: A setting is unknown or illegal, settings together would not do what they are called, or the
                agent or its tasks cannot be found.
            EnvError: The environment does not exist, or does not speak text.
            ModelError: The model folder cannot be used.
            EngineError: The chosen engine is not installed.
        """
        self._resolve_env_runner()
        rllib_checks.check_attributes(self, _defaults())
        model_config = check_model_config(self._model_config)
        generation = self.settings(GenerationSettings)
        if not self.in_evaluation:
            validation.check_training(
                self.settings(self.training_settings),
                generation,
                recomputes_old_log_probs=self.recompute_old_log_probs,
                explore=self.explore,
            )
        validation.check_generation(
            generation, num_envs_per_env_runner=self.num_envs_per_env_runner, training=not self.in_evaluation
        )
        training = self.settings(self.training_settings)
        validation.check_recorded_file(training)
        validation.check_models(training, model_config, training=not self.in_evaluation)
        adapter_checks.check(self, generation, model_config)
        self.settings(ReportingSettings)
        learner_checks.check(self, model_config)
        agent = self.settings(AgentSettings)
        validation.check_agent(agent, generation, env=self.env, curriculum=self.curriculum)
        validation.check_played(self)
        if not self.in_evaluation:
            for problem in unread_settings(generation, agent):
                raise SettingError(problem)
            self._check_evaluation()
        check_engine_fits(self, generation, model_config)
        if not self.in_evaluation:
            validation.check_devices(
                num_gpus_per_learner=self.num_gpus_per_learner,
                num_env_runners=self.num_env_runners,
                num_gpus_per_env_runner=self.num_gpus_per_env_runner,
            )
        # Marks RLlib's notice about its new API stack as given: these algorithms have no other.
        log_once(f"{self.algo_class.__name__}_on_new_api_stack")
        with self._duration_as_rllib_knows_it():
            super().validate()

    @property
    def num_tasks(self) -> int | None:
        """How many tasks the environment, or the agent's file, counts; None where it does not."""
        agent = self.settings(AgentSettings)
        if agent.plays:
            return Tasks(agent.tasks).count
        return check_language_env_spec(self.env, self.env_config).num_tasks

    def _resolve_env_runner(self) -> None:
        """Takes the runner for an agent, or for an environment, where attributes or a dict changed which is played."""
        runners = (LanguageEnvRunner, AgentEnvRunner)
        wanted = AgentEnvRunner if self.settings(AgentSettings).plays else LanguageEnvRunner
        if any(self.env_runner_cls is runner for runner in runners) and self.env_runner_cls is not wanted:
            self.env_runner_cls = wanted

    def _check_evaluation(self) -> None:
        if isinstance(self.evaluation_config, Mapping):
            kinds = (self.training_settings, ReportingSettings, LearnersSettings)
            trained = {field.name for kind in kinds for field in dataclasses.fields(kind)} - {"group_size"}
            rllib_checks.check_evaluation_keys(self.evaluation_config, self, trains=trained)
        with self._duration_as_rllib_knows_it(), translated("evaluation.evaluation_config"):
            evaluation = self.get_evaluation_config_object() or self
        rllib_checks.check_attributes(evaluation, _defaults())
        try:
            for kind in (GenerationSettings, AgentSettings, GroupSettings):
                kind.of(evaluation)
        except SettingError as error:
            raise SettingError(f"evaluation.evaluation_config: {error}") from error
        if not self.evaluation_interval:
            return
        validation.check_evaluation_runner(
            num_env_runners=self.num_env_runners,
            evaluation_num_env_runners=self.evaluation_num_env_runners,
            create_local_env_runner=self.create_local_env_runner,
        )
        validation.check_played(evaluation)
        played = [(c.env, c.env_config, c.play, c.tasks) for c in (evaluation, self)]
        num_tasks = evaluation.num_tasks
        if played[0] == played[1]:
            validation.say_if_evaluation_repeats_training(num_tasks)
        if self.plays_all_tasks:
            played_by = evaluation.play or evaluation.env or "the harness outside"
            validation.check_all_tasks(num_tasks, played_by, self.evaluation_duration_unit)

    @property
    def plays_all_tasks(self) -> bool:
        """Whether an evaluation plays every task that its environment counts, each once per member of a group."""
        return self.evaluation_duration == "all"

    @contextlib.contextmanager
    def _duration_as_rllib_knows_it(self) -> Iterator[None]:
        # RLlib takes a number or "auto" only.
        duration = self.evaluation_duration
        self.evaluation_duration = 1 if duration == "all" else duration
        try:
            yield
        finally:
            self.evaluation_duration = duration

    def get_evaluation_config_object(self) -> AlgorithmConfig | None:
        """RLlib's evaluation config, with one trajectory per task unless the overrides say otherwise.

        Another environment starts from no settings: those of training's would not fit it.
        """
        config = super().get_evaluation_config_object()
        overrides = self.evaluation_config or {}
        if config is not None:
            # RLlib sets them for its own env runners; here trajectories are played to their end whatever they say.
            for name in ("batch_mode", "rollout_fragment_length"):
                setattr(config, name, overrides.get(name, getattr(self, name)))
        if config is not None and isinstance(overrides, dict):
            if "group_size" not in overrides:
                config.group_size = 1
            if "env" in overrides:
                config.env_config = dict(overrides.get("env_config") or {})
        return config

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        # RLlib's own entries describe its default networks and would be unknown keys here.
        return {"use_critic": self.uses_critic, **self._sampling, **learner_checks.module_settings(self)}

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """A causal language model."""
        return RLModuleSpec(module_class=CausalLMModule)

    def get_default_learner_class(self) -> type:
        """The learner that computes sequence-level ratios."""
        from gspo_rllib.algorithms.policy_gradient.learner import PolicyGradientLearner

        return PolicyGradientLearner

    def build_learner_group(
        self,
        *,
        env: Any = None,
        spaces: dict[str, tuple[gym.Space, gym.Space]] | None = None,
        rl_module_spec: Any = None,
        placement_group: Any = None,
    ) -> LearnerTeam:
        """RLlib's, of learners that are rebuilt where one is lost."""
        spec = self.get_multi_rl_module_spec(env=env, spaces=spaces) if rl_module_spec is None else rl_module_spec
        return LearnerTeam(config=self.copy(), module_spec=spec, placement_group=placement_group)

    def build_learner_connector(
        self,
        input_observation_space: gym.Space | None,
        input_action_space: gym.Space | None,
        device: Any = None,
    ) -> LearnerConnectorPipeline:
        """Whole groups of episodes -> token trajectories -> shaped rewards -> advantages."""
        pipeline = super().build_learner_connector(input_observation_space, input_action_space, device)
        spaces = (input_observation_space, input_action_space)
        max_tokens = self.max_tokens_per_micro_batch
        pipeline.append(EpisodesToTokens(*spaces))
        if self.kl_coeff:
            pipeline.append(ReferenceLogProbs(*spaces, model_config=self._reference_config, max_tokens=max_tokens))
            if not self.penalises_in_loss:
                pipeline.append(KLPenalty(*spaces, kl_coeff=self.kl_coeff, kl_estimator=self.kl_estimator))
        if self.overlong_tokens is not None:
            pipeline.append(OverlongPenalty(*spaces, max_tokens=self.overlong_tokens, buffer=self.overlong_buffer))
        if self.uses_critic:
            gae = GeneralAdvantageEstimation(*spaces, gamma=self.gamma, lambda_=self.lambda_, max_tokens=max_tokens)
            pipeline.append(gae)
        else:
            estimator = group_estimator(
                self.advantage_estimator,
                gamma=self.gamma,
                step_weight=self.step_advantage_weight,
                part_weights=self.reward_part_weights,
            )
            pipeline.append(GroupAdvantages(*spaces, estimator=estimator))
        return pipeline

    @property
    def _reference_config(self) -> dict[str, Any] | None:
        own = adapter_checks.reference_settings(self._model_config, self.reference_path)
        return None if own is None else {**own, **({"revision": None} if self.reference_path else {}), **self._sampling}

    @property
    def _sampling(self) -> dict[str, Any]:
        """How the policy is sampled, as far as a module that scores must know."""
        return {"temperature": self.temperature, "max_model_len": self.max_model_len}


@functools.cache
def _defaults() -> dict[str, Any]:
    """The attributes of a config in which nobody has set anything."""
    return dict(vars(PolicyGradientConfig()))
