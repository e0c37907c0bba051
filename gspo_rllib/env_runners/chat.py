"""Renders a conversation as token ids, append-only: nothing already in the context is ever tokenised again.

The chat template is asked once per role what it writes *around* a message. Those frames are tokenised once, with their
special tokens; each observation is then tokenised alone, as plain text, so text that spells a special token (say, an
end-of-turn marker inside a tool's output) can never forge a turn. A turn's ids are ``frame + observation + frame``.

One consequence is on purpose: a template that rewrites earlier assistant turns (by dropping their reasoning, for
example) does not do so here, because the ratio of the trained to the sampling policy only exists for ids that were
really in the context.

Tools are declared once, before the first observation. A template that does not show them gets them as plain text in
the system message, so the policy knows of them in any case.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gspo_rllib.errors import ModelError
from gspo_rllib.types import ChatSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OBSERVATION = "\u2983observation\u2984"
_REPLY = "\u2983reply\u2984"


class ChatRenderer:
    """Turns observations into the token ids they add to the context.

    Args:
        tokenizer: Has a chat template and an ``eos_token`` that closes an assistant message.
        chat: The environment's framing; None for no system prompt.

    Attributes:
        chat: The environment's framing.
        stop_token_ids: Ids that end an assistant message.

    Raises:
        ModelError: The chat template does not write observations or replies out as they are, or refuses a role;
            raised at the first prompt that needs it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: ChatSpec | None = None) -> None:
        self._tokenizer = tokenizer
        self.chat = chat or ChatSpec()
        self._first: tuple[list[int], list[int]] | None = None
        self._next: dict[tuple[str, bool], tuple[list[int], list[int]]] = {}
        self.stop_token_ids: tuple[int, ...] = (tokenizer.eos_token_id,)

    def first_prompt(self, observation: str) -> list[int]:
        """Ids of the system prompt, the first observation, and the header of the reply."""
        if self._first is None:
            text = self._template([*self._system(), {"role": "user", "content": _OBSERVATION}])
            self._first = self._frames(text)
        before, after = self._first
        return before + self._encode_plain(observation) + after

    def next_prompt(self, observation: str, *, reply_ended: bool, role: str = "user") -> list[int]:
        """Ids to append after a sampled reply: its closing (if the model did not sample it) and the next observation.

        Args:
            observation: What the environment answered.
            reply_ended: Whether the sampled reply ended with one of ``stop_token_ids``.
            role: Role of the observation, ``"user"`` or ``"tool"``.
        """
        key = (role, reply_ended)
        if key not in self._next:
            self._next[key] = self._frames(self._next_frame_text(role, reply_ended))
        before, after = self._next[key]
        return before + self._encode_plain(observation) + after

    def reply(self, text: str) -> list[int]:
        """Ids of a complete reply with its end token, as the model should sample it; for imitation."""
        return [*self._encode_plain(text), self.stop_token_ids[0]]

    def decode(self, action_token_ids: list[int]) -> str:
        """The text of a sampled reply, without special tokens; what the environment receives as its action."""
        text: str = self._tokenizer.decode(action_token_ids, skip_special_tokens=True)
        return text

    def _system(self) -> list[dict[str, str]]:
        prompt = self.chat.system_prompt
        if self.chat.tools and not self._shows_tools:
            prompt = _with_tools(prompt, self.chat)
        return [] if prompt is None else [{"role": "system", "content": prompt}]

    @cached_property
    def _shows_tools(self) -> bool:
        """Whether the template writes the name of every tool once more when it is given the tools."""
        prompt = self.chat.system_prompt
        messages = [] if prompt is None else [{"role": "system", "content": prompt}]
        messages.append({"role": "user", "content": _OBSERVATION})
        given, withheld = self._template(messages, tools=True), self._template(messages, tools=False)
        names = [tool["function"]["name"] for tool in self.chat.tools]
        return all(given.count(name) > withheld.count(name) for name in names)

    def _template(self, messages: list[dict[str, str]], tools: bool | None = None) -> str:
        from jinja2 import TemplateError

        if tools is None:
            tools = bool(self.chat.tools) and self._shows_tools
        declared: dict[str, Any] = {"tools": list(self.chat.tools)} if tools else {}
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **(declared | self.chat.template_kwargs)
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ModelError(
                f"the chat template refuses a conversation with the roles {roles}: {error}. Use a template that "
                "knows them, or an environment without a system prompt and with obs_role 'user'."
            ) from error
        return rendered

    def _next_frame_text(self, role: str, reply_ended: bool) -> str:
        text = self._template(
            [
                *self._system(),
                {"role": "user", "content": "."},
                {"role": "assistant", "content": _REPLY},
                {"role": role, "content": _OBSERVATION},
            ]
        )
        _, found, closing = text.rpartition(_REPLY)
        eos = self._tokenizer.eos_token
        if not found or not closing.startswith(eos):
            raise ModelError(
                f"the chat template does not close an assistant message with the tokenizer's eos_token {eos!r} (it "
                f"writes {closing[:40]!r}). Set eos_token to the token that ends an assistant message."
            )
        return closing.removeprefix(eos) if reply_ended else closing

    def _frames(self, text: str) -> tuple[list[int], list[int]]:
        before, found, after = text.partition(_OBSERVATION)
        if not found:
            raise ModelError(
                "the chat template does not write a message's content as it is, so observations cannot be framed; "
                "use a template that copies `message.content`."
            )
        return self._encode_frame(before), self._encode_frame(after)

    def _encode_frame(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        # A lone surrogate (json.loads makes them) has no UTF-8 form, and tokenizers raise on it: "?" takes its place.
        sound = text.encode("utf-8", errors="replace").decode("utf-8")
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        ids: list[int]
        if backend is None:
            ids = self._tokenizer.encode(sound, add_special_tokens=False, split_special_tokens=True)
            return ids
        # What transformers' encode does, without its per-call checks, which take as long as the encoding itself. It
        # sets this flag anew on each of its own calls, as it does truncation and padding.
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        ids = backend.encode(sound, add_special_tokens=False).ids
        return ids


def _with_tools(system_prompt: str | None, chat: ChatSpec) -> str:
    """A system prompt that ends with the declarations of the tools, one per line."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in chat.tools]
    declarations = "\n".join(["You can use these tools:", *lines, chat.tool_syntax])
    return declarations if not system_prompt else f"{system_prompt}\n\n{declarations}"
