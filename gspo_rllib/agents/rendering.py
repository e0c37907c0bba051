"""Messages and tools as token ids: a whole conversation, or the bridge from a sampled reply to what follows it.

The bridge is what the chat template writes after an assistant message. It is asked with a stand-in for the reply, so it
does not depend on what the template does to earlier turns: the ids before it are those the engine saw.

Text of a client that spells a special token is encoded as plain text, so it cannot forge a turn: the template sees one
private character in its place. Nothing a client sent is run.

A template may know neither tools nor calls of them. Then the system message declares the tools, and a call is written
as text, so that nothing a client sent is left out in silence.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gspo_rllib.agents.messages import Message, RequestRefused
from gspo_rllib.envs.tools.calls import render_tool_call
from gspo_rllib.errors import shown
from gspo_rllib.types import ChatSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PRIVATE = 0xF0000  # first character of a Unicode plane for private use: as many stand-ins as a text could need
_MOST_PRIVATE = 0xFFFD
_MOST_REMEMBERED = 1000
_STAND_IN = re.compile(f"[{chr(_PRIVATE)}-{chr(_PRIVATE + _MOST_PRIVATE)}]")


class MessageRenderer:
    """Writes conversations with a tokenizer's chat template.

    Args:
        tokenizer: Has a chat template and an ``eos_token`` that closes an assistant message.
        stop_token_ids: Ids that end an assistant message.

    Attributes:
        stop_token_ids: Ids that end an assistant message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.stop_token_ids = tuple(stop_token_ids)
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        # Longest first: one special token may begin with another. Stand-ins a client sends itself are plain text too.
        spelled = sorted((text for text in special if text), key=len, reverse=True)
        self._risky = re.compile("|".join([*map(re.escape, spelled), _STAND_IN.pattern]))
        self._shown_tools: dict[tuple[str, ...], bool] = {}
        self._reserved = frozenset(inspect.signature(tokenizer.apply_chat_template).parameters)
        # A tokenizer keeps between calls whether special tokens are split: one call at a time.
        self._lock = threading.Lock()

    def full(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any]
    ) -> list[int]:
        """Ids of a whole conversation, up to where the reply begins.

        Raises:
            RequestRefused: The chat template refuses these messages.
        """
        defused = _Defused(self._risky)
        return self._encode(self._render(messages, tools, template_kwargs, defused), defused)

    def bridge(
        self,
        tail: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        *,
        reply_ended: bool,
    ) -> list[int] | None:
        """Ids to append after a sampled reply, up to where the next reply begins.

        Args:
            tail: The messages that follow the reply, at least one.
            tools: Tools of the conversation.
            template_kwargs: Further arguments of the template.
            reply_ended: Whether the sampled reply ended with one of ``stop_token_ids``.

        Returns:
            The ids; None where this template cannot write them without the reply itself.
        """
        defused = _Defused(self._risky)
        stand_in = f"r{secrets.token_hex(12)}"
        frame = [{"role": "user", "content": "."}, {"role": "assistant", "content": stand_in}]
        try:
            text = self._render([*frame, *tail], tools, template_kwargs, defused)
        except RequestRefused:
            return None
        _, found, closing = text.rpartition(stand_in)
        eos = str(self._tokenizer.eos_token)
        if not found or not closing.startswith(eos):
            return None
        return self._encode(closing.removeprefix(eos) if reply_ended else closing, defused)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a sampled reply, without special tokens."""
        with self._lock:
            text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each id by itself, for clients that ask for log-probabilities."""
        with self._lock:
            return [self._tokenizer.decode([token_id]) for token_id in token_ids]

    def checked_template_kwargs(self, given: Any) -> dict[str, Any]:
        """Arguments for the chat template that a client may send: plain values for the template's own variables.

        Raises:
            RequestRefused: They are something else, or would change what the template is or what it returns.
        """
        if given is None:
            return {}
        place = "chat_template_kwargs"
        if not isinstance(given, Mapping):
            raise RequestRefused(f"{place} is {shown(given)}; it must be an object.", place)
        for name, value in given.items():
            if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or name in self._reserved:
                raise RequestRefused(f"{place}.{shown(name)} is not allowed: it is no variable of the template.", place)
            if name == "messages" or not isinstance(value, bool | int | float | str | None):
                raise RequestRefused(f"{place}.{name} is {shown(value)}; allowed: text, a number, true, false.", place)
        return dict(given)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        defused: _Defused,
    ) -> str:
        declared = defused.within(list(tools)) or None
        written = [_for_template(message, defused) for message in messages]
        if declared and not self._shows_tools(declared):
            written, declared = _with_tools_as_text(written, declared), None
        if any("tool_calls" in message for message in written) and not self._shows_calls:
            written = [_with_calls_as_text(message) for message in written]
        return self._apply(written, declared, defused.within(template_kwargs))

    def _shows_tools(self, declared: list[Any]) -> bool:
        """Whether the template writes the name of every tool once more when it is given the tools."""
        names = tuple(tool["function"]["name"] for tool in declared)
        if names not in self._shown_tools:
            probe = [{"role": "user", "content": "."}]
            given, withheld = self._apply(probe, declared, {}), self._apply(probe, None, {})
            if len(self._shown_tools) > _MOST_REMEMBERED:
                self._shown_tools.clear()
            self._shown_tools[names] = all(given.count(name) > withheld.count(name) for name in names)
        return self._shown_tools[names]

    @cached_property
    def _shows_calls(self) -> bool:
        """Whether the template writes the tool calls of an assistant message."""
        called = {"name": "shown_by_name", "arguments": {"argument": 1}}
        call = {"id": "abcdefghi", "type": "function", "function": called}
        asked = {"role": "user", "content": "."}
        calling: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        try:
            return "shown_by_name" in self._apply([asked, calling, asked], None, {})
        except RequestRefused:
            return False

    def _apply(self, messages: list[Message], declared: list[Any] | None, template_kwargs: Mapping[str, Any]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tools=declared, tokenize=False, add_generation_prompt=True, **template_kwargs
            )
        # A template is foreign code: it raises jinja2's errors, and Python's own for what it did not expect.
        except Exception as error:
            roles = ", ".join(message["role"] for message in messages)
            raise RequestRefused(
                f"the chat template refuses these messages (roles {roles[:200]}): {str(error)[:300]}", "messages"
            ) from error
        return text

    def _encode(self, text: str, defused: _Defused) -> list[int]:
        ids: list[int] = []
        place = 0
        with self._lock:
            for stand_in in _STAND_IN.finditer(text) if defused.texts else ():
                ids += self._tokenizer.encode(text[place : stand_in.start()], add_special_tokens=False)
                spelled = defused.texts[ord(stand_in[0]) - _PRIVATE]
                ids += self._tokenizer.encode(spelled, add_special_tokens=False, split_special_tokens=True)
                place = stand_in.end()
            ids += self._tokenizer.encode(text[place:], add_special_tokens=False)
        return ids


class _Defused:
    """Replaces what a client must not spell by private characters, and remembers what each stands for.

    Args:
        risky: What to replace.
    """

    def __init__(self, risky: re.Pattern[str]) -> None:
        self._risky = risky
        self._stand_ins: dict[str, str] = {}
        self.texts: list[str] = []

    def __call__(self, text: str) -> str:
        return self._risky.sub(self._stand_in, text)

    def within(self, value: Any) -> Any:
        """Plain data with every text in it defused."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, Mapping):
            return {self.within(key): self.within(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.within(inner) for inner in value]
        return value

    def _stand_in(self, spelled: re.Match[str]) -> str:
        text = spelled[0]
        if text not in self._stand_ins:
            if len(self.texts) > _MOST_PRIVATE:
                raise RequestRefused("messages hold too many different private characters.", "messages")
            self._stand_ins[text] = chr(_PRIVATE + len(self.texts))
            self.texts.append(text)
        return self._stand_ins[text]


def _for_template(message: Message, defused: _Defused) -> Message:
    """A message as templates expect it: arguments as an object, where they are one."""
    written: Message = {"role": message["role"], "content": defused(message["content"])}
    for name in ("tool_call_id", "name"):
        if name in message:
            written[name] = defused(message[name])
    if message.get("tool_calls"):
        written["tool_calls"] = [_call_for_template(call, defused) for call in message["tool_calls"]]
    return written


def _call_for_template(call: Mapping[str, Any], defused: _Defused) -> dict[str, Any]:
    arguments: Any = call["function"]["arguments"]
    # Read before it is defused: JSON has other ways to spell a special token.
    with contextlib.suppress(ValueError, RecursionError):
        arguments = json.loads(arguments)
    function = {"name": defused(call["function"]["name"]), "arguments": defused.within(arguments)}
    return {"id": defused(call["id"]), "type": "function", "function": function}


def _with_tools_as_text(messages: list[Message], declared: list[Any]) -> list[Message]:
    """The conversation with the tools at the end of its system message."""
    has_system = messages[0]["role"] == "system"
    prompt = [messages[0]["content"], ""] if has_system and messages[0]["content"] else []
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in declared]
    text = "\n".join([*prompt, "You can use these tools:", *lines, ChatSpec().tool_syntax])
    return [{"role": "system", "content": text}, *messages[has_system:]]


def _with_calls_as_text(message: Message) -> Message:
    """A message that calls tools in its text, as the policy wrote it."""
    if "tool_calls" not in message:
        return message
    texts = [message["content"]] if message["content"] else []
    for call in message["tool_calls"]:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        texts.append(render_tool_call(name, arguments if isinstance(arguments, dict) else {"arguments": arguments}))
    return {"role": message["role"], "content": "\n".join(texts)}
