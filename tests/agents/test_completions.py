"""Prompts that an agent writes itself: what goes on from a reply holds its sampled ids."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.agents.session import Call, ChatRequest
from gspo_rllib.agents.stitching import episode_of
from gspo_rllib.types import GroupMember, turns
from tests.agents.made_up_policy import MadeUpPolicy
from tests.agents.serving import Served, served


@pytest.fixture
def one(rich_renderer: MessageRenderer) -> Iterator[Served]:
    with served(rich_renderer) as session:
        yield session


def _client(one: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=one.endpoint.url(), api_key=one.key)


def _ids(one: Served, text: str) -> list[int]:
    ids: list[int] = one.session.renderer._tokenizer.encode(text, add_special_tokens=False)
    return ids


def test_a_prompt_is_shown_as_it_is_and_text_that_grows_stays_one_context(one: Served) -> None:
    client = _client(one)
    prompt = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    for _ in range(3):
        answer = client.completions.create(model="mine", prompt=prompt, max_tokens=7, temperature=0)
        assert (answer.model, answer.choices[0].text, answer.choices[0].finish_reason) == ("mine", "2", "stop")
        prompt += f"{answer.choices[0].text}<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n"
    assert len(one.session.calls) == 3 and one.is_one_context()
    # What spells a token is one, so this is the conversation that the chat template writes.
    one.post({"messages": [{"role": "user", "content": "1 + 1?"}]})
    assert one.requests[3].prompt_token_ids == one.requests[0].prompt_token_ids
    # The end that the policy sampled is not written a second time.
    end = one.session.renderer.stop_token_ids[0]
    assert one.requests[1].prompt_token_ids.count(end) == one.requests[0].prompt_token_ids.count(end) + 2
    assert one.session.calls[1].new_text.endswith("and?<|im_end|>\n<|im_start|>assistant\n")
    assert {request.temperature for request in one.requests} == {0.7}


def test_a_stop_string_may_be_put_back_or_left_out(one: Served) -> None:
    client = _client(one)
    one.text = "Thought: 2\nResult:"
    answer = client.completions.create(model="m", prompt="Q: 1 + 1?\n", stop=["Result:"])
    assert answer.choices[0].text == "Thought: 2\n"
    first = one.session.calls[0]
    put_back = "Q: 1 + 1?\nThought: 2\nResult: 3"
    client.completions.create(model="m", prompt=put_back)
    client.completions.create(model="m", prompt="Q: 1 + 1?\nThought: 2\n!")
    assert [call.parent for call in one.session.calls[1:]] == [first, first]
    assert one.session.renderer.shown(one.session.calls[1].appended) == " 3"
    assert one.session.renderer.shown(one.session.calls[2].appended) == "!"


def test_another_prompt_is_another_context(one: Served) -> None:
    client = _client(one)
    client.completions.create(model="m", prompt="a")
    # Nothing new after the reply, or after its end; not what was said; another beginning.
    for prompt in ("a2", "a2<|im_end|>", "a", "a3b", "b2c"):
        client.completions.create(model="m", prompt=prompt)
    assert [call.parent for call in one.session.calls] == [None] * 6
    assert one.session.new_contexts == {"new conversation": 5}


def test_ids_go_on_from_ids(one: Served) -> None:
    prompt = _ids(one, "1 + 1?")
    path = "/v1/completions"
    answer = one.post({"prompt": prompt, "return_token_ids": True}, path)[2]
    assert answer["prompt_token_ids"] == prompt == one.requests[0].prompt_token_ids
    sampled = answer["choices"][0]["token_ids"]
    assert sampled == one.session.calls[0].token_ids.tolist()
    one.post({"prompt": [[*prompt, *sampled, *_ids(one, "and?")]]}, path)
    assert one.is_one_context() and one.session.renderer.shown(one.session.calls[1].appended) == "and?"
    one.post({"prompt": [*prompt, *sampled[:-1], *_ids(one, "and?")]}, path)
    assert one.session.calls[2].parent is None


def test_choices_log_probabilities_and_streams(one: Served) -> None:
    one.text = "two words"
    client = _client(one)
    answer = client.completions.create(model="m", prompt=["a"], n=2, logprobs=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice, call in zip(answer.choices, one.session.calls, strict=True):
        assert choice.logprobs is not None and choice.logprobs.tokens is not None
        assert choice.logprobs.token_logprobs == [-0.5] * len(call.token_ids)
        assert "".join(choice.logprobs.tokens).startswith("two words")
    chunks = list(client.completions.create(model="m", prompt="b", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "two words"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == len(one.session.calls[2].token_ids)
    assert len({request.seed for request in one.requests}) == 3


def test_history_as_sent_writes_every_prompt_anew(rich_renderer: MessageRenderer) -> None:
    with served(rich_renderer, history="as_sent") as one:
        client = _client(one)
        client.completions.create(model="m", prompt="a")
        client.completions.create(model="m", prompt="a2b")
        assert one.requests[1].prompt_token_ids == _ids(one, "a2b")
        assert one.session.calls[1].parent is None


@pytest.mark.parametrize("kind", ["text", "ids"])
@pytest.mark.parametrize("seed", range(10))
def test_random_trees_of_prompts_are_what_the_engine_saw(rich_renderer: MessageRenderer, kind: str, seed: int) -> None:
    draw = random.Random(seed)
    policy = MadeUpPolicy(rich_renderer, seed)
    asked: list[tuple[Any, Call | None]] = []
    for number in range(12):
        new: Any = "".join(draw.choices(["a", " b", "\n", "é", "<|im_end|>", "<think>", "�"], k=draw.randint(1, 5)))
        new = new if kind == "text" else tuple(rich_renderer.raw(new))
        parent = None
        if number and draw.random() < 0.8:
            parent = policy.session.calls[draw.randrange(number)]
            said = parent.reply.content if kind == "text" else tuple(parent.token_ids.tolist())
            new = asked[parent.number][0] + said + new
        asked.append((new, parent))
        (call,) = policy.ask(ChatRequest(raw=new))
        prompt, _ = policy.seen[call.number]
        # By its text a reply may be taken for another that reads alike; nothing else, and never for none.
        assert kind == "text" or call.parent is parent or (parent is not None and call.parent is not None)
        assert parent is None or call.parent is not None
        if call.parent is not None:
            before, sampled = policy.seen[call.parent.number]
            assert prompt[: len(before) + len(sampled)] == [*before, *sampled]
            assert kind == "text" or tuple(prompt) == new
    turns_ = turns(episode_of(policy.session.trained_calls(), AgentResult(1.0), GroupMember("g", 0, task_seed=0)))
    assert sum(len(turn.action_token_ids) for turn in turns_) == sum(len(ids) for _, ids in policy.seen.values())


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", " is None; it must be text or a list of token ids, not empty."),
    ({"prompt": ""}, "prompt", " is ''; it must be text or a list of token ids, not empty."),
    ({"prompt": []}, "prompt", " is []; it must be text or a list of token ids, not empty."),
    ({"prompt": [[]]}, "prompt", " is []; it must be text or a list of token ids, not empty."),
    ({"prompt": ["a", "b"]}, "prompt", " holds 2 prompts; send one in each call."),
    ({"prompt": [[1], [2]]}, "prompt", " holds 2 prompts; send one in each call."),
    ({"prompt": [1, True]}, "prompt", "[1] is True; a token id is a whole number from 0 to {last}."),
    ({"prompt": [-1]}, "prompt", "[0] is -1; a token id is a whole number from 0 to {last}."),
    ({"prompt": [10**9]}, "prompt", "[0] is 1000000000; a token id is a whole number from 0 to {last}."),
    (
        {"echo": True},
        "echo",
        " is not supported; the answer holds what was sampled; the prompt is known to the client.",
    ),
    ({"suffix": "s"}, "suffix", " is not supported; the policy writes what follows a prompt."),
    ({"best_of": 4}, "best_of", " is not supported; use n, and choose among the replies."),
    ({"logprobs": -1}, "logprobs", " is -1; it must be a whole number of at least 0."),
    ({"n": 17}, "n", " is 17; it must be a whole number from 1 to 16."),
]


@pytest.mark.parametrize(("changes", "param", "words"), REFUSED)
def test_a_broken_field_is_refused_by_its_name(one: Served, changes: dict[str, Any], param: str, words: str) -> None:
    status, _, answer = one.post({"prompt": "a"} | changes, "/v1/completions")
    message = f"{param}{words.format(last=one.session.renderer.num_tokens - 1)}"
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
    assert (status, answer) == (400, {"error": error})
    assert not one.requests


def test_prompts_of_any_kind_are_served(one: Served) -> None:
    for text in ("\0", "\ud800", "\U000f0000", "é" * 100):
        assert one.post({"prompt": text}, "/v1/completions")[0] == 200
