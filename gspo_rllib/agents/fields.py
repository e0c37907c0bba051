"""What becomes of each field of a body: it is read, does nothing here, is refused, or is passed over.

What a client may not decide is the distribution that is sampled from, since the learner scores the run's own. Such
fields are passed over, and so is every field that nobody here knows: frameworks send them unasked, so they are no
error, but they are counted and told. Refused is what would make the answer mean something else than the client takes
it for. Whatever asks for no more than what is done anyway is none of these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gspo_rllib.agents.messages import RequestRefused

OTHER = "other"
"""What fields that nobody here knows are counted as; they are as many as clients can make up."""

TEMPLATE_KWARGS = "chat_template_kwargs."
"""Leads the names of arguments for the chat template."""

SAMPLING = frozenset({
    "temperature", "top_p", "top_k", "min_p", "typical_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "length_penalty", "logit_bias", "seed", "response_format", "structured_outputs",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "bad_words", "allowed_token_ids", "min_tokens",
    "ignore_eos", "stop_token_ids", "use_beam_search", "logits_processors", "tool_choice", "parallel_tool_calls",
    "reasoning_effort", "reasoning", "thinking", "verbosity", "text.format", "text.verbosity", "output_format",
    "output_config",
})  # fmt: skip
"""Would sample from another distribution than the one the learner scores, or make all replies alike."""

UNHEEDED = frozenset({
    "top_logprobs", "prompt_logprobs", "truncate_prompt_tokens", "skip_special_tokens", "include_stop_str_in_output",
    "include_reasoning", "web_search_options", "modalities",
})  # fmt: skip
"""Would make an answer hold more, less or something else."""

HARMLESS = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prediction", "request_id", "priority", "cache_salt",
})  # fmt: skip
"""No reply differs for them."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "typical_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True,),
    "top_logprobs": (0,),
    "skip_special_tokens": (True,),
    "include_reasoning": (True,),
    "modalities": (["text"],),
    "truncation": ("disabled",),
    "add_generation_prompt": (True,),
    "best_of": (1,),
}
"""Values that ask for what is done anyway. Of a field that is not here it is false, or something empty."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields that a dialect knows.

    Attributes:
        read: Heeded.
        refused: Field -> what to do instead.
        passed_over: Known to have no effect, beside ``SAMPLING`` and ``UNHEEDED``.
        harmless: No reply differs for them, beside ``HARMLESS``.
    """

    read: Collection[str]
    refused: Mapping[str, str]
    passed_over: Collection[str] = ()
    harmless: Collection[str] = ()

    def check(self, body: Mapping[str, Any]) -> list[str]:
        """The fields that are passed over.

        Raises:
            RequestRefused: The body holds one that is refused.

        Example:
            >>> fields = Fields(read=("messages",), refused={"echo": "the prompt is known to the client"})
            >>> fields.check({"messages": [], "temperature": 0, "top_p": 1, "user": "u", "made_up": 1})
            ['temperature', 'made_up']
            >>> fields.check({"echo": True})
            Traceback (most recent call last):
            gspo_rllib.agents.messages.RequestRefused: echo is not supported; the prompt is known to the client.
        """
        found = []
        for name, value in body.items():
            if name in self.read or value is None:
                continue
            if name in self.refused:
                if value not in NEUTRAL[name] if name in NEUTRAL else value is not False:
                    raise RequestRefused(f"{name} is not supported; {self.refused[name]}.", name)
            elif name not in HARMLESS and name not in self.harmless and _asks(name, value):
                found.append(name)
        return found

    def counted(self, names: Sequence[str]) -> list[str]:
        """The same fields as they are counted: those that nobody knows under one name."""
        known = SAMPLING | UNHEEDED | {*self.passed_over}
        return [name if name in known else OTHER for name in names]


def why_without_effect(name: str) -> str:
    """Why a field that is passed over has no effect.

    Example:
        >>> why_without_effect("chat_template_kwargs.enable_thinking")
        "the model's chat template never reads it"
    """
    if name.startswith(TEMPLATE_KWARGS):
        return "the model's chat template never reads it"
    if name in SAMPLING:
        return "replies are sampled from the distribution that the learner scores, at generation.temperature"
    return "it is none of the fields that are read here"


def _asks(name: str, value: Any) -> bool:
    """Whether a field asks for something that is not done anyway."""
    if name == "tool_choice":
        return _forces(value)
    if name in NEUTRAL:
        return value not in NEUTRAL[name]
    if isinstance(value, Mapping):
        return any(inner is not None for inner in value.values())
    return value is not False and value not in ("", [])


def tools_are_off(body: Mapping[str, Any]) -> bool:
    """Whether the client wants no call of a tool read from the reply; what is sampled is the same."""
    return body.get("tool_choice") in ("none", {"type": "none"})


def _forces(choice: Any) -> bool:
    """Whether a choice of tools is another than the policy's own, or none."""
    if isinstance(choice, Mapping) and choice.get("type") in ("auto", "none"):
        return bool(choice.get("disable_parallel_tool_use"))
    return choice not in ("auto", "none")
