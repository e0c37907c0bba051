"""A warning says once why conversations do not stay one context."""

from __future__ import annotations

import logging

import pytest

from gspo_rllib.agents.context_watch import ENOUGH, ContextWatch
from gspo_rllib.agents.rendering import MessageRenderer
from tests.agents.made_up_policy import MadeUpPolicy, user


def _session(renderer: MessageRenderer, *, clock: bool) -> MadeUpPolicy:
    policy = MadeUpPolicy(renderer)
    messages = [{"role": "system", "content": "It is 12:00."}, user("a")]
    for minute in range(3):
        messages[0] = {"role": "system", "content": f"It is 12:0{minute}." if clock else "It is noon."}
        call = policy.say(messages, "b")
        messages = [*messages, call.reply.message, user("c")]
    return policy


def test_a_clock_in_the_system_prompt_is_named_once(
    rich_renderer: MessageRenderer, caplog: pytest.LogCaptureFixture
) -> None:
    watch = ContextWatch()
    split = _session(rich_renderer, clock=True).session
    assert split.new_contexts == {"other first message": 2}
    with caplog.at_level(logging.WARNING, logger="gspo_rllib"):
        for _ in range(2 * ENOUGH):
            watch.note(split)
    assert len(caplog.records) == 1
    assert "16 of 16 trajectories" in caplog.text and "system prompt does that holds the time" in caplog.text


def test_conversations_that_stay_one_or_are_begun_on_purpose_are_no_cause(
    rich_renderer: MessageRenderer, caplog: pytest.LogCaptureFixture
) -> None:
    plain = _session(rich_renderer, clock=False)
    plain.say([user("a question of its own")], "b")
    assert plain.session.new_contexts == {"new conversation": 1}
    watch = ContextWatch()
    with caplog.at_level(logging.WARNING, logger="gspo_rllib"):
        for _ in range(2 * ENOUGH):
            watch.note(plain.session)
    assert not caplog.records
