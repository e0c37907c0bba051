"""A conversation as one chat template takes it, and as text.

A template may know neither tools nor calls, no results, no system message. Then the system message declares the tools,
a call is written as text, a result is the user's, and the system prompt begins the first message, so that nothing a
client sent is left out in silence.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from gspo_rllib.agents.defused import Defused
from gspo_rllib.agents.messages import Message
from gspo_rllib.chat.format import ChatFormat
from gspo_rllib.chat.frames import OBSERVATION
from gspo_rllib.chat.template import Refused
from gspo_rllib.envs.tools.calls import render_tool_call
from gspo_rllib.types import ChatSpec

_MOST_REMEMBERED = 1000


class Script:
    """Writes conversations with one template and its arguments.

    Args:
        form: How the model writes a conversation.

    Attributes:
        form: How the model writes a conversation.
    """

    def __init__(self, form: ChatFormat) -> None:
        self.form = form
        self._shown_tools: dict[tuple[str, ...], bool] = {}
        self._contexts: dict[tuple[tuple[str, ...], ...], tuple[bool, bool]] = {}

    def whole(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], defused: Defused) -> str:
        """The text of a conversation, up to where the reply begins.

        Raises:
            Refused: The template does not take it.
        """
        written, declared = self._written(messages, tools, defused)
        if not self._shows_results:
            written = self._with_results_shown(written)
        return self.form.template.render(written, declared) + self.form.opening.missing

    def continued(
        self,
        system: Sequence[Message],
        mark: str,
        tail: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        defused: Defused,
    ) -> str:
        """The text of a conversation with a mark in place of the reply, up to where the next reply begins.

        Args:
            system: The system message that the conversation begins with, if any.
            mark: Stands for the reply.
            tail: The messages that follow it.
            tools: Tools of the conversation.
            defused: Replaces what a client must not spell.

        Raises:
            Refused: The template does not take it.
        """
        asked: list[Message] = [{"role": "user", "content": "."}, {"role": "assistant", "content": mark}]
        written, declared = self._written([*system, *asked, *tail], tools, defused)
        written = self._with_results_shown(written)
        before = self.form.before
        is_told = written[0]["role"] != "system"
        told, first = (written, []) if is_told else (written[1:], [] if before else written[:1])
        told = [*before, *told]
        names = tuple(tool["function"]["name"] for tool in declared)
        key = (tuple(message["role"] for message in told), tuple(message["content"] for message in first), names)
        if key not in self._contexts:
            if len(self._contexts) > _MOST_REMEMBERED:
                self._contexts.clear()
            stays = self.form.context_after(told, first, declared, mark)
            self._contexts[key] = bool(stays[0]), bool(stays[1])
        has_system, has_tools = self._contexts[key]
        kept, declared = first if has_system else [], declared if has_tools else ()
        return self.form.template.render([*kept, *told], declared) + self.form.opening.missing

    def _written(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], defused: Defused
    ) -> tuple[list[Message], tuple[dict[str, Any], ...]]:
        """Messages and tools as this template takes them, but for results."""
        declared = tuple(defused.within(list(tools)))
        written = [_for_template(message, defused) for message in messages]
        if declared and not self._shows_tools(declared):
            written, declared = _with_tools_as_text(written, declared), ()
        if any("tool_calls" in message for message in written) and not self._shows_calls:
            written = [_with_calls_as_text(message) for message in written]
        if written[0]["role"] == "system" and self.form.system_role is not None:
            written = _with_system_inline(written)
        return written, declared

    def _with_results_shown(self, messages: list[Message]) -> list[Message]:
        """Results as messages that may follow a reply without a call; those of one turn are one user message."""
        if self.form.shown_role("tool")[0] == "tool" or not any(m["role"] == "tool" for m in messages):
            return messages
        shown: list[Message] = []
        follows_result = False
        for message in messages:
            is_result = message["role"] == "tool"
            if is_result:
                message = {"role": "user", "content": message["content"]}
            if follows_result and message["role"] == "user":
                message = {**message, "content": f"{shown.pop()['content']}\n{message['content']}"}
            shown.append(message)
            follows_result = is_result or (follows_result and message["role"] == "user")
        return shown

    def _shows_tools(self, declared: Sequence[dict[str, Any]]) -> bool:
        """Whether the template writes the name of every tool once more when it is given the tools."""
        names = tuple(tool["function"]["name"] for tool in declared)
        if names not in self._shown_tools:
            probe = [*self.form.before, {"role": "user", "content": "."}]
            withheld = self.form.template.render(probe)
            given = self._rendered(probe, declared)
            if len(self._shown_tools) > _MOST_REMEMBERED:
                self._shown_tools.clear()
            self._shown_tools[names] = all(given.count(name) > withheld.count(name) for name in names)
        return self._shown_tools[names]

    @cached_property
    def _shows_calls(self) -> bool:
        """Whether the template writes the tool calls of an assistant message."""
        return "shown_by_name" in self._rendered([*self._calling, {"role": "user", "content": "."}])

    @cached_property
    def _shows_results(self) -> bool:
        """Whether the template writes what a tool returns, after a call of it."""
        called = self._calling if self._shows_calls else [_with_calls_as_text(message) for message in self._calling]
        result: Message = {"role": "tool", "content": OBSERVATION, "tool_call_id": "abcdefghi", "name": "shown_by_name"}
        return OBSERVATION in self._rendered([*called, result])

    @property
    def _calling(self) -> list[Message]:
        """A question and a call of a tool."""
        function = {"name": "shown_by_name", "arguments": {"argument": 1}}
        call = {"id": "abcdefghi", "type": "function", "function": function}
        question: Message = {"role": "user", "content": "."}
        return [*self.form.before, question, {"role": "assistant", "content": "", "tool_calls": [call]}]

    def _rendered(self, messages: list[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
        """What the template makes of a probe; nothing where it refuses it."""
        try:
            return self.form.template.render(messages, tools)
        except Refused:
            return ""


def _for_template(message: Message, defused: Defused) -> Message:
    """A message as templates expect it: arguments as an object, where they are one."""
    role = message["role"]
    content = defused(message["content"], "own" if role in ("system", "assistant") else "foreign")
    written: Message = {"role": role, "content": content}
    for name in ("tool_call_id", "name"):
        if name in message:
            written[name] = defused(message[name])
    if message.get("tool_calls"):
        written["tool_calls"] = [_call_for_template(call, defused) for call in message["tool_calls"]]
    return written


def _call_for_template(call: Mapping[str, Any], defused: Defused) -> dict[str, Any]:
    arguments: Any = call["function"]["arguments"]
    # Read before it is defused: JSON has other ways to spell a special token.
    with contextlib.suppress(ValueError, RecursionError):
        arguments = json.loads(arguments)
    function = {"name": defused(call["function"]["name"]), "arguments": defused.within(arguments)}
    return {"id": defused(call["id"]), "type": "function", "function": function}


def _with_tools_as_text(messages: list[Message], declared: Sequence[dict[str, Any]]) -> list[Message]:
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


def _with_system_inline(messages: list[Message]) -> list[Message]:
    """The conversation with its system message at the beginning of the user's first."""
    prompt, rest = messages[0]["content"], messages[1:]
    if not prompt:
        return rest
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": f"{prompt}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{"role": "user", "content": prompt}, *rest]
