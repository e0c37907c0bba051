"""Replies to whoever asks: an env runner's engine answers messages or an observation, outside of any trajectory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gspo_rllib.agents.messages import Message, RequestRefused, checked_messages, checked_tools
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import Generation, GenerationRequest
from gspo_rllib.env_runners.background import check_free
from gspo_rllib.env_runners.engine_spec import load_message_renderer
from gspo_rllib.env_runners.engine_user import EngineUser, first_use
from gspo_rllib.errors import SettingError
from gspo_rllib.seeds import derive_seed

if TYPE_CHECKING:
    from gspo_rllib.env_pool.factory import LanguageEnvSpec
    from gspo_rllib.env_runners.rollout_parts import RolloutParts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How replies are sampled.

    Attributes:
        max_tokens: Most tokens of one reply; fewer where the context ends.
        temperature: 0 takes the likeliest token.
        seed: Fixes the samples.
    """

    max_tokens: int
    temperature: float
    seed: int


class AnswersMessages(EngineUser):
    """The part of an env runner that answers whoever asks; comes before RLlib's ``EnvRunner`` among the bases."""

    config: Any
    _parts: RolloutParts
    _env_spec: LanguageEnvSpec

    def reply_to(
        self, conversations: Sequence[Any], asking: Asking, *, tools: Any = None, template_kwargs: Any = None
    ) -> list[str]:
        """The policy's replies to conversations, in their order; all are sampled at a time.

        Args:
            conversations: Each a list of messages (``{"role": ..., "content": ...}``).
            asking: How replies are sampled.
            tools: Functions the policy is told of, as OpenAI's API has them; None for none.
            template_kwargs: Further arguments of the chat template.

        Raises:
            SettingError: A conversation cannot be written, or leaves no room for a reply.
            EngineError: The engine failed, or a thread is sampling on it.
        """
        renderer = self._message_renderer
        try:
            told = checked_tools(tools)
            kwargs = renderer.checked_template_kwargs(template_kwargs)
            prompts = [renderer.full(self._messages(messages), told, kwargs) for messages in conversations]
        except RequestRefused as error:
            raise SettingError(f"generate: {error}") from None
        return self._sample(prompts, asking, stop=renderer.stop, decode=renderer.decode)

    def act_on(self, observation: str, asking: Asking) -> str:
        """The policy's action on an environment's first observation, framed as in training.

        Args:
            observation: The observation.
            asking: How it is sampled.

        Raises:
            SettingError: The observation leaves no room for a reply.
            ModelError: The chat template cannot frame it.
            EngineError: The engine failed, or a thread is sampling on it.
        """
        renderer = self._parts.renderer_for(self._env_spec.chat)
        prompt = renderer.first_prompt(observation)
        return self._sample([prompt], asking, stop=renderer.stop, decode=renderer.decode)[0]

    def _sample(
        self,
        prompts: Sequence[list[int]],
        asking: Asking,
        *,
        stop: tuple[str, ...],
        decode: Callable[[Sequence[int]], str],
    ) -> list[str]:
        engine = self._acquire_engine()
        check_free(engine)
        for number, prompt in enumerate(prompts):
            if len(prompt) >= engine.max_model_len:
                raise SettingError(
                    f"conversation {number} has {len(prompt)} tokens, which leaves no room for a reply in a context of "
                    f"{engine.max_model_len}. Shorten it, or raise generation.max_model_len."
                )
        done: dict[str, Generation] = {}
        names = [f"reply/{number}" for number in range(len(prompts))]
        with first_use(engine):
            try:
                for number, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
                    room = engine.max_model_len - len(prompt)
                    seed = derive_seed(asking.seed, "reply", number, bits=31)
                    engine.submit(
                        GenerationRequest(
                            name, prompt, min(asking.max_tokens, room), asking.temperature, seed, stop=stop
                        )
                    )
                while engine.has_work():
                    with registry.watched(engine):
                        done.update((generation.request_id, generation) for generation in engine.step())
            except BaseException:
                engine.abort(names)  # an engine that keeps requests would refuse the next weights
                raise
        return [decode(done[name].token_ids) for name in names]

    @staticmethod
    def _messages(messages: Any) -> list[Message]:
        if isinstance(messages, str):
            return [{"role": "user", "content": messages}]
        return checked_messages([dict(m) if isinstance(m, Mapping) else m for m in messages])

    @cached_property
    def _message_renderer(self) -> MessageRenderer:
        return load_message_renderer(self._parts.settings, self.config.model_config)
