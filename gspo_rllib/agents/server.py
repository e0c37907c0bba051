"""The server that agents call: loopback unless told otherwise, one key for each trajectory, in a thread of its own.

What clients say in the dialects of OpenAI and Anthropic is treated alike. Nothing that takes long runs in the event
loop: bodies are read with limits, then long ones are parsed and rendered in a few threads. A client's SDK tries again
when it lost patience, with a header and the same body: that joins the call under way, or gets its answer once more, so
no reply is sampled twice. A reply is trained only if its client was there to read it.

The server shares the interpreter with the engine, so what it computes the engine waits for. Hence the shortest ways
that there are: each change of threads costs a short call as much as writing its prompt.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gspo_rllib.agents.address import LOOPBACK, MoreRoutes, in_url
from gspo_rllib.agents.anthropic_messages import ANTHROPIC_MESSAGES
from gspo_rllib.agents.chat_completions import CHAT_COMPLETIONS
from gspo_rllib.agents.completions import COMPLETIONS
from gspo_rllib.agents.connection import BeforeTheBodyEnded, is_gone, said_already
from gspo_rllib.agents.dialect import Asked, Dialect, parsed_object
from gspo_rllib.agents.door import Begun, OpenSession
from gspo_rllib.agents.messages import RequestRefused
from gspo_rllib.agents.once_told import OnceTold
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.responses import RESPONSES
from gspo_rllib.agents.session import Call

DIALECTS: tuple[Dialect[Any], ...] = (CHAT_COMPLETIONS, RESPONSES, COMPLETIONS, ANTHROPIC_MESSAGES)

MAX_BODY_BYTES = 8 * 2**20
BODY_TIMEOUT_S = 30.0
MAX_OPEN_CALLS = 64
"""Calls of one session at a time."""
MAX_CONNECTIONS = 2000
KEEP_ALIVE_S = 300
"""How long an idle connection is kept: longer than most agents take between two calls."""
COMMENT_S = 10.0
"""Between two comments on a stream whose reply is not there yet."""
MOST_ANSWERS = 2 * MAX_OPEN_CALLS
"""Answers of a session that are kept for a client that asks again."""
START_TIMEOUT_S = 30.0
SHORT_BODY = 8192
"""Bytes of a body that is parsed and rendered where it arrives, which takes milliseconds, but no other thread; unless a
long one is being rendered."""
_THREADS = 4

Find = Callable[[str], OpenSession]


class _Answering:
    """The answer to one body, on its way or there.

    Attributes:
        task: Ends with what was asked, and its replies.
        asked: What was asked, once the body is parsed.
    """

    def __init__(self) -> None:
        self.task: asyncio.Task[tuple[Asked, list[Call]]]
        self.asked: Asked | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no answer to give once more."""
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)


class AgentServer:
    """Listens on a free port until it is stopped.

    Args:
        find: The session of a key; raises RequestRefused where there is none.
        host: IP address to listen on.
        more_routes: What is answered beside sessions' calls; None for nothing.

    Attributes:
        url: Base URL for clients.

    Raises:
        OSError: No port could be had, or the server did not start.
    """

    def __init__(self, find: Find, *, host: str = LOOPBACK, more_routes: MoreRoutes | None = None) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self._socket.bind((host, 0))
        except OSError:
            self._socket.close()
            raise
        self.url = f"http://{in_url(host)}:{self._socket.getsockname()[1]}/v1"
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="gspo-agent-server")
        config = uvicorn.Config(
            make_app(find, self._threads, more_routes),
            log_level="error",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
            limit_concurrency=MAX_CONNECTIONS,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._run, name="gspo-agent-server", daemon=True)
        self._thread.start()
        if not self._server.is_up.wait(START_TIMEOUT_S) or not self._server.started:
            raise OSError(f"the agents' server did not start within {START_TIMEOUT_S:g} seconds.")

    def stop(self) -> None:
        """Stops listening; returns at once."""
        self._server.should_exit = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._server.is_up.set()
            self._socket.close()


class _Server(uvicorn.Server):
    """Uvicorn without signal handlers, which belong to the main thread, and with a word when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = threading.Event()

    def install_signal_handlers(self) -> None:
        pass

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


def make_app(find: Find, threads: ThreadPoolExecutor, more_routes: MoreRoutes | None = None) -> ASGIApp:
    """The application that answers clients.

    Args:
        find: The session of a key; raises RequestRefused where there is none.
        threads: Parse and render long bodies.
        more_routes: What is answered beside sessions' calls; None for nothing.
    """
    more = () if more_routes is None else more_routes(_body, _key)
    handlers = _Handlers(find, threads)
    spoken = {dialect.path: dialect for dialect in DIALECTS}
    routed = Starlette(
        routes=[
            *(Route(d.path, functools.partial(handlers.replies, d), methods=["POST"]) for d in DIALECTS),
            Route("/v1/models", handlers.models, methods=["GET"]),
            Route("/v1/models/{name:path}", handlers.model, methods=["GET"]),
            *more,
        ],
        exception_handlers={RequestRefused: _refused, 404: _no_such_path, 405: _no_such_path},
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        dialect = spoken.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if dialect is None:
            await routed(scope, receive, send)
            return
        # Past the layers of Starlette, which find the route and catch what is raised.
        request = Request(scope, receive, send)
        try:
            response = await handlers.replies(dialect, request)
        except RequestRefused as refused:
            response = await _refused(request, refused)
        await response(scope, receive, send)

    return app


class _Handlers:
    """Answers requests; all in the server's event loop."""

    def __init__(self, find: Find, threads: ThreadPoolExecutor) -> None:
        self._find = find
        self._threads = threads
        self._told = OnceTold()

    async def models(self, request: Request) -> Response:
        self._find(_key(request))
        return JSONResponse({"object": "list", "data": [_model("policy")]})

    async def model(self, request: Request) -> Response:
        self._find(_key(request))
        return JSONResponse(_model(request.path_params["name"]))

    async def replies(self, dialect: Dialect[Any], request: Request) -> Response:
        opened = self._find(_key(request))
        answering = self._answering(dialect, opened, await _body(request), is_retry=_is_retry(request))
        # A client that waits for a stream is told now and then that it still does.
        while not answering.task.done() and (answering.asked is None or answering.asked.stream):
            await asyncio.wait({answering.task}, timeout=COMMENT_S)
            if not answering.task.done() and answering.asked is not None and answering.asked.stream:
                events = _late_stream(dialect, request, opened, answering)
                return StreamingResponse(events, media_type="text/event-stream")
        asked, calls = await answering.task
        _mark_delivered(request, calls)
        renderer = opened.door.session.renderer
        if asked.stream:
            return StreamingResponse(
                _each(list(dialect.events(asked, calls, renderer))), media_type="text/event-stream"
            )
        return JSONResponse(dialect.answer(asked, calls, renderer))

    def _answering(self, dialect: Dialect[Any], opened: OpenSession, raw: bytes, *, is_retry: bool) -> _Answering:
        """The answer to a body: a new one, or for a retry the one under way or the one given before."""
        digest = hashlib.blake2b(raw, digest_size=16, person=dialect.path[-16:].encode()).digest()
        known: _Answering | None = opened.answers.get(digest)
        if is_retry and known is not None and not known.failed:
            return known
        if opened.num_open >= MAX_OPEN_CALLS:
            raise RequestRefused(
                f"this session has {opened.num_open} calls under way, and may have {MAX_OPEN_CALLS}.",
                code="rate_limit_exceeded",
                status=429,
            )
        answering = _Answering()
        at_once = len(raw) <= SHORT_BODY and opened.door.session.renderer.is_idle
        begun = None
        if at_once:
            with self._telling(dialect, opened, answering):
                begun = _begin(dialect, opened, raw, answering)
        opened.num_open += 1
        opened.answers[digest] = answering
        answering.task = asyncio.get_running_loop().create_task(self._answer(dialect, opened, raw, answering, begun))
        answering.task.add_done_callback(lambda done: _closed(opened, done))
        opened.answers.move_to_end(digest)
        while len(opened.answers) > MOST_ANSWERS:
            opened.answers.popitem(last=False)
        return answering

    async def _answer(
        self, dialect: Dialect[Any], opened: OpenSession, raw: bytes, answering: _Answering, begun: Begun | None
    ) -> tuple[Asked, list[Call]]:
        if begun is None:
            # One trip to another thread and back: the event loop goes on meanwhile.
            work = functools.partial(_begin, dialect, opened, raw, answering)
            with self._telling(dialect, opened, answering):
                begun = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        asked = answering.asked
        assert asked is not None
        if len(opened.models) < 2:  # as many as it takes to tell
            opened.models.add(asked.model)
        self._told.models(opened.models)
        return asked, await opened.door.collect(begun)

    @contextmanager
    def _telling(self, dialect: Dialect[Any], opened: OpenSession, answering: _Answering) -> Iterator[None]:
        """Tells what becomes of a body that is read meanwhile."""
        try:
            yield
        except RequestRefused as refused:
            self._told.refused(refused)
            raise
        finally:
            if answering.asked is not None and (names := answering.asked.passed_over):
                self._told.no_effect(names)
                opened.door.on_passed_over(dialect.fields.counted(names))


def _begin(dialect: Dialect[Any], opened: OpenSession, raw: bytes, answering: _Answering) -> Begun:
    """Has the replies to a body sampled; from any thread."""
    answering.asked = _read(dialect, raw, opened.door.session.renderer)
    return opened.door.begin(answering.asked.chat)


def _read(dialect: Dialect[Any], raw: bytes, renderer: MessageRenderer) -> Asked:
    asked: Asked = dialect.read(parsed_object(raw), renderer)
    return asked


async def _late_stream(
    dialect: Dialect[Any], request: Request, opened: OpenSession, answering: _Answering
) -> AsyncIterator[str]:
    """A stream whose reply is not there yet: comments keep the client waiting."""
    while not answering.task.done():
        yield ": the reply is being sampled\n\n"
        await asyncio.wait({answering.task}, timeout=COMMENT_S)
    try:
        asked, calls = answering.task.result()
    except RequestRefused as refused:
        yield dialect.error_event(refused)
        return
    _mark_delivered(request, calls)
    for event in dialect.events(asked, calls, opened.door.session.renderer):
        yield event


async def _each(events: list[str]) -> AsyncIterator[str]:
    for event in events:
        yield event


def _mark_delivered(request: Request, calls: list[Call]) -> None:
    # Before the answer is sent: the agent may end its trajectory as soon as it has it.
    if not is_gone(request):
        for call in calls:
            call.delivered = True


def _closed(opened: OpenSession, task: asyncio.Task[Any]) -> None:
    opened.num_open -= 1
    if not task.cancelled():
        task.exception()  # its client may be gone: nobody else reads it


async def _body(request: Request) -> bytes:
    """The body, within its limits."""
    too_large = RequestRefused(f"the body is larger than {MAX_BODY_BYTES} bytes.", code="body_too_large", status=413)
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and (len(announced) > 20 or int(announced) > MAX_BODY_BYTES):
        raise too_large
    body, more = b"", True
    if (said := said_already(request)) is not None:
        body, more = _part(said)
    parts, size = [body], len(body)
    try:
        if more:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while more and size <= MAX_BODY_BYTES:
                    part, more = _part(await request.receive())
                    parts.append(part)
                    size += len(part)
    except TimeoutError as error:
        message = f"the body did not arrive within {BODY_TIMEOUT_S:g} seconds."
        raise RequestRefused(message, code="body_timeout", status=408) from error
    if size > MAX_BODY_BYTES:
        raise too_large
    return b"".join(parts)


def _part(message: Message) -> tuple[bytes, bool]:
    """A part of a body, and whether more of it follows."""
    if message["type"] == "http.disconnect":
        raise RequestRefused("the client went away.", status=400)
    return message.get("body", b""), bool(message.get("more_body"))


def _key(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


def _is_retry(request: Request) -> bool:
    count = request.headers.get("x-stainless-retry-count", "0")
    return count.isdecimal() and count.strip("0") != ""


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "gspo-rllib"}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    # SDKs retry some of these on their own, and would be refused again, but for a session that is busy.
    headers = {"x-should-retry": "true" if error.status == 429 else "false"}
    answer: type[JSONResponse] = JSONResponse
    if error.code in ("body_timeout", "body_too_large"):
        headers["connection"] = "close"
        answer = BeforeTheBodyEnded
    spoken = next((one for one in DIALECTS if request.url.path.startswith(one.path)), CHAT_COMPLETIONS)
    return answer(spoken.error(error), status_code=error.status, headers=headers)


async def _no_such_path(request: Request, error: Exception) -> Response:
    refused = RequestRefused(
        f"{request.method} {request.url.path[:100]} is not served; GET /v1/models is, and POST "
        f"{', '.join(dialect.path for dialect in DIALECTS)}. Anthropic's client is given the address without /v1.",
        status=404,
    )
    return await _refused(request, refused)
