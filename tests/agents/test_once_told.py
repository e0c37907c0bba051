"""What the log says once: calls that were refused, and trajectories that ask for several models."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from gspo_rllib.agents.rendering import MessageRenderer
from tests.agents.made_up_policy import user
from tests.agents.serving import Served, served

IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.fixture
def one(rich_renderer: MessageRenderer) -> Iterator[Served]:
    with served(rich_renderer, max_model_len=60) as session:
        yield session


def _told(one: Served, caplog: pytest.LogCaptureFixture, *bodies: dict[str, Any]) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="gspo_rllib"):
        for body in bodies:
            one.post(body)
    return [record.getMessage() for record in caplog.records]


def test_a_refused_call_is_told_once_wherever_it_is_and_the_end_of_a_context_never(
    one: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with_images = [{"messages": [*[user("a")] * n, {"role": "tool", "content": [IMAGE]}]} for n in range(3)]
    too_long = {"messages": [user("a " * 100)]}
    assert _told(one, caplog, too_long, *with_images, with_images[0]) == [
        "A call of an agent was refused: messages[0].content[0] is {'type': 'image_url', 'image_url': {'url': 'x'}}; "
        "only parts of type text can be shown to this policy. If the agent passes over that, it is trained on what it "
        "did without a reply."
    ]
    assert len(_told(one, caplog, {"messages": [user("a")], "n": 0}, {"messages": [user("a")], "n": 99})) == 1
    one.session.seal()
    assert not _told(one, caplog, {"messages": [user("a")]})


def test_other_models_are_the_policy_too_which_is_told(one: Served, caplog: pytest.LogCaptureFixture) -> None:
    asked = [{"messages": [user("a")], "model": name} for name in ("policy", "policy", "judge", "third", "judge")]
    assert not _told(one, caplog, *asked[:2])
    assert _told(one, caplog, *asked[2:]) == [
        "One trajectory asks for the models 'judge', 'policy'. All of them are the policy, and whatever it is asked "
        "for is trained: a judge, or another model, needs an address of its own."
    ]
