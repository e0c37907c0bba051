"""Renderers on a real tokenizer: with the template of the project's own small models, and with a richer one."""

from __future__ import annotations

import pytest

from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.model_folder import load_tokenizer

# What newer families' templates do: declare tools, write calls, put results in the user's turn, leave the reasoning of
# earlier replies out, and have variables of their own.
RICH_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == "system" %}{{ messages[0].content }}
{% endif %}# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% elif messages[0].role == "system" %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "user" or (message.role == "system" and not loop.first) %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% elif message.role == "assistant" %}<|im_start|>assistant
{{ message.content.split("</think>")[-1].lstrip("\\n") }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% elif message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ note }}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}
{%- endif %}"""


@pytest.fixture(scope="session")
def renderer(tiny_dense: str) -> MessageRenderer:
    tokenizer = load_tokenizer(tiny_dense)
    return MessageRenderer(tokenizer, (tokenizer.eos_token_id,))


@pytest.fixture(scope="session")
def rich_renderer(tiny_dense: str) -> MessageRenderer:
    tokenizer = load_tokenizer(tiny_dense)
    tokenizer.chat_template = RICH_TEMPLATE
    return MessageRenderer(tokenizer, (tokenizer.eos_token_id,))
