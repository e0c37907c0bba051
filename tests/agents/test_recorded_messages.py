"""Recorded messages have the ids that a live agent's would have had, and only the policy's replies are trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_rllib.agents.messages import checked_messages
from gspo_rllib.agents.recorded_calls import Outcome, episode_of_calls, linked_calls
from gspo_rllib.agents.recorded_messages import calls_of_conversations
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.agents.stitching import episode_of
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.errors import RecordError
from gspo_rllib.types import ChatSpec, GroupMember, TokenTrajectory, turns
from tests.agents.made_up_policy import MadeUpPolicy, user
from tests.env_runners.chat_families import FAMILIES, Family

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SYSTEM = {"role": "system", "content": "Be brief."}
MEMBER = GroupMember("g", 0, 0)


def _said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def _trajectory(conversations: list[Any], renderer: MessageRenderer) -> TokenTrajectory:
    calls = linked_calls(calls_of_conversations(conversations, renderer, "t"), "t")
    # As ``train_on`` does for those without log-probabilities.
    for call in calls:
        call.logp = np.zeros(len(call.token_ids), np.float32) if call.logp is None else call.logp
    return token_trajectory(episode_of_calls(calls, Outcome(1.0), MEMBER))


def _assert_same(ours: TokenTrajectory, theirs: TokenTrajectory) -> None:
    assert [ids.tolist() for ids in ours.segments] == [ids.tolist() for ids in theirs.segments]
    assert [mask.tolist() for mask in ours.loss_masks] == [mask.tolist() for mask in theirs.loss_masks]


def test_replies_with_their_ids_are_those_of_the_live_agent(rich_renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(rich_renderer)
    asked: list[Any] = [SYSTEM, user("1 + 2?")]
    first = policy.say(asked, "<think>easy</think>3", tools=(ADD,))
    asked += [first.reply.message, user("Sure?")]
    second = policy.say(asked, "Yes", ends=False, tools=(ADD,))
    live = episode_of(policy.session.trained_calls(), AgentResult(1.0), MEMBER)

    def reply(call: Any) -> dict[str, Any]:
        generation = call.sampled.generation
        return call.reply.message | {
            "sampled_ids": generation.token_ids,
            "logprobs": generation.logp.tolist(),
            "version": call.sampled.version,
            "finish_reason": generation.finish_reason,
        }

    recorded = [SYSTEM, user("1 + 2?"), reply(first), user("Sure?"), reply(second)]
    (one, two) = linked_calls(calls_of_conversations([{"messages": recorded, "tools": [ADD]}], rich_renderer, "t"), "t")
    for call, turn in zip((one, two), turns(live), strict=True):
        assert call.appended.tolist() == turn.prompt_token_ids.tolist()
        assert call.token_ids.tolist() == turn.action_token_ids.tolist()
        assert call.logp is not None and call.logp.tobytes() == turn.action_logp.tobytes()
        assert (call.version, call.finish_reason) == (turn.policy_version, turn.finish_reason)
    assert [call.observation for call in (one, two)] == live.get_observations()[:-1]
    assert [call.text for call in (one, two)] == live.get_actions()


@pytest.mark.parametrize("family", [pytest.param(family, id=family.name) for family in FAMILIES])
def test_a_trainable_text_has_the_ids_of_a_demonstration(family: Family) -> None:
    tokenizer = family.tokenizer()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in family.declared]
    renderer, demonstrated = MessageRenderer(tokenizer, ends, family.kwargs), family.renderer(ChatSpec())
    first, second = demonstrated.reply("three"), demonstrated.reply("yes")
    expected = [demonstrated.first_prompt("one plus two"), first, demonstrated.prompt_after(first, "sure"), second]
    messages = [user("one plus two"), _said("three", trainable=True), user("sure"), _said("yes", trainable=True)]
    (segment,), (mask,) = (
        getattr(_trajectory([{"messages": messages}], renderer), name) for name in ("segments", "loss_masks")
    )
    assert segment.tolist() == [token for ids in expected for token in ids]
    assert mask.tolist() == [n % 2 == 1 for n, ids in enumerate(expected) for _ in ids]


def test_what_others_said_is_context(rich_renderer: MessageRenderer) -> None:
    others = [user("Plan?"), _said("From another model."), user("Go on."), _said("Mine", trainable=True)]
    others += [
        user("More?"),
        _said("Also another's.", trainable=False),
        user("And?"),
        _said("Mine too", trainable=True),
    ]
    trajectory = _trajectory([{"messages": others}], rich_renderer)
    (segment,), (mask,) = trajectory.segments, trajectory.loss_masks
    assert rich_renderer._tokenizer.decode(segment[mask]) == "Mine<|im_end|>Mine too<|im_end|>"
    shown = rich_renderer._tokenizer.decode(segment)
    assert shown.count("From another model.") == shown.count("Also another's.") == 1


def test_contexts_of_one_trajectory_are_segments(rich_renderer: MessageRenderer) -> None:
    main = [user("Task"), _said("delegate", trainable=True, reward=0.5)]
    sub = [SYSTEM, user("Sub-task"), _said("done", trainable=True, finish_reason="length")]
    trajectory = _trajectory([{"messages": main}, {"messages": sub, "tools": [ADD]}], rich_renderer)
    assert [int(mask.sum()) > 0 for mask in trajectory.loss_masks] == [True, True]
    assert trajectory.turn_rewards.tolist() == [0.5, 1.0]
    decoded = [rich_renderer._tokenizer.decode(ids) for ids in trajectory.segments]
    assert decoded[1].endswith("done"), "it ran out of tokens, so it has no end"
    assert decoded[0] == rich_renderer._tokenizer.decode(
        [*rich_renderer.full(checked_messages(main[:1]), (), {}), *rich_renderer.reply("delegate", [0])]
    )


WRONG: list[tuple[Any, str]] = [
    ([], "conversation 0: messages is []; it must be a list of at least one message."),
    ([7], "conversation 0, message 0 is 7; it must be an object."),
    ([user("a") | {"trainble": True}], "message 0: 'trainble' is unknown. Did you mean 'trainable'?"),
    ([user("a") | {"trainable": True}], "message 0 has trainable and the role 'user'; only an assistant's may."),
    ([user("a") | {"reward": 1}], "message 0 has reward and the role 'user'; only an assistant's may."),
    ([user("a"), _said("b", trainable=1)], "message 1: trainable is 1; allowed: True, False."),
    (
        [user("a"), _said("b", reward=1)],
        'message 1 has reward and is no reply of the policy: that has sampled_ids, or "',
    ),
    ([user("a"), _said("b", trainable=False, sampled_ids=[1])], 'message 1 has sampled_ids and "trainable": false;'),
    ([user("a"), _said("b", trainable=True, logprobs=[-1])], "message 1 has logprobs without the sampled_ids they"),
    (
        [user("a"), _said("b", sampled_ids=["1"])],
        "message 1: sampled_ids is ['1']; it must be a list of whole numbers.",
    ),
    ([_said("b", trainable=True)], "message 0 is the policy's; a conversation begins with what it replies to."),
    ([user("a"), _said("b")], "t: no message is a reply of the policy. One has sampled_ids, or is marked"),
    ([{"role": "x", "content": ""}], "conversation 0: messages[0].role is 'x'; allowed: system, developer, user,"),
    (
        [user("a"), {"role": "assistant", "trainable": True, "tool_calls": [{"function": {"name": "add"}}]}],
        "message 1 is trainable and has tool_calls, which every model writes in its own way.",
    ),
]


@pytest.mark.parametrize(("messages", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_wrong_messages_are_refused_with_their_place(
    messages: Any, message: str, rich_renderer: MessageRenderer
) -> None:
    with pytest.raises(RecordError) as refused:
        calls_of_conversations([{"messages": messages}], rich_renderer, "t")
    assert message in str(refused.value)


def test_what_is_no_conversation_is_refused(rich_renderer: MessageRenderer) -> None:
    for row, message in (
        (7, "t, conversation 0 is 7; it must be an object."),
        ({"messages": [user("a")], "tool": []}, "conversation 0: 'tool' is unknown. Did you mean 'tools'?"),
        ({"messages": [user("a")], "tools": [7]}, "conversation 0: tools[0] is 7; it must be"),
    ):
        with pytest.raises(RecordError) as refused:
            calls_of_conversations([row], rich_renderer, "t")
        assert message in str(refused.value)
