"""What an agent's function is given to talk to the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gspo_rllib.agents.door import Door
from gspo_rllib.agents.messages import RequestRefused, checked_messages, checked_tools
from gspo_rllib.agents.replies import Reply
from gspo_rllib.agents.session import ChatRequest
from gspo_rllib.errors import shown

MAX_STOP_STRINGS = 16


class AgentSession:
    """The policy, for one trajectory.

    Args:
        door: How calls reach the engine.
        seed: Seed of the task, the same for all trajectories of a group.

    Attributes:
        seed: Seed of the task, for an agent that draws something of its own.
        name: Unique among all trajectories of a run.
    """

    def __init__(self, door: Door, *, seed: int) -> None:
        self.seed = seed
        self.name = door.name
        self._door = door

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Reply:
        """Asks the policy for a reply.

        Append ``reply.message`` to the messages of the next call, and the conversation stays one context.

        Args:
            messages: The whole conversation, OpenAI-shaped: ``{"role": …, "content": …}`` and what belongs to tools.
            tools: Functions the policy may call, OpenAI-shaped.
            max_tokens: Most tokens of the reply; the run's limit holds too.
            stop: Strings that end the reply; it is returned without them.

        Raises:
            RequestRefused: The messages cannot be shown to the policy, leave no room for a reply, or this session has
                ended.
        """
        request = ChatRequest(
            checked_messages(messages),
            checked_tools(tools),
            max_tokens=checked_max_tokens(max_tokens, "max_tokens"),
            stop=checked_stop(stop, "stop"),
        )
        (call,) = await self._door.answer(request)
        call.delivered = True
        return call.reply


def checked_max_tokens(value: Any, name: str) -> int | None:
    """A client's limit on the tokens of a reply.

    Raises:
        RequestRefused: It is no whole number of at least 1.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestRefused(f"{name} is {shown(value)}; it must be a whole number of at least 1.", name)
    return value


def checked_stop(value: Any, name: str) -> tuple[str, ...]:
    """A client's stop strings.

    Raises:
        RequestRefused: They are neither a string nor a list of a few strings, or one is empty.
    """
    if value is None:
        return ()
    strings = (value,) if isinstance(value, str) else value
    fits = isinstance(strings, Sequence) and all(isinstance(one, str) and one for one in strings)
    if not fits or len(strings) > MAX_STOP_STRINGS:
        raise RequestRefused(
            f"{name} is {shown(value)}; it must be a string or a list of at most {MAX_STOP_STRINGS}, none empty.",
            name,
        )
    return tuple(strings)
