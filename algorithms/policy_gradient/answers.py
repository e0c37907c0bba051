"""The policy that is being trained answers whoever asks: messages, an observation, or its module itself."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.driver.protocol import GroupSource
from gspo_rllib.env_runners.replies import Asking
from gspo_rllib.errors import ArgumentError, EngineError, SettingError, did_you_mean, shown
from gspo_rllib.knobs import plain
from gspo_rllib.runner_calls import RunnerCall, returned
from gspo_rllib.value_forms import is_finite
from gspo_rllib.weight_sync import Weights

_T = TypeVar("_T")

_HABITS = {
    **dict.fromkeys(("max_new_tokens", "max_length", "max_completion_tokens"), "Use max_tokens."),
    "do_sample": "Use temperature: 0 takes the likeliest token.",
    **dict.fromkeys(("n", "num_return_sequences"), "Give the conversation several times: generate([messages] * 4)."),
    **dict.fromkeys(("top_p", "top_k", "min_p"), "Replies are sampled as in training: use temperature."),
}
"""What other libraries' users ask ``generate`` for, and what does the same."""

Conversation = str | Sequence[Mapping[str, Any]]
"""Messages, as chat templates take them; a text stands for one user message."""


class AnswersQuestions:
    """The methods that ask the policy; comes before RLlib's ``Algorithm`` among the bases."""

    config: Any
    env_runner_group: EnvRunnerGroup
    learner_group: Any
    _source: GroupSource
    _weights: Weights

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, to a type checker
        self,
        messages: Conversation,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str: ...

    @overload
    def generate(
        self,
        messages: Sequence[Conversation],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]: ...

    def generate(
        self,
        messages: Any,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> Any:
        """The current policy's reply, from the engine of an env runner: of the first one that lives.

        Training groups that are in flight wait meanwhile.

        Args:
            messages: A conversation (``[{"role": "user", "content": "..."}]``, or a text for one user message), or a
                list of conversations.
            max_tokens: Most tokens of one reply; None for ``generation.max_tokens_per_turn``.
            temperature: 0 takes the likeliest token; None for ``generation.temperature``.
            seed: Fixes the samples; None draws new ones with every call.
            tools: Functions the policy is told of, as OpenAI's API has them.
            template_kwargs: Further arguments of the chat template.
            unknown: Refused.

        Returns:
            The reply as text, without its end; a list of them for a list of conversations.

        Raises:
            SettingError: The conversation cannot be written, or leaves no room for a reply.
            EngineError: No env runner lives, or its engine failed.
        """
        for name in unknown:
            remedy = _HABITS.get(name) or did_you_mean(name, ("max_tokens", "temperature", "seed", "tools"))
            raise ArgumentError(f"generate: {name} is unknown. {remedy}")
        single = isinstance(messages, str) or (_is_list(messages) and all(isinstance(m, Mapping) for m in messages))
        if not _is_list(messages) and not isinstance(messages, str):
            raise SettingError(
                f"generate: messages is {shown(messages)}; it must be a text, a list of messages, or a list of those."
            )
        conversations = [messages] if single else list(messages)
        for conversation in conversations:
            if not (isinstance(conversation, str) or _is_list(conversation)) or not conversation:
                raise SettingError(
                    f"generate: a conversation is {shown(conversation)}; it must be a text, or a list of messages such "
                    "as {'role': 'user', 'content': '...'}, and not empty."
                )
        asking = self._asking(max_tokens, temperature, seed)
        replies = self._ask(
            lambda runner: runner.reply_to(conversations, asking, tools=tools, template_kwargs=template_kwargs)
        )
        return replies[0] if single else replies

    def compute_single_action(self, observation: str, *, explore: bool | None = None, seed: int | None = None) -> str:
        """The current policy's action on an environment's first observation, framed as in training.

        A later turn is one of a conversation, which an observation alone does not tell: use ``generate``.

        Args:
            observation: What ``env.reset()`` returned.
            explore: False takes the likeliest token at each place; None for ``config.explore``.
            seed: Fixes the samples; None draws new ones with every call.

        Raises:
            SettingError: The observation is no text, or leaves no room for a reply.
            EngineError: No env runner lives, or its engine failed.
        """
        if not isinstance(observation, str):
            raise SettingError(f"compute_single_action: observation is {shown(observation)}; it must be a text.")
        if not isinstance(explore, bool | None):
            raise SettingError(f"compute_single_action: explore is {shown(explore)}; allowed: True, False, None.")
        explores = self.config.explore if explore is None else explore
        asking = self._asking(None, None if explores else 0.0, seed)
        action: str = self._ask(lambda runner: runner.act_on(observation, asking))
        return action

    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> RLModule:
        """The policy's module: the learner's own, or a copy of its weights where the learners are in actors.

        It scores tokens (``forward_train``), with an attention for packed rows: its ``model`` is not made to be called.
        To sample, use ``generate``; for a model of transformers, ``gspo-rllib export``.

        Raises:
            SettingError: There is no module of that name, or it has an adapter and the learners are in actors.
        """
        if module_id != DEFAULT_MODULE_ID:
            raise SettingError(f"get_module: there is one module, {DEFAULT_MODULE_ID!r}, none called {module_id!r}.")
        if self.learner_group.is_local:
            (own,) = self.learner_group.foreach_learner(lambda learner: learner.module[module_id].unwrapped())
            module: RLModule = own.get()
            return module
        if self.config.model_config.get("lora") is not None:
            raise SettingError(
                "get_module: the policy has an adapter, and its learners are in actors. Save a checkpoint and use "
                "`gspo-rllib export --merge`, or ask with generate."
            )
        spaces = self.env_runner_group.get_spaces()
        built: Any = self.config.get_rl_module_spec(spaces=spaces, inference_only=True).build()
        named = Weights(self.learner_group, dtype="float32").on_host()
        built.model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in named.items()})
        module_copy: RLModule = built
        return module_copy

    def _asking(self, max_tokens: int | None, temperature: float | None, seed: int | None) -> Asking:
        max_tokens, temperature, seed = map(plain, (max_tokens, temperature, seed))
        for name, value, fits, allowed in (
            ("max_tokens", max_tokens, lambda v: isinstance(v, int) and v >= 1, "int >= 1"),
            ("temperature", temperature, lambda v: is_finite(v) and v >= 0, "float >= 0"),
            ("seed", seed, lambda v: isinstance(v, int), "int"),
        ):
            if value is not None and (isinstance(value, bool) or not fits(value)):
                raise SettingError(f"generate: {name} is {shown(value)}; allowed: {allowed}, or None.")
        return Asking(
            max_tokens=self.config.max_tokens_per_turn if max_tokens is None else max_tokens,
            temperature=self.config.temperature if temperature is None else float(temperature),
            seed=secrets.randbits(31) if seed is None else seed,
        )

    def _ask(self, question: Callable[[Any], _T]) -> _T:
        fleet = Fleet.of(self.env_runner_group)
        with self._source.paused():
            # A runner in the background, or one that was restarted, may hold older weights.
            self._weights.push(fleet)
            if fleet.is_local:
                return question(fleet.local_env_runner)
            alive = fleet.healthy()
            if not alive:
                raise EngineError("no env runner lives that could answer; train() brings them back.")
            ref = fleet.send(alive[0], RunnerCall(question))
            fleet.first_ready({ref: alive[0]})
            value, lost = fleet.answer(alive[0], ref)
        if lost is not None:
            raise EngineError(f"{lost}; ask again.")
        answer: _T = returned([value])[0]
        return answer


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
