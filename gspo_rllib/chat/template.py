"""A tokenizer's chat template: what it writes, what it refuses, and which names it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gspo_rllib.errors import ModelError, SettingError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
"""Role and content, and what belongs to tools."""

# What a template is handed in any case, or ``apply_chat_template`` takes for itself.
_TAKEN = {
    "conversation": "the environment's observations are the conversation",
    "messages": "the environment's observations are the conversation",
    "tools": "an environment declares its tools in ChatSpec.tools",
    "chat_template": "a model folder has its template in chat_template.jinja",
    **dict.fromkeys(
        (
            "add_generation_prompt",
            "continue_final_message",
            "max_length",
            "padding",
            "return_assistant_tokens_mask",
            "return_dict",
            "return_tensors",
            "tokenize",
            "tokenizer_kwargs",
            "truncation",
        ),
        "the env runner decides how a conversation is rendered",
    ),
}


_OWN_TAGS = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
"""Tags of transformers that Jinja does not know; they mark replies and write nothing."""


_MARK = "\u2983mark\u2984"


class Refused(ModelError):
    """The chat template raised: it does not take such a conversation."""


class ChatTemplate:
    """Renders conversations as text with a tokenizer's own chat template.

    Args:
        tokenizer: Has a chat template.
        kwargs: Passed to the template with every conversation.

    Attributes:
        kwargs: What is passed to the template.

    Raises:
        SettingError: A name in ``kwargs`` is not the caller's to choose.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self.kwargs = dict(kwargs or {})
        check_names(self.kwargs)

    def render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, generation: bool = True
    ) -> str:
        """The text of a conversation.

        Args:
            messages: Role and content of each.
            tools: Schemas of the functions that are declared.
            generation: Whether the header of the next reply is asked for.

        Raises:
            Refused: The template does not take such a conversation.
        """
        return self._render(self._in_parts(messages), tools, generation=generation)

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[dict[str, Any]] = (), *, generation: bool = True
    ) -> str:
        from jinja2 import TemplateError

        declared: dict[str, Any] = {"tools": list(tools)} if tools else {}
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation, **(declared | self.kwargs)
            )
        # A template is a program: what it does with what it was not written for is Python's own errors.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise Refused(f"the chat template refuses a conversation with the roles {roles}: {error}") from error
        return rendered

    def token_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The ids of a conversation and the header of the next reply, as transformers alone makes them.

        Raises:
            Refused: The template does not take such a conversation.
        """
        self.render(messages, tools)  # raises what is wrong
        declared: dict[str, Any] = {"tools": list(tools)} if tools else {}
        options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        told = self._in_parts(messages)
        return list(self._tokenizer.apply_chat_template(told, **options, **(declared | self.kwargs)))

    def _in_parts(self, messages: Sequence[Message]) -> list[Mapping[str, Any]]:
        if not self._wants_parts:
            return list(messages)
        return [{**message, "content": _parts(message["content"])} for message in messages]

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether contents must be lists of parts, as some templates of models with images have it."""

        def writes(content: Any) -> bool:
            try:
                return _MARK in self._render([{"role": "user", "content": content}])
            except Refused:
                return False

        return not writes(_MARK) and writes(_parts(_MARK))

    @cached_property
    def source(self) -> str:
        """The template's source; of a tokenizer with several templates, that of all of them."""
        template = self._tokenizer.chat_template
        return "\n".join(template.values()) if isinstance(template, dict) else str(template or "")

    @cached_property
    def reads(self) -> frozenset[str] | None:
        """Names the template reads and does not set itself; None where it cannot be parsed."""
        from jinja2 import Environment, TemplateError, meta

        environment = Environment(extensions=["jinja2.ext.loopcontrols"])
        try:
            return frozenset(meta.find_undeclared_variables(environment.parse(_OWN_TAGS.sub("", self.source))))
        except TemplateError:
            return None

    def unread(self) -> str | None:
        """What there is to say about names in ``kwargs`` that the template never reads, if anything."""
        reads = self.reads
        unread = [] if reads is None else [name for name in self.kwargs if name not in reads]
        if reads is None or not unread:
            return None
        known = sorted(reads - ALWAYS_GIVEN - set(_TAKEN))
        names = ", ".join(repr(name) for name in unread)
        hint = f" {did_you_mean(unread[0], known)}" if known else " It reads none."
        return f"template_kwargs: the model's chat template never reads {names}, so it has no effect.{hint}"


ALWAYS_GIVEN = frozenset({"bos_token", "eos_token", "pad_token", "unk_token", "raise_exception", "strftime_now"})
"""What transformers gives every template."""


def _parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def check_names(kwargs: Mapping[str, Any]) -> None:
    """Refuses template arguments that are not the caller's to choose.

    Raises:
        SettingError: There is one.
    """
    for name in kwargs:
        if name in _TAKEN:
            raise SettingError(
                f"template_kwargs may not hold {name!r}: {_TAKEN[name]}. It takes what the model's chat template "
                "reads, such as enable_thinking."
            )
