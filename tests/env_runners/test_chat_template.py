"""What a chat template is given: names it reads, names it never reads, names that are not the caller's to choose."""

from __future__ import annotations

import pytest

from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.chat_probe import probe
from gspo_rllib.env_runners.chat_template import ChatTemplate, Refused
from gspo_rllib.errors import SettingError
from gspo_rllib.types import ChatSpec
from tests.env_runners.chat_families import FAMILIES
from tests.env_runners.chat_tokenizers import make_tokenizer

BY_NAME = {family.name: family for family in FAMILIES}


def test_the_run_wins_over_the_environment() -> None:
    chat = ChatSpec(template_kwargs={"enable_thinking": True, "other": 1})
    tokenizer = BY_NAME["Qwen3"].tokenizer()
    silent = ChatRenderer(tokenizer, chat, template_kwargs={"enable_thinking": False})
    assert silent.format.template.kwargs == {"enable_thinking": False, "other": 1}
    assert tokenizer.decode(silent.first_prompt("q")).endswith("<think>\n\n</think>\n\n")
    assert not tokenizer.decode(ChatRenderer(tokenizer, chat).first_prompt("q")).endswith("</think>\n\n")


def test_a_date_can_be_set() -> None:
    renderer = BY_NAME["Llama 3.1 to 3.3"].renderer(date_string="1 Jan 2001")
    assert "Today Date: 1 Jan 2001" in renderer.format.tokens.shown(renderer.first_prompt("q"))


def test_other_framings_of_the_same_arguments_share_what_is_known() -> None:
    renderer = BY_NAME["Qwen3"].renderer(enable_thinking=False)
    assert renderer.reframed(ChatSpec(system_prompt="a")).format is renderer.format
    other = renderer.reframed(ChatSpec(system_prompt="a", template_kwargs={"enable_thinking": True, "more": 1}))
    assert other.format is not renderer.format
    assert other.format.template.kwargs == {"enable_thinking": False, "more": 1}
    assert other.stop_token_ids == renderer.stop_token_ids


def test_a_name_that_is_never_read_is_told_with_what_is_read() -> None:
    note = "template_kwargs: the model's chat template never reads {}, so it has no effect. {}"
    thinking = BY_NAME["Qwen3"].renderer(enable_thinkin=False)
    assert probe(thinking).notes == (note.format("'enable_thinkin'", "Did you mean 'enable_thinking'?"),)
    dated = BY_NAME["Llama 3.1 to 3.3"].renderer(ChatSpec(template_kwargs={"x": 1, "date_string": "now"}))
    assert dated.format.template.unread() == note.format("'x'", "Allowed: date_string.")
    assert BY_NAME["Zephyr"].renderer(x=1).format.template.unread() == note.format("'x'", "It reads none.")
    assert BY_NAME["Qwen3"].renderer(enable_thinking=True).format.template.unread() is None


def test_templates_with_tags_of_transformers_are_read_too() -> None:
    template = (
        "{%- for m in messages -%}{%- generation -%}{{ m.content ~ mood }}{%- endgeneration -%}"
        "{%- if loop.last -%}{%- break -%}{%- endif -%}{%- endfor -%}"
    )
    assert ChatTemplate(make_tokenizer("bytes", template, eos="</s>"), {}).reads == {"messages", "mood"}
    assert ChatTemplate(make_tokenizer("bytes", "{% for %}", eos="</s>"), {"a": 1}).unread() is None


@pytest.mark.parametrize("name", ["messages", "tools", "tokenize", "add_generation_prompt", "chat_template"])
def test_what_is_not_the_callers_to_choose_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=f"template_kwargs may not hold '{name}': .* such as enable_thinking"):
        BY_NAME["Qwen3"].renderer(**{name: None})


def test_a_tokenizer_of_several_templates_is_asked_for_the_one_with_tools() -> None:
    plain = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    with_tools = "{{ tools | tojson }}" + plain
    both = {"default": plain, "tool_use": with_tools}
    tokenizer = make_tokenizer("bytes", both, special=("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    look = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    renderer = ChatRenderer(tokenizer, ChatSpec(tools=({"type": "function", "function": look},)))
    assert '"look"' in tokenizer.decode(renderer.first_prompt("q"))
    assert tokenizer.decode(renderer.prompt_after((), "n")) == "<|im_end|><|im_start|>n<|im_end|><|im_start|>"


def test_what_a_template_raises_is_told_with_the_roles() -> None:
    template = ChatTemplate(make_tokenizer("bytes", "{{ messages[0].content + 1 }}", eos="</s>"))
    with pytest.raises(Refused, match="the roles user: can only concatenate str"):
        template.render([{"role": "user", "content": "q"}])
