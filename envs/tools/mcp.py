"""Tools of an MCP server, for a ``ToolEnv``: a program started here and spoken to over its pipes, or one behind a URL.

Needs the package mcp: ``pip install 'gspo-rllib[mcp]'``. A server started here runs with the rights of this process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from gspo_rllib.envs.tools.declare import Tool
from gspo_rllib.errors import EnvError, SettingError, described

_START_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 10.0
_LAST_WORDS = 300  # how many characters of its stderr an error quotes when a server does not start
_CONNECTION_CLOSED = -32000  # MCP's error code


def mcp_tools(
    *,
    command: Sequence[str] | None = None,
    url: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> McpTools:
    """Connects to an MCP server and makes tools of what it offers.

    Args:
        command: Program and arguments to start; it speaks MCP over stdin and stdout.
        url: Where a server is running, e.g. ``"http://localhost:8000/mcp"``.
        env: Environment variables the program gets beside the few harmless ones MCP passes on.
        timeout_s: Most seconds a call may take; a slower one fails, and the policy is told.

    Returns:
        The tools; give them to one environment, which closes the connection with itself.

    Raises:
        EnvError: The package mcp is missing, or no server answers.
        SettingError: Neither or both of ``command`` and ``url`` are given.

    Example:
        >>> mcp_tools()
        Traceback (most recent call last):
        gspo_rllib.errors.SettingError: mcp_tools() needs either command=[...] or url="...".
    """
    if (command is None) == (url is None):
        raise SettingError('mcp_tools() needs either command=[...] or url="...".')
    if command is not None and (isinstance(command, str) or not command):
        raise SettingError(f"command={command!r}: must be a list of the program and its arguments.")
    return McpTools(_Session(_server(command, url, env), shown=url or " ".join(command or ())), timeout_s)


class McpTools(Sequence[Tool]):
    """The tools of one connected server; see ``mcp_tools``.

    Attributes:
        deterministic: False: what a server answers may change.
        picklable: False: a connection belongs to one process.
    """

    deterministic = False
    picklable = False

    def __init__(self, session: _Session, timeout_s: float) -> None:
        self._session = session
        self._timeout_s = timeout_s
        self._tools = [self._tool(offered) for offered in session.offered]

    @overload
    def __getitem__(self, index: int) -> Tool: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tool]: ...
    def __getitem__(self, index: int | slice) -> Tool | Sequence[Tool]:
        return self._tools[index]

    def __len__(self) -> int:
        return len(self._tools)

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools)

    def close(self) -> None:
        """Ends the connection, and the server if it was started for it; harmless when repeated."""
        self._session.close()

    def _tool(self, offered: Any) -> Tool:
        def call(**arguments: Any) -> str:
            return _text(self._session.call(offered.name, arguments, self._timeout_s))

        call.__name__ = call.__qualname__ = offered.name
        return Tool(offered.name, offered.description or "", dict(offered.input_schema), call, blocking=True)


class _Session:
    """A connection, alive in a thread of its own: the package is asynchronous, and environments are not."""

    def __init__(self, server: Any, shown: str) -> None:
        self._server = server
        self._shown = shown[:200]
        self._client: Any = None
        self._started: concurrent.futures.Future[list[Any]] = concurrent.futures.Future()
        self._loop = asyncio.new_event_loop()
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115, closed with the connection
        self._life = self._loop.create_task(self._live())
        self._thread = threading.Thread(target=self._run, name="mcp-session", daemon=True)
        self._thread.start()
        try:
            self.offered = self._started.result(_START_TIMEOUT_S)
        except KeyboardInterrupt:
            self.close()
            raise
        except BaseException as error:
            self.close()
            raise EnvError(
                f"no MCP server answers at {self._shown!r} ({_reason(error)}). Check that the command runs, or that "
                f"the URL is that of a running server.{self._last_words}"
            ) from error

    def call(self, name: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        """The result of one call; raises what the server refuses it with."""
        gone = EnvError(f"the MCP server {self._shown!r} is gone; a new environment starts a new one.")
        if not self._thread.is_alive():
            raise gone
        asked = self._client.call_tool(name, arguments, read_timeout_seconds=timeout_s)
        try:
            return asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        except concurrent.futures.CancelledError as error:
            raise gone from error
        except Exception as error:
            if getattr(error, "code", None) == _CONNECTION_CLOSED:
                raise gone from error
            raise

    def close(self) -> None:
        """Ends the connection and its thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._life.cancel)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        failure: BaseException | None = None
        try:
            self._loop.run_until_complete(self._life)
        except BaseException as error:  # noqa: BLE001, handed to the thread that waits for the connection
            failure = error  # a CancelledError where close() ended it, and nobody waits
        finally:
            self._loop.close()
            self._log.seek(0)
            words = self._log.read()[-_LAST_WORDS:].strip()
            self._last_words = f" It said: {words}" if words else ""
            self._log.close()
        if failure is not None and not self._started.done():
            self._started.set_exception(failure)

    async def _live(self) -> None:
        from mcp import Client, StdioServerParameters, stdio_client

        started_here = isinstance(self._server, StdioServerParameters)
        transport = stdio_client(self._server, errlog=self._log) if started_here else self._server
        async with Client(transport) as self._client:
            page = await self._client.list_tools()
            offered = list(page.tools)
            while page.next_cursor:
                page = await self._client.list_tools(cursor=page.next_cursor)
                offered += page.tools
            self._started.set_result(offered)
            await asyncio.Event().wait()


def _server(command: Sequence[str] | None, url: str | None, env: Mapping[str, str] | None) -> Any:
    try:
        from mcp import StdioServerParameters
    except ImportError as error:
        raise EnvError(
            f"MCP tools need the package mcp 2, which cannot be imported ({error}). Run "
            "`pip install 'gspo-rllib[mcp]'`."
        ) from error
    if command is None:
        return url
    program, *arguments = command
    return StdioServerParameters(command=program, args=arguments, env=dict(env) if env else None)


def _text(result: Any) -> str:
    """What a call returned, as text: its content, or its structure as JSON where that is all; other parts are named.

    Raises:
        RuntimeError: The server says that the call failed.
    """
    text = "\n".join(map(_part_text, result.content))
    if not result.content and result.structured_content is not None:
        text = json.dumps(result.structured_content, ensure_ascii=False)
    if result.is_error:
        raise RuntimeError(text or "the call failed")
    return text


def _part_text(part: Any) -> str:
    if part.type == "text":
        return str(part.text)
    if part.type == "resource":  # embedded: its text, or bytes that cannot be shown
        text = getattr(part.resource, "text", None)
        return text if isinstance(text, str) else f"[resource {part.resource.uri}]"
    return f"[resource {part.uri}]" if part.type == "resource_link" else f"[{part.type}]"


def _reason(error: BaseException) -> str:
    inner = error
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return described(inner, 200)
