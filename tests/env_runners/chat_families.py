"""Chat templates of model families: not their text, but what each one writes, keeps, drops, moves and refuses.

Written anew, as short as they could be, from what the families' templates do; the tokenizers are small, with the rules
and the added tokens of the real ones. ``chat_table`` says what happens to each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.types import ChatSpec
from tests.env_runners.chat_tokenizers import make_tokenizer

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two integers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


@dataclass(frozen=True)
class Family:
    """A chat template and the tokenizer it comes with.

    Attributes:
        name: The family.
        template: Its chat template, rewritten.
        eos: The tokenizer's ``eos_token``.
        rules: How the tokenizer cuts a text; see ``make_tokenizer``.
        special: Special tokens.
        added: Added tokens that are not special.
        declared: Tokens whose ids ``generation_config.json`` lists.
        bos: The tokenizer's ``bos_token``.
        kwargs: Given to the template.
    """

    name: str
    template: str | dict[str, str]
    eos: str
    rules: str = "bytes"
    special: tuple[str | AddedToken, ...] = ()
    added: tuple[str, ...] = ()
    declared: tuple[str, ...] = ()
    bos: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A small tokenizer with the family's rules, tokens and template."""
        return make_tokenizer(
            self.rules, self.template, special=self.special, added=self.added, eos=self.eos, bos=self.bos
        )

    def renderer(self, chat: ChatSpec | None = None, **template_kwargs: Any) -> ChatRenderer:
        """A renderer of the family's conversations."""
        tokenizer = self.tokenizer()
        ends = [tokenizer.convert_tokens_to_ids(token) for token in self.declared]
        return ChatRenderer(tokenizer, chat, end_token_ids=ends, template_kwargs={**self.kwargs, **template_kwargs})


def _chatml(body: str = "", *, before: str = "", tool: str = "", generation: str = "<|im_start|>assistant\n") -> str:
    """ChatML, as most families since Qwen write it."""
    tool_message = tool or "{{ '<|im_start|>tool\n' ~ m.content ~ '<|im_end|>\n' }}"
    return (
        "{%- macro message(role, text) %}{{ '<|im_start|>' ~ role ~ '\n' ~ text ~ '<|im_end|>\n' }}{% endmacro -%}"
        + before
        + "{%- for m in messages -%}"
        + (body or "{%- set text = m.content -%}")
        + "{%- if m.role == 'tool' -%}"
        + tool_message
        + "{%- elif not (loop.first and m.role == 'system' and first_is_written) -%}{{ message(m.role, text) }}"
        + "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '"
        + generation
        + "' }}{%- endif -%}"
    )


_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_ADDED = ("<tool_call>", "</tool_call>")
_QWEN3_ADDED = (*_QWEN_ADDED, "<tool_response>", "</tool_response>", "<think>", "</think>")
_QWEN_TOOLS = (
    "{%- set first_is_written = true -%}"
    "{%- set system = messages[0].content if messages[0].role == 'system' else DEFAULT -%}"
    "{%- if tools -%}{{ message('system', system ~ '\n\n# Tools\n<tools>\n' ~ (tools | map('tojson') | join('\n'))"
    " ~ '\n</tools>\nAnswer with <tool_call></tool_call>.') }}"
    "{%- elif system -%}{{ message('system', system) }}{%- endif -%}"
)
_QWEN_RESULT = (
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{ '<|im_start|>user' }}{%- endif -%}"
    "{{ '\n<tool_response>\n' ~ m.content ~ '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{ '<|im_end|>\n' }}{%- endif -%}"
)
_DROPS_THINKING = (
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
)
_WITHOUT_THINKING = (
    "{%- set text = m.content -%}{%- if m.role == 'assistant' and loop.index0 < ns.last and '</think>' in text -%}"
    "{%- set text = text.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
)
_LLAMA_2 = (
    "{%- if messages[0].role == 'system' -%}{%- set rest = messages[1:] -%}"
    "{%- set system = '<<SYS>>\n' ~ messages[0].content ~ '\n<</SYS>>\n\n' -%}"
    "{%- else -%}{%- set rest = messages -%}{%- set system = '' -%}{%- endif -%}"
    "{%- for m in rest -%}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}"
    "{%- if m.role == 'user' -%}{{ bos_token ~ '[INST] ' ~ ((system if loop.first else '') ~ m.content).strip() }}"
    "{{- ' [/INST]' -}}{%- elif m.role == 'assistant' -%}{{ ' ' ~ m.content.strip() ~ ' ' ~ eos_token }}{%- endif -%}"
    "{%- endfor -%}"
)


def _mistral(*, space: str, role_of_system: str = "inline", tool: str = "refused") -> str:
    """Mistral's: system prompt and tools go to the last user message."""
    results = {
        "refused": "{{ raise_exception('only user and assistant roles are supported') }}",
        "needs_id": "{%- if m.tool_call_id is undefined or m.tool_call_id | length != 9 -%}"
        "{{ raise_exception('tool call ids must have 9 letters') }}{%- endif -%}"
        "{{ '[TOOL_RESULTS]' ~ (m.content | tojson) ~ '[/TOOL_RESULTS]' }}",
    }[tool]
    system = "'[SYSTEM_PROMPT]' ~ system ~ '[/SYSTEM_PROMPT]'" if role_of_system == "own" else "''"
    inline = "''" if role_of_system == "own" else "(system ~ '\n\n') if system and loop.index0 == ns.last else ''"
    return (
        "{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}"
        "{%- set rest = messages[1:] if system else messages -%}"
        "{%- set ns = namespace(last=0) -%}{%- for m in rest -%}{%- if m.role == 'user' -%}"
        "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
        "{{ bos_token }}{%- if system -%}{{ " + system + " }}{%- endif -%}"
        "{%- for m in rest -%}"
        "{%- if m.role == 'user' -%}"
        "{%- if tools and loop.index0 == ns.last -%}"
        "{{ '[AVAILABLE_TOOLS]" + space + "' ~ (tools | tojson) ~ '[/AVAILABLE_TOOLS]' }}{%- endif -%}"
        "{{ '[INST]" + space + "' ~ (" + inline + ") ~ m.content ~ '[/INST]' }}"
        "{%- elif m.role == 'assistant' -%}{{ '" + space + "' ~ m.content ~ eos_token }}"
        "{%- else -%}" + results + "{%- endif -%}{%- endfor -%}"
    )


_MISTRAL_SPECIAL = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]")
_MISTRAL_V1 = (
    "{{ bos_token }}{%- for m in messages -%}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}"
    "{%- if m.role == 'user' -%}{{ ' [INST] ' ~ m.content ~ ' [/INST]' }}"
    "{%- else -%}{{ ' ' ~ m.content ~ eos_token }}{%- endif -%}{%- endfor -%}"
)


def _gemma(system: str) -> str:
    first = {
        "refused": "{%- if m.role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}",
        "joined": "",
    }[system]
    before, rest = "", "messages"
    if system == "joined":
        before = "{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}"
        rest = "(messages[1:] if system else messages)"
    return (
        "{{ bos_token }}" + before + "{%- for m in " + rest + " -%}" + first + "{%- if (m.role == 'user') != "
        "(loop.index0 % 2 == 0) -%}{{ raise_exception('Conversation roles must alternate') }}{%- endif -%}"
        "{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' }}"
        + ("{{ (system ~ '\n\n') if system and loop.first else '' }}" if system == "joined" else "")
        + "{{ m.content | trim ~ '<end_of_turn>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
    )


def _headers(begin: str, close: str, end: str, *, tool: str = "tool", result: str = "m.content | trim") -> str:
    """Llama 3's way: a header token on either side of the role, and every content trimmed."""
    return (
        "{{ bos_token }}{%- for m in messages -%}{%- if m.role == 'tool' -%}"
        "{{ '" + begin + tool + close + "\n\n' ~ (" + result + ") ~ '" + end + "' }}{%- else -%}"
        "{{ '" + begin + "' ~ m.role ~ '" + close + "\n\n' ~ m.content | trim ~ '" + end + "' }}{%- endif -%}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ '" + begin + "assistant" + close + "\n\n' }}{%- endif -%}"
    )


_LLAMA_31 = (
    "{{ bos_token }}{%- if not date_string is defined -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}"
    "{%- set has_system = messages[0].role == 'system' -%}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' ~ date_string ~ '\n\n' }}"
    "{{ (messages[0].content | trim if has_system else '') ~ '<|eot_id|>' }}"
    "{%- for m in (messages[1:] if has_system else messages) -%}"
    "{%- if m.role == 'tool' -%}{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}"
    "{{ (m.content | tojson if m.content is iterable else m.content) ~ '<|eot_id|>' }}"
    "{%- else -%}{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' }}"
    "{%- if loop.first and tools -%}{{ 'Given these functions:\n\n' ~ (tools | tojson) ~ '\n\n' }}{%- endif -%}"
    "{{ m.content | trim ~ '<|eot_id|>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
)
_LLAMA_3_SPECIAL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")


def _lines(pairs: dict[str, str], end: str, *, generation: str, before: str = "") -> str:
    """One text before and one after each role's content."""
    cases = "".join(
        "{%- " + ("if" if n == 0 else "elif") + f" m.role == '{role}' -%}}{{{{ {text} }}}}"
        for n, (role, text) in enumerate(pairs.items())
    )
    return (
        before + "{%- for m in messages -%}" + cases + end + "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '" + generation + "' }}{%- endif -%}"
    )


def _same(role: str) -> str:
    return f"'<|{role}|>\n' ~ m.content ~ '"


def _rstrip(*names: str) -> tuple[AddedToken, ...]:
    return tuple(AddedToken(name, rstrip=True, special=True, normalized=False) for name in names)


_ZEPHYR = _lines(
    {role: f"'<|{role}|>\n' ~ m.content ~ eos_token ~ '\n'" for role in ("user", "system", "assistant")},
    "",
    generation="<|assistant|>\n",
)
_PHI_3 = _lines(
    {role: f"'<|{role}|>\n' ~ m.content ~ '<|end|>\n'" for role in ("system", "user", "assistant")},
    "",
    generation="<|assistant|>\n",
).replace(
    "{%- if add_generation_prompt",
    "{%- if not add_generation_prompt -%}{{ eos_token }}{%- endif -%}{%- if add_generation_prompt",
)
_DEEPSEEK = (
    "{{ bos_token }}{%- for m in messages -%}{%- if m.role == 'system' -%}{{ m.content }}"
    "{%- elif m.role == 'user' -%}{{ '<|User|>' ~ m.content }}"
    "{%- elif m.role == 'assistant' -%}{{ '<|Assistant|>' ~ TEXT ~ '<|end_of_sentence|>' }}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|Assistant|>OPEN' }}{%- endif -%}"
)
_GLM = (
    "[gMASK]<sop>{%- for m in messages -%}{%- if m.role == 'tool' -%}{{ '<|observation|>' }}"
    "{{ '\n<tool_response>\n' ~ m.content ~ '\n</tool_response>' if tool_tags else '\n' ~ m.content }}"
    "{%- elif m.role == 'assistant' -%}{{ '<|assistant|>\n' ~ ('<think></think>\n' if tool_tags) ~ m.content | trim }}"
    "{%- else -%}{{ '<|' ~ m.role ~ '|>\n' ~ m.content }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
_GLM_SPECIAL = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_HARMONY = (
    "<|start|>system<|message|>Reasoning: low<|end|>{%- for m in messages -%}"
    "{%- if m.role == 'tool' -%}{{ raise_exception('a tool message needs a tool call before it') }}"
    "{%- elif m.role == 'system' -%}{{ '<|start|>developer<|message|>' ~ m.content ~ '<|end|>' }}"
    "{%- elif m.role == 'user' -%}{{ '<|start|>user<|message|>' ~ m.content ~ '<|end|>' }}"
    "{%- else -%}{{ '<|start|>assistant<|channel|>final<|message|>' ~ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"
)
_COMMAND_R = (
    "{{ bos_token }}{%- for m in messages -%}{%- if m.role == 'tool' -%}{{ raise_exception('no tool role') }}"
    "{%- endif -%}"
    "{{ '<|START_OF_TURN_TOKEN|><|' ~ {'user': 'USER', 'assistant': 'CHATBOT', 'system': 'SYSTEM'}[m.role] }}"
    "{{ '_TOKEN|>' }}"
    "{{ OPEN ~ m.content.strip() ~ CLOSE ~ '<|END_OF_TURN_TOKEN|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- endif -%}"
)
_COHERE_SPECIAL = (
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
    *("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)

FAMILIES = (
    Family(
        "Qwen2.5",
        _chatml(before=_QWEN_TOOLS.replace("DEFAULT", "'You are a helpful assistant.'"), tool=_QWEN_RESULT),
        "<|im_end|>",
        special=_QWEN_SPECIAL,
        added=_QWEN_ADDED,
        declared=("<|im_end|>", "<|endoftext|>"),
    ),
    Family(
        "Qwen3",
        _chatml(
            _WITHOUT_THINKING,
            before=_QWEN_TOOLS.replace("DEFAULT", "''") + _DROPS_THINKING,
            tool=_QWEN_RESULT,
            generation="<|im_start|>assistant\n' ~ ('<think>\n\n</think>\n\n' if enable_thinking is false else '') ~ '",
        ),
        "<|im_end|>",
        special=_QWEN_SPECIAL,
        added=_QWEN3_ADDED,
        declared=("<|im_end|>", "<|endoftext|>"),
    ),
    Family(
        "Qwen3, enable_thinking=False",
        _chatml(
            _WITHOUT_THINKING,
            before=_QWEN_TOOLS.replace("DEFAULT", "''") + _DROPS_THINKING,
            tool=_QWEN_RESULT,
            generation="<|im_start|>assistant\n' ~ ('<think>\n\n</think>\n\n' if enable_thinking is false else '') ~ '",
        ),
        "<|im_end|>",
        special=_QWEN_SPECIAL,
        added=_QWEN3_ADDED,
        declared=("<|im_end|>", "<|endoftext|>"),
        kwargs={"enable_thinking": False},
    ),
    Family(
        "Qwen3-Thinking, QwQ",
        _chatml(
            _WITHOUT_THINKING,
            before=_QWEN_TOOLS.replace("DEFAULT", "''") + _DROPS_THINKING,
            tool=_QWEN_RESULT,
            generation="<|im_start|>assistant\n<think>\n",
        ),
        "<|im_end|>",
        special=_QWEN_SPECIAL,
        added=_QWEN3_ADDED,
        declared=("<|im_end|>", "<|endoftext|>"),
    ),
    Family("Qwen base models (eos is not the turn end)", _chatml(), "<|endoftext|>", special=_QWEN_SPECIAL),
    Family("Hermes 3", _chatml(), "<|im_end|>", special=("<|im_start|>", "<|im_end|>"), added=_QWEN_ADDED),
    Family("SmolLM2", _chatml(), "<|im_end|>", special=_QWEN_SPECIAL),
    Family(
        "SmolLM3",
        _chatml(
            before="{%- set first_is_written = true -%}{{ message('system', 'Today: ' ~ strftime_now('%d %B %Y')"
            " ~ '\n' ~ (messages[0].content if messages[0].role == 'system' else '')) }}",
            tool=r"{{ message('user', m.content) }}",
        ),
        "<|im_end|>",
        special=_QWEN_SPECIAL,
    ),
    Family("Yi", _chatml(), "<|im_end|>", "legacy", special=("<|im_start|>", "<|im_end|>")),
    Family("InternLM2", "{{ bos_token }}" + _chatml(), "</s>", "legacy", ("<|im_start|>", "<|im_end|>"), bos="<s>"),
    Family(
        "MiniCPM", "{{ bos_token }}" + _chatml(), "</s>", "legacy", _QWEN_SPECIAL, declared=("<|im_end|>",), bos="<s>"
    ),
    Family("ChatML without its tokens", _chatml(), "</s>", "legacy", bos="<s>"),
    Family("Llama 2", _LLAMA_2, "</s>", "legacy", bos="<s>"),
    Family(
        "Llama 3",
        _headers("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        special=_LLAMA_3_SPECIAL,
        bos="<|begin_of_text|>",
    ),
    Family(
        "Llama 3.1 to 3.3",
        _LLAMA_31,
        "<|eot_id|>",
        special=(*_LLAMA_3_SPECIAL, "<|end_of_text|>"),
        declared=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
    ),
    Family(
        "Llama 4",
        _headers("<|header_start|>", "<|header_end|>", "<|eot|>", tool="ipython", result="m.content | tojson"),
        "<|eot|>",
        special=("<|header_start|>", "<|header_end|>", "<|eom|>"),
        declared=("<|eom|>", "<|eot|>"),
        bos="<|begin_of_text|>",
    ),
    Family("Mistral 7B v0.1, v0.2", _MISTRAL_V1, "</s>", "legacy", bos="<s>"),
    Family("Mixtral", _mistral(space=" "), "</s>", "legacy", bos="<s>"),
    Family(
        "Mistral 7B v0.3",
        _mistral(space=" ", tool="needs_id"),
        "</s>",
        "first",
        (*_MISTRAL_SPECIAL, "[/TOOL_RESULTS]"),
        bos="<s>",
    ),
    Family(
        "Mistral Nemo",
        _mistral(space="", tool="needs_id"),
        "</s>",
        "bytes",
        (*_MISTRAL_SPECIAL, "[/TOOL_RESULTS]"),
        bos="<s>",
    ),
    Family(
        "Mistral Small 3",
        _mistral(space="", role_of_system="own", tool="needs_id"),
        "</s>",
        "bytes",
        (*_MISTRAL_SPECIAL, "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        bos="<s>",
    ),
    Family(
        "Gemma, Gemma 2",
        _gemma("refused"),
        "<eos>",
        "first",
        ("<start_of_turn>", "<end_of_turn>"),
        declared=("<eos>", "<end_of_turn>"),
        bos="<bos>",
    ),
    Family(
        "Gemma 3",
        _gemma("joined"),
        "<eos>",
        "first",
        ("<start_of_turn>", "<end_of_turn>"),
        declared=("<eos>", "<end_of_turn>"),
        bos="<bos>",
    ),
    Family(
        "Phi-3, Phi-3.5",
        _PHI_3,
        "<|endoftext|>",
        "legacy",
        _rstrip("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        declared=("<|endoftext|>", "<|assistant|>", "<|end|>"),
        bos="<s>",
    ),
    Family(
        "Phi-4",
        "{%- for m in messages -%}{{ '<|im_start|>' ~ m.role ~ '<|im_sep|>' ~ m.content ~ '<|im_end|>' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|im_start|>assistant<|im_sep|>{%- endif -%}",
        "<|im_end|>",
        special=(*_QWEN_SPECIAL, "<|im_sep|>"),
    ),
    Family(
        "Phi-4-mini",
        _PHI_3.replace("\n", ""),
        "<|endoftext|>",
        special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        declared=("<|endoftext|>", "<|end|>"),
    ),
    Family("Zephyr", _ZEPHYR, "</s>", "legacy", bos="<s>"),
    Family("TinyLlama", _ZEPHYR, "</s>", "legacy", bos="<s>"),
    Family(
        "StableLM 2",
        _ZEPHYR.replace("~ eos_token", "~ '<|endoftext|>'"),
        "<|endoftext|>",
        special=("<|user|>", "<|assistant|>", "<|system|>"),
    ),
    Family(
        "OLMo 2, Tülu 3",
        "{{ bos_token }}{%- for m in messages -%}{{ '<|' ~ m.role ~ '|>\n' ~ m.content }}"
        "{%- if m.role == 'assistant' -%}{{ eos_token }}{%- endif -%}"
        "{%- if not (loop.last and m.role == 'assistant') -%}{{ '\n' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}",
        "<|endoftext|>",
        bos="<|endoftext|>",
    ),
    Family(
        "Vicuna",
        _lines(
            {
                "system": "m.content ~ '\n\n'",
                "user": "'USER: ' ~ m.content ~ '\n'",
                "assistant": "'ASSISTANT: ' ~ m.content ~ eos_token ~ '\n'",
            },
            "",
            generation="ASSISTANT:",
            before="{{ bos_token }}",
        ),
        "</s>",
        "legacy",
        bos="<s>",
    ),
    Family(
        "Alpaca",
        _lines(
            {
                "system": "m.content ~ '\n\n'",
                "user": "'### Instruction:\n' ~ m.content ~ '\n\n'",
                "assistant": "'### Response:\n' ~ m.content ~ '\n\n'",
            },
            "",
            generation="### Response:\n",
            before="{{ bos_token }}",
        ),
        "</s>",
        "legacy",
        bos="<s>",
    ),
    Family(
        "Falcon",
        "{%- for m in messages if m.role != 'tool' -%}{{ '\n\n' if not loop.first else '' }}"
        "{{ m.role.title() ~ ': ' ~ m.content | trim }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ '\n\nAssistant:' }}{%- endif -%}",
        "<|endoftext|>",
    ),
    Family(
        "Falcon 3",
        "{%- for m in messages -%}{{ '<|' ~ m.role ~ '|>\n' ~ m.content }}"
        "{{ eos_token if m.role == 'assistant' and not loop.last else '' }}"
        "{{ '\n' if not loop.last or m.role != 'assistant' else eos_token }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}",
        "<|endoftext|>",
        special=("<|system|>", "<|user|>", "<|assistant|>"),
    ),
    Family(
        "DeepSeek-V3",
        _DEEPSEEK.replace("TEXT", "m.content").replace("OPEN", ""),
        "<|end_of_sentence|>",
        special=("<|User|>", "<|Assistant|>"),
        bos="<|begin_of_sentence|>",
    ),
    Family(
        "DeepSeek-R1",
        _DEEPSEEK.replace("TEXT", "m.content.split('</think>')[-1]").replace("OPEN", "<think>\n"),
        "<|end_of_sentence|>",
        special=("<|User|>", "<|Assistant|>"),
        added=("<think>", "</think>"),
        bos="<|begin_of_sentence|>",
    ),
    Family(
        "DeepSeek-V2",
        _lines(
            {
                "system": "m.content ~ '\n\n'",
                "user": "'User: ' ~ m.content ~ '\n\n'",
                "assistant": "'Assistant: ' ~ m.content ~ eos_token",
            },
            "",
            generation="Assistant:",
            before="{{ bos_token }}",
        ),
        "<|end_of_sentence|>",
        bos="<|begin_of_sentence|>",
    ),
    Family(
        "GLM-4", _GLM, "<|endoftext|>", special=_GLM_SPECIAL, declared=("<|endoftext|>", "<|user|>", "<|observation|>")
    ),
    Family(
        "GLM-4.5",
        "{%- set tool_tags = true -%}" + _GLM,
        "<|endoftext|>",
        special=_GLM_SPECIAL,
        added=("<tool_response>", "</tool_response>", "<think>", "</think>"),
        declared=("<|endoftext|>", "<|user|>", "<|observation|>"),
    ),
    Family(
        "gpt-oss",
        _HARMONY,
        "<|return|>",
        special=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|endoftext|>"),
        declared=("<|return|>", "<|endoftext|>", "<|call|>"),
    ),
    Family(
        "Command R (Cohere)",
        _COMMAND_R.replace("OPEN ~", "").replace("~ CLOSE", ""),
        "<|END_OF_TURN_TOKEN|>",
        special=_COHERE_SPECIAL,
        bos="<BOS_TOKEN>",
    ),
    Family(
        "Command R7B (Cohere2)",
        _COMMAND_R.replace("OPEN", "('<|START_RESPONSE|>' if m.role == 'assistant' else '')").replace(
            "CLOSE", "('<|END_RESPONSE|>' if m.role == 'assistant' else '')"
        ),
        "<|END_OF_TURN_TOKEN|>",
        special=_COHERE_SPECIAL,
        bos="<BOS_TOKEN>",
    ),
    Family(
        "Baichuan2",
        "{%- for m in messages if m.role != 'tool' -%}"
        "{{ {'user': '<reserved_106>', 'assistant': '<reserved_107>', 'system': ''}[m.role] ~ m.content }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}<reserved_107>{%- endif -%}",
        "</s>",
        "legacy",
        ("<reserved_106>", "<reserved_107>"),
        bos="<s>",
    ),
    Family(
        "OpenChat 3.5",
        "{{ bos_token }}{%- for m in messages -%}"
        "{{ 'GPT4 Correct ' ~ m.role.title() ~ ': ' ~ m.content ~ '<|end_of_turn|>' }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}GPT4 Correct Assistant:{%- endif -%}",
        "<|end_of_turn|>",
        "legacy",
        bos="<s>",
    ),
    Family(
        "Granite 3",
        "{%- for m in messages -%}"
        "{{ '<|start_of_role|>' ~ ('tool_response' if m.role == 'tool' else m.role) ~ '<|end_of_role|>' }}"
        "{{ m.content ~ '<|end_of_text|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|start_of_role|>assistant<|end_of_role|>{%- endif -%}",
        "<|end_of_text|>",
        special=("<|start_of_role|>", "<|end_of_role|>"),
    ),
    Family(
        "EXAONE 3.5",
        _lines(
            {
                "system": "'[|system|]' ~ m.content ~ '[|endofturn|]\n'",
                "user": "'[|user|]' ~ m.content ~ '\n'",
                "assistant": "'[|assistant|]' ~ m.content ~ '[|endofturn|]\n'",
            },
            "",
            generation="[|assistant|]",
        ),
        "[|endofturn|]",
        special=("[|system|]", "[|user|]", "[|assistant|]"),
    ),
    Family(
        "Kimi K2",
        "{%- for m in messages -%}"
        "{{ '<|im_' ~ m.role ~ '|>' ~ m.role ~ '<|im_middle|>' ~ m.content ~ '<|im_end|>' }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}",
        "[EOS]",
        special=("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_tool|>", "<|im_middle|>", "<|im_end|>"),
        declared=("<|im_end|>",),
    ),
    Family(
        "ERNIE 4.5",
        "{{ '<|begin_of_sentence|>' }}{%- for m in messages -%}"
        "{%- if m.role == 'user' -%}{{ 'User: ' ~ m.content ~ '\n' }}{%- elif m.role == 'system' -%}"
        "{{ m.content ~ '\n' }}"
        "{%- elif m.role == 'assistant' -%}{{ 'Assistant: ' ~ m.content ~ '<|end_of_sentence|>' }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ 'Assistant: ' }}{%- endif -%}",
        "</s>",
        "first",
        ("<|begin_of_sentence|>", "<|end_of_sentence|>"),
        declared=("<|end_of_sentence|>",),
        bos="<s>",
    ),
    Family(
        "Nemotron (extra ids)",
        "{%- set ns = namespace(system='') -%}{%- for m in messages if m.role == 'system' -%}"
        "{%- set ns.system = m.content -%}{%- endfor -%}"
        "{{ '<extra_id_0>System\n' ~ ns.system ~ '\n' }}{%- for m in messages if m.role != 'system' -%}"
        "{{ '<extra_id_1>' ~ m.role.title() ~ '\n' ~ m.content ~ '\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<extra_id_1>Assistant\n' }}{%- endif -%}",
        "</s>",
        "unigram",
        ("<extra_id_0>", "<extra_id_1>"),
        bos="<s>",
    ),
    Family(
        "Apertus",
        _lines(
            {role: f"'<|{role}_start|>' ~ m.content ~ '<|{role}_end|>'" for role in ("system", "user", "assistant")},
            "",
            generation="<|assistant_start|>",
            before="{{ bos_token }}",
        ),
        "<|assistant_end|>",
        special=("<|system_start|>", "<|system_end|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>"),
        bos="<s>",
    ),
    Family("LFM2", "{{ bos_token }}" + _chatml(), "<|im_end|>", special=("<|im_start|>",), bos="<|startoftext|>"),
    Family(
        "Jamba",
        "{{ bos_token }}{%- for m in messages -%}{{ '<|bom|><|' ~ m.role ~ '|> ' ~ m.content ~ '<|eom|>' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|bom|><|assistant|>' }}{%- endif -%}",
        "<|eom|>",
        "legacy",
        ("<|bom|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|endoftext|>"),
        declared=("<|eom|>", "<|endoftext|>"),
        bos="<|startoftext|>",
    ),
    Family(
        "a template that ignores add_generation_prompt",
        "{%- for m in messages -%}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{%- endfor -%}",
        "<|im_end|>",
        special=_QWEN_SPECIAL,
    ),
    Family(
        "a template that always opens a reply",
        "{%- for m in messages -%}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{%- endfor -%}"
        "{{ '<|im_start|>assistant\n' }}",
        "<|im_end|>",
        special=_QWEN_SPECIAL,
    ),
)
