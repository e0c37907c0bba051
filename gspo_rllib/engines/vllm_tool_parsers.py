"""vLLM's tool parsers by name: what a reply calls is read as by vLLM's own server with ``--tool-call-parser``.

They read whole replies here, and sample nothing. Loading them takes some ten seconds and half a GiB, so only a run that
names one does.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

from gspo_rllib.engines.process_state import random_states_kept
from gspo_rllib.errors import SettingError, described, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SOME_TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
_END_OF_REASONING = "</think>"


class VLLMToolParser:
    """One of vLLM's parsers, with a tokenizer of its own.

    Args:
        name: What vLLM calls it, e.g. ``"deepseek_v3"``.
        tokenizer: The model's; copied.

    Attributes:
        sees_special_tokens: Whether it reads replies in which special tokens are written out.

    Raises:
        SettingError: vLLM has no such parser, or it cannot read replies of this tokenizer.
        EngineError: vLLM cannot be imported.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._class = _parser_class(name)
        self._tokenizer = copy.deepcopy(tokenizer)
        # A parser asks for the vocabulary whenever one is made, which takes tens of milliseconds.
        vocabulary = self._tokenizer.get_vocab()
        vars(self._tokenizer)["get_vocab"] = lambda: vocabulary
        self._lock = threading.Lock()
        try:
            parser, request = self._parser((_SOME_TOOL,))
            self.sees_special_tokens = not request.skip_special_tokens
            parser.extract_tool_calls("2", request)
        # Foreign code: some want tokens that the tokenizer lacks, some are there in name only.
        except Exception as error:
            raise SettingError(
                f"agent.tool_parser={name!r}: vLLM's parser cannot read replies of this model: {described(error)}. "
                "Take the one that vLLM's documentation names for the model, or None."
            ) from error

    def check(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """Does nothing for tools whose calls it can read.

        Raises:
            ValueError: vLLM would not take these tools.
        """
        self._request(tools)

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, str]]] | None:
        """What a reply calls.

        Args:
            text: The reply, without its end.
            tools: Tools of the call that it answers.

        Returns:
            The text beside the calls, and the name and the arguments, a JSON object, of each, in order; None where a
            call went wrong.
        """
        reasoning, end, said = text.partition(_END_OF_REASONING)
        if not end:
            reasoning, said = "", text
        with self._lock:
            try:
                parser, request = self._parser(tools)
                found = parser.extract_tool_calls(said, request)
            except Exception:  # noqa: BLE001, foreign code on untrusted text: the reply is shown as it is
                return None
        if not found.tools_called:
            return text, []
        calls = [(call.function.name, call.function.arguments) for call in found.tool_calls]
        if not calls or not all(isinstance(name, str) and name and _is_object(arguments) for name, arguments in calls):
            return None
        return f"{reasoning}{end}{found.content or ''}", calls

    def _parser(self, tools: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
        request = self._request(tools)
        takes_tools = "tools" in inspect.signature(self._class).parameters
        parser = self._class(self._tokenizer, request.tools) if takes_tools else self._class(self._tokenizer)
        return parser, parser.adjust_request(request)

    def _request(self, tools: Sequence[Mapping[str, Any]]) -> Any:
        return _request_class()(model="policy", messages=[], tools=[dict(tool) for tool in tools])


def _parser_class(name: str) -> Any:
    parsers = _vllm().ToolParserManager
    known = parsers.list_registered()
    if name not in known:
        raise SettingError(f"agent.tool_parser={name!r}: vLLM has no such parser. {did_you_mean(name, known)}")
    return parsers.get_tool_parser(name)


def _request_class() -> Any:
    # Where vLLM keeps it differs from release to release; the parsers' signature does not.
    return get_type_hints(_vllm().ToolParser.extract_tool_calls)["request"]


def _vllm() -> Any:
    with random_states_kept():
        importlib.import_module("gspo_rllib.engines.vllm")  # sets what vLLM reads when it is imported
        from vllm import tool_parsers

    # They print a traceback for every reply that they cannot read.
    logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)
    return tool_parsers


def _is_object(arguments: Any) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except (TypeError, ValueError, RecursionError):
        return False
