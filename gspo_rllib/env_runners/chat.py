"""Renders a conversation as token ids, append-only: nothing already in the context is ever tokenised again.

The yardstick is what transformers makes of the whole conversation (``apply_chat_template``). The chat template is
asked what it writes *around* a message; those frames are tokenised once, and each observation with the text that
touches it (see ``gspo_rllib.chat.frames``), as foreign text, so that text which spells an added token (an end-of-turn
marker, ``<tool_call>``) can never forge one. A turn's ids are ``frame + observation + frame``.

Some consequences are on purpose, because the ratio of the trained to the sampling policy only exists for ids that were
really in the context: what a template rewrites in earlier turns (it drops their reasoning, or the space before a
reply) stays as it was sampled, and what it moves to the latest turn (system prompt, tools) stays at the first.

Tools are declared once, before the first observation. A template that does not show them gets them as plain text in
the system message, so the policy knows of them in any case. A system prompt that the template does not take begins the
first observation; what tools return is a user message where it has no such role.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gspo_rllib.chat.format import ChatFormat
from gspo_rllib.chat.frames import OBSERVATION, REPLY, Frame, NotWritten, make_frame
from gspo_rllib.chat.template import Message, Refused
from gspo_rllib.types import ChatSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEDY = "Use the template that the model was trained with, or one that copies `message.content`."


class ChatRenderer:
    """Turns observations into the token ids they add to the context.

    Args:
        tokenizer: Has a chat template and an ``eos_token``.
        chat: The environment's framing; None for no system prompt.
        end_token_ids: Ids that the model declares to end a text, beside the tokenizer's own.
        template_kwargs: Passed to the chat template; where the environment's framing names one too, these hold.
        known: How the model writes conversations, where that is known already; see ``reframed``.

    Attributes:
        chat: The environment's framing.
        format: How the model writes a conversation; shared by renderers of other framings.

    Raises:
        SettingError: The chat template may not be given one of ``template_kwargs``.
        ModelError: The chat template does not write observations or replies out as they are, or refuses a role;
            raised at the first prompt that needs it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat: ChatSpec | None = None,
        *,
        end_token_ids: Iterable[int] = (),
        template_kwargs: Mapping[str, Any] | None = None,
        known: ChatFormat | None = None,
    ) -> None:
        self.chat = chat or ChatSpec()
        self._tokenizer = tokenizer
        self._end_token_ids = tuple(end_token_ids)
        self._run_kwargs = dict(template_kwargs or {})
        kwargs = {**self.chat.template_kwargs, **self._run_kwargs}
        if known is None or known.template.kwargs != kwargs:
            known = ChatFormat(tokenizer, end_token_ids=self._end_token_ids, template_kwargs=kwargs)
        self.format = known
        self._next: dict[str, Frame] = {}
        self._cut: dict[tuple[str, int], Frame] = {}
        self._contexts: dict[str, tuple[list[Message], tuple[dict[str, Any], ...]]] = {}

    def reframed(self, chat: ChatSpec | None) -> ChatRenderer:
        """A renderer of the same model's conversations for another framing; what is known of the model is kept."""
        return ChatRenderer(
            self._tokenizer,
            chat,
            end_token_ids=self._end_token_ids,
            template_kwargs=self._run_kwargs,
            known=self.format,
        )

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a reply: the chat template's own first, then those that model and tokenizer declare."""
        return self.format.end.stop_token_ids

    @cached_property
    def own_stop(self) -> tuple[str, ...]:
        """Strings that end a reply in the chat template, where no id does; mostly none."""
        own = self.format.end.stop_string
        return () if own is None else (own,)

    @cached_property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a reply: the environment's, and the template's where no id does."""
        return (*self.chat.stop, *self.own_stop)

    def first_prompt(self, observation: str) -> list[int]:
        """Ids of the system prompt, the first observation, and the header of the reply."""
        return self._first.ids(observation)

    def next_prompt(self, observation: str, *, reply_ended: bool, role: str = "user") -> list[int]:
        """Ids to append after a reply of which only this is known; see ``prompt_after``.

        Args:
            observation: What the environment answered.
            reply_ended: Whether the reply holds the template's own end already.
            role: Role of the observation, ``"user"`` or ``"tool"``.
        """
        end = self.format.end
        if reply_ended and end.stop_string is not None:
            return self._cut_frame(role, end.held_text).ids(observation)
        return self.frame(role).ids(observation, end.ids[-1] if reply_ended else None)

    def prompt_after(self, reply: Sequence[int], observation: str, *, role: str = "user") -> list[int]:
        """Ids to append after a reply: what is left of its end, and the next observation.

        The template's end always follows a reply in full. A reply that stopped at another id (the end of the whole
        text, say) has that id and then the template's end; one that ran out of tokens, or ended with one of the
        environment's strings, has the template's end alone.

        Args:
            reply: The ids of the reply, as they were sampled.
            observation: What the environment answered.
            role: Role of the observation, ``"user"`` or ``"tool"``.
        """
        if self.format.end.stop_string is not None:
            return self._after_text(reply, role).ids(observation)
        frame = self._next.get(role) or self.frame(role)
        return frame.ids(observation, reply[-1] if reply else None)

    def reply(self, text: str, *, ended: bool = True) -> list[int]:
        """Ids of a reply as the model should sample it; for imitation.

        Args:
            text: What it says.
            ended: Whether it has its end.
        """
        return self.format.reply(text, follows_token=self._asked_by_token, ended=ended)

    def decode(self, action_token_ids: Sequence[int]) -> str:
        """The text of a sampled reply; what the environment receives as its action. See ``ChatFormat.decode``."""
        return self.format.decode(action_token_ids)

    def opening_messages(self, content: str) -> list[Message]:
        """The messages of a conversation that begins with this observation."""
        prompt = self._system_prompt
        if prompt is None:
            return [{"role": "user", "content": content}]
        if self.format.system_role is not None:
            return [{"role": "user", "content": f"{prompt}\n\n{content}"}]
        return [{"role": "system", "content": prompt}, {"role": "user", "content": content}]

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        """The tools that the chat template is given; none where it does not show them."""
        return self.chat.tools if self.chat.tools and self._shows_tools else ()

    @cached_property
    def moved(self) -> tuple[str, ...]:
        """What the template shows with the latest user message alone, and is kept with the first here."""
        found = []
        if self._system_prompt is not None and self.format.is_moved(self.opening_messages(".")[:-1], ()):
            found.append("system prompt")
        if self.tools and self.format.is_moved([], self.tools):
            found.append("tools")
        return tuple(found)

    def text(self, content: str, role: str | None = None) -> str:
        """A rendered conversation that ends with this observation and the header of the next reply.

        Args:
            content: The observation.
            role: The role it has after a (marked) reply; None where the conversation begins with it.
        """
        if role is None:
            messages, tools = self.opening_messages(content), self.tools
        else:
            system, tools = self._context(role)
            messages = [*system, *self.format.told(role, content)]
        return self.format.template.render(messages, tools) + self.format.opening.missing

    @cached_property
    def _first(self) -> Frame:
        try:
            return make_frame(self.format.tokens, self.text)
        except (Refused, NotWritten) as error:
            raise type(error)(f"{str(error).removesuffix('.')}. {_REMEDY}") from error

    def frame(self, role: str) -> Frame:
        """The frame of an observation that follows a reply."""
        if role not in self._next:
            self._next[role] = self._next_frame(role)
        return self._next[role]

    def _next_frame(self, role: str) -> Frame:
        try:
            if self._context(role) == ([], ()):
                return self.format.next_frame(role)
            return self.format.frame_after(lambda content: self.text(content, role))
        except (Refused, NotWritten) as error:
            raise type(error)(
                f"{str(error).removesuffix('.')}. Only episodes of one turn can be played with this chat template: "
                "set generation(max_turns=1), or use one that takes conversations."
            ) from error

    def _context(self, role: str) -> tuple[list[Message], tuple[dict[str, Any], ...]]:
        """The system message and the tools, where they change what follows a reply and are to stay there."""
        if role not in self._contexts:
            system = [] if self._system_prompt is None else self.opening_messages(".")[:-1]
            tools = self.tools
            self._contexts[role] = self.format.context_after(self.format.told(role, OBSERVATION), system, tools)
        return self._contexts[role]

    def _after_text(self, reply: Sequence[int], role: str) -> Frame:
        """The frame after a reply that text ends: what the policy wrote of that text is not written again."""
        form = self.format
        held = form.text_held(reply, lambda: form.closing(form.told(role, OBSERVATION), (), ())[1])
        return self._cut_frame(role, held) if held else self.frame(role)

    def _cut_frame(self, role: str, held: int) -> Frame:
        """The frame of an observation after a reply that holds this many characters of its end."""
        key = (role, held)
        if key not in self._cut:
            template, told = self.format.template, self.format.told

            def render(content: str) -> str:
                before, reply, closing = template.render(told(role, content)).rpartition(REPLY)
                return before + reply + closing[held:] + self.format.opening.missing

            self._cut[key] = self.format.frame_after(render)
        return self._cut[key]

    @cached_property
    def _system_prompt(self) -> str | None:
        prompt = self.chat.system_prompt
        return _with_tools(prompt, self.chat) if self.chat.tools and not self._shows_tools else prompt

    @cached_property
    def _shows_tools(self) -> bool:
        """Whether the template writes the name of every tool once more when it is given the tools."""
        prompt = self.chat.system_prompt
        taken = prompt is not None and self.format.system_role is None
        messages = [{"role": "system", "content": prompt or ""}] if taken else []
        messages.append({"role": "user", "content": OBSERVATION})
        withheld = self.format.template.render(messages)
        try:
            given = self.format.template.render(messages, self.chat.tools)
        except Refused:
            return False
        names = [tool["function"]["name"] for tool in self.chat.tools]
        return all(given.count(name) > withheld.count(name) for name in names)

    @cached_property
    def _asked_by_token(self) -> bool:
        """Whether the header of a reply ends with a token, not with text."""
        prompt = self._first
        return bool(prompt.rest) and prompt.rest[-1] in self.format.tokens.structural


def _with_tools(system_prompt: str | None, chat: ChatSpec) -> str:
    """A system prompt that ends with the declarations of the tools, one per line."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in chat.tools]
    declarations = "\n".join(["You can use these tools:", *lines, chat.tool_syntax])
    return declarations if not system_prompt else f"{system_prompt}\n\n{declarations}"
