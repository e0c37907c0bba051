"""How a reply ends: found by rendering, for every kind of template, and what follows each way of ending."""

from __future__ import annotations

import pytest

from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.errors import ModelError
from gspo_rllib.types import ChatSpec
from tests.env_runners.chat_families import FAMILIES
from tests.env_runners.chat_tokenizers import make_tokenizer

BY_NAME = {family.name: family for family in FAMILIES}


def renderer_of(name: str, chat: ChatSpec | None = None) -> ChatRenderer:
    return BY_NAME[name].renderer(chat)


def shown(renderer: ChatRenderer, ids: list[int]) -> str:
    return renderer.format.tokens.shown(ids)


@pytest.mark.parametrize(
    ("name", "kind", "stops"),
    [
        ("Qwen2.5", "token", ["<|im_end|>", "<|endoftext|>"]),
        ("Qwen base models (eos is not the turn end)", "token", ["<|im_end|>", "<|endoftext|>"]),
        ("Gemma, Gemma 2", "token", ["<end_of_turn>", "<eos>"]),
        ("Phi-3, Phi-3.5", "token", ["<|end|>", "<|endoftext|>", "<|assistant|>"]),
        ("Llama 2", "token", ["</s>"]),
        ("Llama 3.1 to 3.3", "token", ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"]),
        ("Mistral 7B v0.3", "token", ["</s>"]),
        ("Command R7B (Cohere2)", "token", ["<|END_OF_TURN_TOKEN|>"]),
        ("GLM-4.5", "header", ["<|user|>", "<|observation|>", "<|endoftext|>"]),
        ("gpt-oss", "other", ["<|return|>", "<|endoftext|>", "<|call|>"]),
        ("ChatML without its tokens", "text", ["</s>"]),
        ("Alpaca", "nothing", ["</s>"]),
    ],
)
def test_a_reply_stops_at_the_templates_own_end_and_at_every_declared_id(name, kind, stops) -> None:
    renderer = renderer_of(name)
    assert renderer.format.end.kind == kind
    assert [shown(renderer, [i]) for i in renderer.stop_token_ids] == stops
    assert renderer.stop == (("<|im_end|>",) if kind == "text" else ())


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("Qwen2.5", "42<|im_end|>"),
        ("Gemma, Gemma 2", "42<end_of_turn>"),
        ("Llama 2", " 42 </s>"),
        ("Command R7B (Cohere2)", "<|START_RESPONSE|>42<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
        ("GLM-4", "\n42<|user|>"),
        ("gpt-oss", "<|channel|>final<|message|>42<|return|>"),
        ("ChatML without its tokens", "42<|im_end|>"),
        ("Nemotron (extra ids)", "42\n<extra_id_1>"),
    ],
)
def test_an_imitated_reply_is_what_the_template_has_a_reply_be(name, reply) -> None:
    renderer = renderer_of(name)
    ids = renderer.reply("42")
    assert shown(renderer, [*renderer.first_prompt("q"), *ids]).endswith(reply)
    assert renderer.decode(ids).strip() == "42"


@pytest.mark.parametrize(
    ("name", "sampled", "following"),
    [
        # Its own end: not written again. Cut, or ended by text: written. Another declared id: it stays, then the end.
        ("Qwen2.5", "42<|im_end|>", "\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"),
        ("Qwen2.5", "42", "<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"),
        ("Qwen2.5", "42<|endoftext|>", "<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"),
        ("Gemma, Gemma 2", "42<end_of_turn>", "\n<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n"),
        ("Gemma, Gemma 2", "42<eos>", "<end_of_turn>\n<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n"),
        ("Llama 2", "42</s>", "<s> [INST] q [/INST]"),
        # An end of several tokens: only what is left of it.
        (
            "Command R7B (Cohere2)",
            "42<|END_RESPONSE|>",
            "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>q<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        ),
        (
            "Command R7B (Cohere2)",
            "42<|END_OF_TURN_TOKEN|>",
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>q<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        ),
        # The next message's header ends a reply, if that message comes.
        ("GLM-4", "42<|user|>", "\nq<|assistant|>"),
        ("GLM-4", "42<|observation|>", "<|user|>\nq<|assistant|>"),
        ("GLM-4", "42", "<|user|>\nq<|assistant|>"),
        ("gpt-oss", "42<|return|>", "<|end|><|start|>user<|message|>q<|end|><|start|>assistant"),
    ],
)
def test_what_follows_a_reply_goes_by_how_it_ended(name, sampled, following) -> None:
    renderer = renderer_of(name)
    ids, _ = renderer.format.tokens.whole(sampled)
    assert shown(renderer, renderer.prompt_after(ids, "q")) == following


def test_a_header_ends_a_reply_only_where_that_message_comes() -> None:
    renderer = renderer_of("GLM-4")
    for ends, role, following in (
        ("<|observation|>", "tool", "\n7<|assistant|>"),
        ("<|user|>", "tool", "<|observation|>\n7<|assistant|>"),
    ):
        ids, _ = renderer.format.tokens.whole(f"42{ends}")
        assert shown(renderer, renderer.prompt_after(ids, "7", role=role)) == following


@pytest.mark.parametrize("more", ["", "\n", "\n<"])
def test_text_that_ends_a_reply_is_not_written_again(more) -> None:
    """The policy's last id may hold more than the end: so much of what the template writes next is there already."""
    renderer = renderer_of("ChatML without its tokens")
    sampled = list(renderer.format.tokens.written(f"42<|im_end|>{more}", "text"))
    assert renderer.decode(sampled) == "42"
    text = shown(renderer, [*sampled, *renderer.prompt_after(sampled, "q")])
    assert text == "42<|im_end|>\n<|im_start|> user\nq<|im_end|>\n<|im_start|> assistant\n".replace("> ", ">")
    cut = list(renderer.format.tokens.written("42", "text"))
    assert shown(renderer, [*cut, *renderer.prompt_after(cut, "q")]) == text


def test_the_end_of_an_earlier_turn_is_no_end_of_this_one() -> None:
    renderer = renderer_of("ChatML without its tokens")
    short = list(renderer.format.tokens.written("4", "text"))
    assert renderer.prompt_after(short, "q") == renderer.prompt_after((), "q")


def test_next_prompt_is_what_follows_a_reply_of_which_only_that_is_known() -> None:
    for family in FAMILIES:
        renderer = family.renderer()
        ended = renderer.reply("42")
        assert renderer.next_prompt("q", reply_ended=True) == renderer.prompt_after(ended, "q"), family.name
        assert renderer.next_prompt("q", reply_ended=False) == renderer.prompt_after((), "q"), family.name


def test_what_is_written_before_the_reply_proper_is_no_part_of_it() -> None:
    renderer = renderer_of("gpt-oss")
    tokens = renderer.format.tokens
    thought = "<|channel|>analysis<|message|>6 times 7<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>"
    assert renderer.decode(tokens.whole(thought)[0]) == "42"
    assert renderer.decode(tokens.whole("<|channel|>analysis<|message|>6 times")[0]) == "analysis6 times"


@pytest.mark.parametrize("special", [True, False])
def test_the_end_is_no_part_of_the_reply_even_where_it_is_no_special_token(special) -> None:
    template = (
        "{%- for m in messages -%}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    )
    names = ("<|im_start|>", "<|im_end|>")
    kinds = {"special": names} if special else {"added": names}
    renderer = ChatRenderer(make_tokenizer("bytes", template, eos="<|endoftext|>", **kinds))
    end = renderer.format.tokens.whole("<|im_end|>")[0]
    assert renderer.stop_token_ids[0] == end[0]
    assert renderer.decode([*renderer.format.tokens.plain("42"), *end]) == "42"


def test_a_template_without_any_conversation_is_refused() -> None:
    tokenizer = make_tokenizer("bytes", "{{ raise_exception('nothing goes') }}", eos="</s>")
    with pytest.raises(ModelError, match="the roles user, assistant: nothing goes"):
        _ = ChatRenderer(tokenizer).stop_token_ids


@pytest.mark.parametrize(
    ("end", "header", "stop"),
    [
        ("<|im_end|>\n", "<|im_start|>", ("<|im_end|>",)),
        ("\nEND\n", "### ", ("END",)),
        ("\n", "### ", ()),  # not "###", which a reply may well hold
    ],
)
def test_the_beginning_of_the_next_header_is_no_end(end: str, header: str, stop: tuple[str, ...]) -> None:
    """A template in plain text that always opens a reply: a header follows the last reply, too."""
    opened = (
        "{%- for m in messages -%}{{ HEADER ~ m.role ~ ':\n' ~ m.content ~ END }}{%- endfor -%}"
        "{{ HEADER ~ 'assistant:\n' }}"
    ).replace("HEADER", repr(header))
    renderer = ChatRenderer(make_tokenizer("bytes", opened.replace("END", repr(end)), eos="</s>"))
    assert renderer.stop == stop
    assert renderer.format.end.kind == ("text" if stop else "nothing")


def test_a_template_that_rewrites_questions_is_still_asked_for_its_end() -> None:
    template = (
        "{% for m in messages %}{{ m.content if m.role == 'assistant' else m.content | upper }}<|im_end|>{% endfor %}"
    )
    renderer = ChatRenderer(make_tokenizer("bytes", template, special=("<|im_end|>",), eos="</s>"))
    assert [shown(renderer, [i]) for i in renderer.stop_token_ids] == ["<|im_end|>", "</s>"]
