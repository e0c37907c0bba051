"""What an agent's function is given to talk to the policy: a call of its own, or an address for any client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gspo_rllib.agents.door import Door
from gspo_rllib.agents.endpoint import Endpoint
from gspo_rllib.agents.messages import checked_max_tokens, checked_messages, checked_stop, checked_tools
from gspo_rllib.agents.replies import Reply
from gspo_rllib.agents.session import ChatRequest
from gspo_rllib.errors import SettingError

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class AgentSession:
    """The policy, for one trajectory.

    Args:
        door: How calls reach the engine.
        endpoint: Serves them over HTTP where an address is asked for.
        key: What the endpoint knows this session by.
        seed: Seed of the task, the same for all trajectories of a group.

    Attributes:
        api_key: The key of this trajectory, for a client of ``base_url``.
        seed: Seed of the task, for an agent that draws something of its own.
        name: Unique among all trajectories of a run.
    """

    def __init__(self, door: Door, endpoint: Endpoint, *, key: str, seed: int) -> None:
        self.api_key = key
        self.seed = seed
        self.name = door.name
        self._door = door
        self._endpoint = endpoint

    @property
    def base_url(self) -> str:
        """Address of an OpenAI-compatible server on this machine's loopback interface; started when first asked for.

        Raises:
            SettingError: The packages of the server are not installed.
        """
        return self._endpoint.url()

    def client(self) -> AsyncOpenAI:
        """OpenAI's own asynchronous client of this session; with any other client, use ``base_url`` and ``api_key``.

        Raises:
            SettingError: The package ``openai``, or one of the server's, is not installed.
        """
        try:
            import openai
        except ModuleNotFoundError as error:
            raise SettingError("session.client() needs the package openai: pip install openai.") from error
        # The address is plain HTTP: making a TLS context for each trajectory would cost 24 ms of CPU.
        http_client = openai.DefaultAsyncHttpxClient(verify=False)
        return openai.AsyncOpenAI(base_url=self.base_url, api_key=self.api_key, http_client=http_client)

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
