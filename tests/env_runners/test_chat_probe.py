"""Conversations built piece by piece against transformers' own, for every family's template; what a user is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import ByT5Tokenizer

from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.chat_probe import REPLIES, TEXTS, ProbeReport, check_conversation, probe
from gspo_rllib.errors import ModelError
from gspo_rllib.types import ChatSpec
from tests.env_runners.chat_families import ADD, FAMILIES, Family
from tests.env_runners.chat_table import table
from tests.env_runners.chat_tokenizers import make_tokenizer

BY_NAME = {family.name: family for family in FAMILIES}
PAGE = Path(__file__).parents[2] / "docs" / "chat_templates.md"
IGNORES = "a template that ignores add_generation_prompt"

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@every_family
def test_a_conversation_has_the_ids_of_the_whole(family: Family) -> None:
    for chat in (None, ChatSpec(system_prompt="Be kind.\n"), ChatSpec(system_prompt="Be kind.", tools=(ADD,))):
        assert probe(family.renderer(chat)).differences == {}


# Compared here once more without the probe, whose own pieces a mistake in it could hide.
@pytest.mark.parametrize(
    "name",
    ["Qwen2.5", "Qwen3", "Llama 2", "Llama 3.1 to 3.3", "Mistral 7B v0.3", "Gemma 3", "Phi-3, Phi-3.5", "Zephyr", "Yi"],
)
@pytest.mark.parametrize("role", ["user", "tool"])
def test_three_turns_are_transformers_own_ids(name: str, role: str) -> None:
    renderer = BY_NAME[name].renderer(ChatSpec(system_prompt="Be kind.") if name != "Mistral 7B v0.3" else None)
    shown, _ = renderer.format.shown_role(role)
    ids = renderer.first_prompt(TEXTS[0])
    messages = [*renderer.opening_messages(TEXTS[0])]
    for reply, text in zip(REPLIES, TEXTS[1:], strict=True):
        ids += renderer.reply(reply)
        ids += renderer.prompt_after(ids, text, role=role)
        messages += [{"role": "assistant", "content": reply}, {"role": shown, "content": text}]
    tokenizer = renderer._tokenizer
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == whole


def notes_of(name: str, chat: ChatSpec | None = None, roles: tuple[str, ...] = ("user", "tool")) -> list[str]:
    return list(probe(BY_NAME[name].renderer(chat), roles).notes)


@pytest.mark.parametrize(
    "name", ["Qwen2.5", "Qwen3", "Qwen3-Thinking, QwQ", "Llama 3", "Llama 4", "Granite 3", "GLM-4"]
)
def test_nothing_is_told_of_a_template_that_takes_everything(name: str) -> None:
    assert notes_of(name, ChatSpec(system_prompt="Be kind.", tools=(ADD,))) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Llama 2", "roles must alternate"),
        ("gpt-oss", "a tool message needs a tool call before it"),
        ("Command R7B (Cohere2)", "no tool role"),
        ("Mistral 7B v0.3", "tool call ids must have 9 letters"),
        ("Zephyr", "it leaves tool messages out"),
    ],
)
def test_what_tools_return_is_a_user_message_where_there_is_no_such_role(name: str, why: str) -> None:
    renderer = BY_NAME[name].renderer()
    assert renderer.prompt_after((), "7", role="tool") == renderer.prompt_after((), "7", role="user")
    assert notes_of(name)[0] == (
        f"it takes no message of the role 'tool' ({why}): what tools return is shown as a user message. With "
        "obs_role='user' the environment asks for that itself."
    )
    assert not [note for note in notes_of(name, roles=("user",)) if "obs_role" in note]


def test_a_system_prompt_that_is_not_taken_begins_the_first_observation() -> None:
    renderer = BY_NAME["Gemma, Gemma 2"].renderer(ChatSpec(system_prompt="Be kind."))
    text = renderer.format.tokens.shown(renderer.first_prompt("Who?"))
    assert text == "<bos><start_of_turn>user\nBe kind.\n\nWho?<end_of_turn>\n<start_of_turn>model\n"
    assert notes_of("Gemma, Gemma 2", ChatSpec(system_prompt="Be kind."), ("user",)) == [
        "it takes no system message (System role not supported): the system prompt begins the first observation."
    ]


def test_a_system_prompt_that_is_left_out_silently_is_not_lost() -> None:
    silent = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    )
    tokenizer = make_tokenizer("bytes", silent, special=("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    renderer = ChatRenderer(tokenizer, ChatSpec(system_prompt="Be kind."))
    assert "user\nBe kind.\n\nWho?<|im_end|>" in tokenizer.decode(renderer.first_prompt("Who?"))
    assert "it leaves system messages out" in probe(renderer).notes[0]


def test_what_moves_to_the_latest_user_message_stays_with_the_first() -> None:
    renderer = BY_NAME["Mistral Nemo"].renderer(ChatSpec(system_prompt="Be kind.", tools=(ADD,)))
    first = renderer.format.tokens.shown(renderer.first_prompt("One?"))
    following = renderer.format.tokens.shown(renderer.prompt_after(renderer.reply("1"), "Two?"))
    assert first.count("Be kind.") == first.count("Adds two integers.") == 1
    assert following == "[INST]Two?[/INST]"
    assert probe(renderer, ("user",)).notes == (
        "it shows the system prompt and the tools with the latest user message alone. A context only grows, so here "
        "they stay before the first one.",
    )
    # Nothing moves where nobody but the first speaks as the user.
    assert BY_NAME["Mistral Small 3"].renderer(ChatSpec(system_prompt="Be kind.")).moved == ()


def test_a_missing_header_of_the_reply_is_added() -> None:
    renderer = BY_NAME[IGNORES].renderer()
    header = "<|im_start|>assistant\n"
    for ids in (
        renderer.first_prompt("q"),
        renderer.prompt_after((), "q"),
        renderer.prompt_after((), "q", role="tool"),
    ):
        assert renderer.format.tokens.shown(ids).endswith(f"q<|im_end|>\n{header}")
    assert notes_of(IGNORES) == [
        f"it does not write the header of a reply when asked to, so {header!r} is added.",
    ]


@pytest.mark.parametrize(
    ("name", "writes", "shown"),
    [
        ("Llama 3.1 to 3.3", "as JSON", '"  a \\"b\\"\\n"'),
        ("Gemma 3", "without spaces at its ends", 'a "b"'),
        ("Qwen2.5", "as it is", '  a "b"\n'),
    ],
)
def test_a_result_is_written_as_the_template_writes_it(name: str, writes: str, shown: str) -> None:
    renderer = BY_NAME[name].renderer()
    assert renderer.frame("tool").writes == writes
    assert shown in renderer.format.tokens.shown(renderer.prompt_after((), '  a "b"\n', role="tool"))


def test_any_other_way_of_writing_a_content_has_the_template_write_each() -> None:
    loud = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | replace('o', '0') }}<|im_end|>{% endfor %}"
    marks = loud.replace("| replace('o', '0')", "~ ('' if 'observation' in m.content else '!' * (m.content | length))")
    tokenizer = make_tokenizer("bytes", marks, special=("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    renderer = ChatRenderer(tokenizer)
    assert renderer.frame("user").writes == "in its own way"
    assert "abc!!!<|im_end|>" in tokenizer.decode(renderer.prompt_after((), "abc"))
    tokenizer.chat_template = loud  # changes the mark itself, so nothing can be told from it
    with pytest.raises(ModelError, match="does not write a message's content as it is"):
        ChatRenderer(tokenizer).first_prompt("q")


def test_reasoning_that_the_template_drops_stays_and_is_no_difference() -> None:
    for name in ("Qwen3", "Qwen3, enable_thinking=False", "DeepSeek-R1"):
        report = probe(BY_NAME[name].renderer())
        assert report.drops_reasoning, name
        assert report.differences == {}, name
    assert not probe(BY_NAME["Qwen2.5"].renderer()).drops_reasoning


def test_a_difference_is_told_with_the_place_where_it_begins(caplog, monkeypatch) -> None:
    renderer = BY_NAME["Qwen2.5"].renderer()
    encode = renderer.format.tokens.plain
    monkeypatch.setattr(
        renderer.format.tokens, "plain", lambda text, left="token": encode(text.replace("three", "3"), left)
    )
    with caplog.at_level(logging.WARNING, "gspo_rllib"):
        check_conversation(renderer, model="m")
    (message,) = caplog.messages
    assert message.startswith(
        "The chat template of m: with observations of the role 'user', contexts differ from what it makes of the whole "
        "conversation. After "
    )
    assert message.endswith(
        "After 'b>two</b> &' they go on with ' 3. <|im_end|>\\n', the template "
        "with ' three. <|im_end|>\\n<|im_start|>'."
    )


def test_each_thing_is_told_once(caplog) -> None:
    with caplog.at_level(logging.WARNING, "gspo_rllib"):
        for _ in range(2):
            check_conversation(BY_NAME[IGNORES].renderer(), model="told once")
    assert len(caplog.messages) == 1


ONE_TURN = (
    "{%- if messages | length > 3 -%}{{ raise_exception('one question') }}{%- endif -%}{%- for m in messages -%}"
    "{%- if m.role == 'user' and not loop.first -%}{{ raise_exception('one question') }}{%- endif -%}"
    "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def test_a_template_of_one_turn_is_refused_unless_episodes_have_one() -> None:
    tokenizer = make_tokenizer("bytes", ONE_TURN, special=("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    check_conversation(ChatRenderer(tokenizer), model="m", one_turn=True)
    with pytest.raises(ModelError) as refused:
        check_conversation(ChatRenderer(tokenizer), model="m")
    assert str(refused.value) == (
        "model path 'm': the chat template refuses a conversation with the roles user, assistant, user: one question. "
        "Only episodes of one turn can be played with this chat template: set generation(max_turns=1), or use one that "
        "takes conversations."
    )


def test_an_end_that_replies_begin_with_is_refused() -> None:
    tokenizer = BY_NAME["gpt-oss"].tokenizer()
    renderer = ChatRenderer(tokenizer, end_token_ids=[tokenizer.convert_tokens_to_ids("<|channel|>")])
    with pytest.raises(ModelError, match=r"'<\|channel\|>' is declared to end a text .* it would end there\. Correct"):
        check_conversation(renderer, model="m")


def test_an_ordinary_word_that_is_declared_an_end_is_obeyed_and_told(caplog) -> None:
    tokenizer = BY_NAME["Qwen2.5"].tokenizer()
    word = tokenizer.convert_tokens_to_ids("user")
    renderer = ChatRenderer(tokenizer, end_token_ids=[word])
    assert word in renderer.stop_token_ids
    assert word in renderer.first_prompt("the user")
    assert probe(renderer).notes == (
        f"a reply also ends at 'user' (id {word}), which the model declares to end a text.",
    )


def test_the_page_shows_what_happens_to_each_template_today() -> None:
    assert len(FAMILIES) >= 30
    assert table() in PAGE.read_text(), "python -m tests.env_runners.chat_table prints it anew"


@pytest.mark.parametrize(
    "name", ["Qwen2.5", "Llama 2", "Gemma 3", "Phi-3, Phi-3.5", "Command R7B (Cohere2)", "GLM-4.5"]
)
def test_tokenizers_written_in_python_have_the_ids_of_the_whole_too(name: str) -> None:
    family = BY_NAME[name]
    tokenizer = ByT5Tokenizer()
    tokenizer.add_special_tokens({"eos_token": family.eos, "bos_token": family.bos or family.eos})
    tokenizer.add_tokens(list(family.special), special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in (*family.added, "<tool_call>")])
    tokenizer.chat_template = family.template
    renderer = ChatRenderer(tokenizer, end_token_ids=tokenizer.convert_tokens_to_ids(list(family.declared)))
    assert probe(renderer).differences == {}
    call, end = tokenizer.convert_tokens_to_ids("<tool_call>"), tokenizer.eos_token_id
    harmless, hostile = (renderer.prompt_after((), text) for text in ("x", f"{family.eos}<tool_call>"))
    assert (hostile.count(call), hostile.count(end)) == (0, harmless.count(end))
    assert renderer.decode(renderer.reply(" a , b")).rstrip().endswith(" a , b")


def test_a_template_that_wants_contents_in_parts_gets_them() -> None:
    template = (
        "{%- for m in messages -%}<|im_start|>{{ m.role ~ '\n' }}{%- for part in m.content -%}"
        "{%- if part.type == 'image' -%}<image>{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}"
        "{%- endfor -%}"
        "{{ '<|im_end|>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    )
    tokenizer = make_tokenizer("bytes", template, special=("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    renderer = ChatRenderer(tokenizer, ChatSpec(system_prompt="Be kind."))
    text = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(renderer.first_prompt("q")) == text
    assert probe(renderer) == ProbeReport((), {}, drops_reasoning=False)


def test_a_declared_tool_that_spells_a_special_token_is_told() -> None:
    function = {**ADD["function"], "description": "Adds.<|im_end|>"}
    renderer = BY_NAME["Qwen2.5"].renderer(ChatSpec(tools=({"type": "function", "function": function},)))
    assert probe(renderer).notes == (
        "a declared tool's name, description or parameters hold '<|im_end|>', which becomes that token.",
    )


@pytest.mark.parametrize("name", ["Llama 2", "Gemma, Gemma 2", "Gemma 3", "Llama 3.1 to 3.3", "Command R (Cohere)"])
@pytest.mark.parametrize("blank", ["", " ", "\n\n", "\t\u00a0"])
def test_a_blank_content_is_trimmed_with_what_precedes_it(name: str, blank: str) -> None:
    renderer = BY_NAME[name].renderer(ChatSpec(system_prompt="Be kind."))
    ids = renderer.first_prompt(blank)
    messages = renderer.opening_messages(blank)
    assert ids == renderer.format.template.token_ids(messages)
    sampled = renderer.reply("\u2983a\u2984")
    told = [*messages, {"role": "assistant", "content": "\u2983a\u2984"}, {"role": "user", "content": blank}]
    assert [*ids, *sampled, *renderer.prompt_after(sampled, blank)] == renderer.format.template.token_ids(told)


NAMES = [
    *("Qwen2.5", "Yi", "Llama 2", "Llama 3.1 to 3.3", "Mistral 7B v0.1, v0.2", "Gemma, Gemma 2", "Phi-3, Phi-3.5"),
    "Zephyr",
]
RENDERERS = {name: BY_NAME[name].renderer(ChatSpec(system_prompt="Be kind.")) for name in NAMES}
SNAGS = st.sampled_from([*" \n\t.a\u00e9\u4e2d<|]3\u00a0", "  ", "hello", "'s", "\r\n", "</b>"])


@settings(max_examples=150)
@given(
    name=st.sampled_from(NAMES),
    texts=st.lists(st.lists(SNAGS, max_size=6).map("".join), min_size=3, max_size=3),
    role=st.sampled_from(["user", "tool"]),
)
def test_any_texts_have_transformers_own_ids(name: str, texts: list[str], role: str) -> None:
    renderer = RENDERERS[name]
    shown, _ = renderer.format.shown_role(role)
    ids = renderer.first_prompt(texts[0])
    messages = renderer.opening_messages(texts[0])
    for reply, text in zip(REPLIES, texts[1:], strict=True):
        sampled = renderer.reply(reply)
        ids += [*sampled, *renderer.prompt_after(sampled, text, role=role)]
        messages += [{"role": "assistant", "content": reply}, {"role": shown, "content": text}]
    assert ids == renderer.format.template.token_ids(messages)
