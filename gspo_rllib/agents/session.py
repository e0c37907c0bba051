"""What one agent asked the policy during one trajectory: a tree of calls.

A call whose messages go on from an earlier reply is that reply's child: its prompt is the context the engine saw then,
the sampled ids included, and the bridge to what is new. Any other call is a root, and its prompt is written from
scratch. So the prompts hold nothing that was sampled and tokenised again.

A session is used by several threads: the agent's, the server's, and the one that drives the engine.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gspo_rllib.agents.known_replies import KnownReplies
from gspo_rllib.agents.messages import Message, RequestRefused, SessionEnded, start_key
from gspo_rllib.agents.raw_prompts import RawPrompt, RawPrompts
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.replies import Reply, ToolParser, check_tools, read_reply
from gspo_rllib.engines.protocol import Generation

History = Literal["sampled", "as_sent"]
HISTORIES: tuple[History, ...] = ("sampled", "as_sent")
"""What a prompt is made of where a reply is recognised: its sampled ids, or the client's text, always anew."""

NewContext = Literal["new conversation", "other tools", "other first message", "rewritten history", "no bridge"]
"""Why a call that is not the first has a context of its own. The first is what an agent may want (a sub-agent, a
summary), the others are what makes trajectories long without need."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked call.

    Attributes:
        messages: The conversation, its last message not necessarily the user's; none where the prompt is ``raw``.
        tools: Functions the policy may call.
        max_tokens: Most tokens the client wants; None for no wish.
        stop: Strings that end the reply.
        choices: Replies that are sampled from the one prompt.
        template_kwargs: Further arguments of the chat template.
        raw: A prompt that the agent wrote itself, as text or ids, in place of messages.
        reads_tool_calls: Whether what calls a tool is shown as a call, or as the text it was written in.
    """

    messages: Sequence[Message] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    raw: RawPrompt | None = None
    reads_tool_calls: bool = True


@dataclass(frozen=True, slots=True)
class Sampled:
    """A finished request of a session.

    Attributes:
        generation: What the engine returned.
        version: Oldest weights version that sampled any of its ids.
    """

    generation: Generation
    version: int


@dataclass(eq=False, slots=True)
class Call:
    """One reply and what it answered.

    Attributes:
        number: Counts the replies that a session was asked for, from 0.
        parent: The call whose reply this one goes on from; None for a root.
        appended: int32, ids that this call appended to its parent's context; the whole prompt of a root.
        sampled: The reply's ids, log-probabilities and version.
        text: The reply, decoded.
        reply: What the client was given.
        new_text: What the client said since the parent's reply, or all it said.
        delivered: Whether the reply reached the client, as far as is known.
        children: Calls that go on from this one.
        num_awaited: How many more do that are not answered yet.
        token_ids: int32, the sampled ids.
        num_prompt_tokens: How many ids the engine was given for this call.
    """

    number: int
    parent: Call | None
    appended: np.ndarray
    sampled: Sampled
    text: str
    reply: Reply
    new_text: str
    delivered: bool = False
    children: list[Call] = field(default_factory=list)
    num_awaited: int = 0
    token_ids: np.ndarray = field(init=False)
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.token_ids = np.asarray(self.sampled.generation.token_ids, dtype=np.int32)
        before = 0 if self.parent is None else self.parent.num_prompt_tokens + len(self.parent.token_ids)
        self.num_prompt_tokens = before + len(self.appended)

    @property
    def num_followers(self) -> int:
        """How many calls go on from this one, those under way included."""
        return len(self.children) + self.num_awaited

    def prompt(self) -> np.ndarray:
        """int32, all ids the engine was given for this call."""
        parts, call = [self.appended], self.parent
        while call is not None:
            parts += [call.token_ids, call.appended]
            call = call.parent
        return np.concatenate(parts[::-1])


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that is ready to be sampled.

    Attributes:
        request: What the client asked.
        prompt: All ids of the context.
        appended: Those of them that are new; all of them for a root.
        parent: The call it goes on from, if any.
        numbers: Number of each reply to sample.
        max_tokens: Most tokens of each reply.
        chain: The conversation, as ``KnownReplies`` compares it.
        new_text: What the client said since the parent's reply.
    """

    request: ChatRequest
    prompt: list[int]
    appended: list[int]
    parent: Call | None
    numbers: tuple[int, ...]
    max_tokens: int
    chain: list[bytes]
    new_text: str


class Session:
    """The calls of one trajectory.

    Args:
        renderer: Writes messages as ids.
        max_model_len: Longest context of the engine, in tokens.
        max_tokens: Most tokens of a reply, whatever a client asks for.
        max_calls: Most replies of a trajectory; None for no limit.
        history: ``"as_sent"`` writes every prompt from scratch.
        vocab_size: How many ids the model has embeddings for; None where that is not known.
        tool_parser: Finds in replies what they call; None for all formats that are known here.

    Attributes:
        renderer: Writes messages as ids.
        calls: Recorded calls, in the order in which their replies were recorded.
        new_contexts: How often a context was begun beside the first, by cause.
        is_out_of_calls: Whether a call was refused because of ``max_calls``.
    """

    def __init__(
        self,
        renderer: MessageRenderer,
        *,
        max_model_len: int,
        max_tokens: int,
        max_calls: int | None = None,
        history: History = "sampled",
        vocab_size: int | None = None,
        tool_parser: ToolParser | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self.new_contexts: Counter[NewContext] = Counter()
        self.is_out_of_calls = False
        self.renderer = renderer
        self._max_model_len = max_model_len
        self._max_tokens = max_tokens
        self._max_calls = max_calls
        self._keeps_history = history == "sampled"
        self._vocab_size = vocab_size
        self._tool_parser = tool_parser
        self._lock = threading.Lock()
        self._num_asked = 0
        self._sealed = False
        self._replies: KnownReplies[Call] = KnownReplies()
        self._raw: RawPrompts[Call] = RawPrompts()
        self._starts: set[bytes] = set()
        self._first_messages: set[bytes] = set()

    @property
    def is_sealed(self) -> bool:
        """Whether nothing is recorded any more."""
        return self._sealed

    def prepare(self, request: ChatRequest) -> Prepared:
        """Writes the prompt of a call.

        Raises:
            SessionEnded: The session is sealed.
            RequestRefused: The template refuses the messages, they leave no room for a reply, or the trajectory has
                had all its calls.
        """
        check_tools(self._tool_parser, request.tools)
        chain = self._replies.chain(start_key(request.tools, request.template_kwargs), request.messages)
        with self._lock:
            self._check_open(request.choices)
            parent, known = self._recognised(chain, request)
            # At once: what is prepared meanwhile is to go on from another reply, if there are several alike.
            _await(parent, request.choices)
        try:
            return self._prepared(request, chain, parent, known)
        except BaseException:
            with self._lock:
                _await(parent, -request.choices)
            raise

    def _prepared(self, request: ChatRequest, chain: list[bytes], parent: Call | None, known: int) -> Prepared:
        prompt, appended, has_bridge = self._write(request, parent, known)
        room = self._room(prompt, appended)
        new_text = self._new_text(request, known)
        with self._lock:
            self._check_open(request.choices)
            if not has_bridge:
                _await(parent, -request.choices)
                parent = None
            if parent is None and self._keeps_history:
                self._note_new_context(chain, request.messages, has_bridge=has_bridge)
            numbers = tuple(range(self._num_asked, self._num_asked + request.choices))
            self._num_asked += request.choices
        return Prepared(
            request,
            prompt,
            appended,
            parent,
            numbers,
            max_tokens=min(room, self._max_tokens, request.max_tokens or room),
            chain=chain,
            new_text=new_text,
        )

    def withdraw(self, prepared: Prepared) -> None:
        """Notes that nobody waits for the replies to a call any more."""
        with self._lock:
            _await(prepared.parent, -len(prepared.numbers))

    def record(self, prepared: Prepared, number: int, sampled: Sampled) -> Call:
        """Notes a reply; from now on it is recognised.

        Args:
            prepared: The call.
            number: Which of its ``numbers`` this reply is.
            sampled: The reply.

        Raises:
            SessionEnded: The session was sealed meanwhile.
        """
        request, generation = prepared.request, sampled.generation
        decode = self.renderer.decode if request.raw is None else self.renderer.raw_text
        text = decode(generation.token_ids)
        reply = read_reply(
            text,
            number=number,
            tools=request.tools if request.reads_tool_calls else (),
            stop=request.stop,
            finish_reason=generation.finish_reason,
            parser=self._tool_parser,
            with_tokens=lambda: self.renderer.with_tokens(generation.token_ids),
        )
        appended = np.asarray(prepared.appended, dtype=np.int32)
        call = Call(number, prepared.parent, appended, sampled, text, reply, prepared.new_text)
        with self._lock:
            if self._sealed:
                raise SessionEnded
            self.calls.append(call)
            _await(call.parent, -1)
            if call.parent is not None:
                call.parent.children.append(call)
            if request.raw is not None:
                self._raw.note(request.raw, {text, reply.content}, call.token_ids, call)
            elif self._keeps_history:
                self._replies.note(prepared.chain, call, call.parent)
        return call

    def seal(self) -> None:
        """Ends the session: what is still under way is not recorded, and no further call is answered."""
        with self._lock:
            self._sealed = True

    def trained_calls(self) -> list[Call]:
        """The calls to train on, by number: a reply that nobody received is none, unless a call goes on from it."""
        by_number = sorted(self.calls, key=lambda call: call.number)
        # A child is asked for after its parent was recorded, so it has the higher number.
        kept: set[Call] = set()
        for call in reversed(by_number):
            if call.delivered or not kept.isdisjoint(call.children):
                kept.add(call)
        return [call for call in by_number if call in kept]

    def _check_open(self, choices: int) -> None:
        if self._sealed:
            raise SessionEnded
        if self._max_calls is not None and self._num_asked + choices > self._max_calls:
            self.is_out_of_calls = True
            raise RequestRefused(
                f"this trajectory has had {self._num_asked} of at most {self._max_calls} replies (max_turns).",
                code="max_turns_exceeded",
            )

    def _room(self, prompt: Sequence[int], appended: Sequence[int]) -> int:
        """How many tokens a reply may have; refuses a call that the engine would refuse, which ends a run."""
        if not prompt:
            raise RequestRefused("the chat template writes nothing for these messages.", "messages")
        largest = max(appended, default=0)
        if self._vocab_size is not None and largest >= self._vocab_size:
            raise RequestRefused(
                f"these messages hold the token id {largest}, but the model has only {self._vocab_size} "
                "embeddings: the token was added to the tokenizer alone.",
                "messages",
            )
        room = self._max_model_len - len(prompt)
        if room < 1:
            raise RequestRefused(
                f"This model's maximum context length is {self._max_model_len} tokens. However, your messages resulted "
                f"in {len(prompt)} tokens, which leaves no room for a reply.",
                "messages",
                "context_length_exceeded",
            )
        return room

    def _recognised(self, chain: Sequence[bytes], request: ChatRequest) -> tuple[Call | None, int]:
        """The latest reply in the history that this session gave, and the number of messages up to it.

        Of a raw prompt it is the number of characters or ids.
        """
        if not self._keeps_history:
            return None, 0
        if request.raw is not None:
            alike, known = self._raw.recognised(request.raw)
            return min(alike, key=lambda call: (not call.delivered, call.num_followers), default=None), known
        return self._replies.recognised(chain, request.messages)

    def _write(self, request: ChatRequest, parent: Call | None, known: int) -> tuple[list[int], list[int], bool]:
        """The prompt, what of it is new, and whether it goes on from its parent, if there is one."""
        if parent is not None:
            bridge = self._bridge(request, parent, known)
            if bridge:
                prompt = np.concatenate([parent.prompt(), parent.token_ids, np.asarray(bridge, np.int32)]).tolist()
                return prompt, bridge, True
        if request.raw is not None:
            prompt = self.renderer.raw(request.raw) if isinstance(request.raw, str) else list(request.raw)
        else:
            prompt = self.renderer.full(request.messages, request.tools, request.template_kwargs)
        return prompt, prompt, parent is None

    def _bridge(self, request: ChatRequest, parent: Call, known: int) -> list[int] | None:
        """The ids of what follows a reply; None where the template cannot write them."""
        reply = parent.sampled.generation.token_ids
        if request.raw is None:
            system = [message for message in request.messages[:1] if message["role"] == "system"]
            tail = request.messages[known:]
            return self.renderer.bridge(tail, request.tools, request.template_kwargs, reply=reply, system=system)
        rest = request.raw[known:]
        return self.renderer.raw(rest, reply) if isinstance(rest, str) else list(rest)

    def _new_text(self, request: ChatRequest, known: int) -> str:
        """What the client said since the parent's reply."""
        if request.raw is None:
            return "\n".join(message["content"] for message in request.messages[known:] if message["content"])
        rest = request.raw[known:]
        return rest if isinstance(rest, str) else self.renderer.shown(rest)

    def _note_new_context(self, chain: Sequence[bytes], messages: Iterable[Message], *, has_bridge: bool) -> None:
        if self._starts:
            self.new_contexts[self._cause(chain, messages, has_bridge=has_bridge)] += 1
        self._starts.update(chain[:1])
        self._first_messages.update(chain[1:2])

    def _cause(self, chain: Sequence[bytes], messages: Iterable[Message], *, has_bridge: bool) -> NewContext:
        if not any(message["role"] == "assistant" for message in messages):
            return "new conversation"
        if not has_bridge:
            return "no bridge"
        if chain[0] not in self._starts:
            return "other tools"
        return "rewritten history" if chain[1] in self._first_messages else "other first message"


def _await(parent: Call | None, replies: int) -> None:
    """Counts replies of calls that go on from another, on their way or, where negative, no more."""
    if parent is not None:
        parent.num_awaited += replies
