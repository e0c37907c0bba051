"""The tools of an MCP server, called through a real one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gspo_rllib.envs.tools.env import ToolEnv
from gspo_rllib.envs.tools.mcp import mcp_tools
from gspo_rllib.errors import EnvError, SettingError
from tests.toy_envs.tool_envs import call, play

SERVER = '''
import os, time
from mcp.server.mcpserver import MCPServer
from mcp_types import BlobResourceContents, CallToolResult, EmbeddedResource
from mcp_types import ImageContent, TextContent, TextResourceContents

server, kept = MCPServer("test"), {}


@server.tool()
def put(key: str, value: int) -> str:
    """Keeps a number."""
    kept[key] = value
    return f"{len(kept)} kept"


@server.tool()
def refuse() -> str:
    """Fails."""
    raise ValueError("not today")


@server.tool()
def nap(seconds: float) -> str:
    """Sleeps."""
    time.sleep(seconds)
    return "awake"


@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(1)


@server.tool()
def parts(which: str) -> CallToolResult:
    """Returns what MCP allows."""
    if which == "structure":
        return CallToolResult(content=[], structured_content={"sum": 3, "of": "é"})
    if which == "both":
        return CallToolResult(content=[TextContent(text="three")], structured_content={"sum": 3})
    if which == "nothing":
        return CallToolResult(content=[])
    if which == "refused":
        return CallToolResult(content=[], structured_content={"why": "so"}, is_error=True)
    note = EmbeddedResource(resource=TextResourceContents(uri="note://1", text="a note"))
    blob = EmbeddedResource(resource=BlobResourceContents(uri="blob://2", blob="AAAA"))
    image = ImageContent(data="AAAA", mime_type="image/png")
    return CallToolResult(content=[TextContent(text="see"), note, blob, image])


server.run()
'''


@pytest.fixture
def mcp_env(tmp_path: Path) -> Iterator[Callable[..., ToolEnv]]:
    pytest.importorskip("mcp")
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    made: list[ToolEnv] = []

    def make(**settings: Any) -> ToolEnv:
        made.append(ToolEnv(mcp_tools(command=[sys.executable, str(script)], **settings), [("q", "a")]))
        return made[-1]

    yield make
    for env in made:
        env.close()


def test_a_real_mcp_server_s_tools_are_called_and_its_errors_told(mcp_env) -> None:
    env = mcp_env()
    assert [declared["function"]["name"] for declared in env.chat.tools] == ["put", "refuse", "nap", "die", "parts"]
    assert env.chat.tools[0]["function"]["description"] == "Keeps a number."
    assert env.metadata["blocking"] is True and env.metadata["picklable"] is False
    steps = play(
        env,
        call("put", {"key": "a", "value": 1}),
        call("put", {"key": "b", "value": "one"}),
        call("refuse", {}),
        call("put", {"key": "b", "value": 2}) + call("put", {"key": "c", "value": 3}),
    )
    assert [step[4]["valid_action"] for step in steps] == [True, False, False, True]
    assert steps[0][0] == "1 kept"
    assert "value: 'one' is not of type 'integer'" in steps[1][0]
    assert steps[2][0].startswith("error: refuse: ")
    assert steps[3][0] == "put: 2 kept\nput: 3 kept"


@pytest.mark.slow
def test_each_environment_has_a_server_of_its_own_that_ends_with_it(mcp_env) -> None:
    first, second = mcp_env(), mcp_env()
    put = call("put", {"key": "a", "value": 1})
    play(first, put)
    assert play(second, put)[0][0] == "1 kept"
    first.close()
    first.close()
    with pytest.raises(EnvError, match="is gone"):
        play(first, put)
    assert play(second, put)[0][0] == "1 kept"


def test_a_slow_call_is_told_and_a_dead_server_is_an_error_of_the_environment(mcp_env) -> None:
    env = mcp_env(timeout_s=2.0)
    slow, _ = play(env, call("nap", {"seconds": 3.0}), call("put", {"key": "a", "value": 1}))
    assert "timed out" in slow[0] and slow[4]["valid_action"] is False
    env = mcp_env(timeout_s=60.0)  # a busy machine may take seconds to see that a process has ended
    with pytest.raises(EnvError, match="is gone"):
        play(env, call("die", {}))
    with pytest.raises(EnvError, match="is gone"):
        play(env, call("put", {"key": "a", "value": 1}))


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ({"command": ["/no/such/program"]}, "no MCP server answers at '/no/such/program'.*FileNotFoundError"),
        ({"command": [sys.executable, "-c", "import sys; sys.exit('no config')"]}, "It said: no config"),
        ({"url": "http://127.0.0.1:9/mcp"}, "no MCP server answers at 'http://127.0.0.1:9/mcp'"),
    ],
)
def test_a_server_that_does_not_answer_is_an_error_that_says_so(where, complaint) -> None:
    pytest.importorskip("mcp")
    started = time.perf_counter()
    with pytest.raises(EnvError, match=complaint):
        mcp_tools(**where)
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize("where", [{}, {"command": ["x"], "url": "http://x"}, {"command": "python x"}, {"command": []}])
def test_an_unclear_server_is_refused(where) -> None:
    with pytest.raises(SettingError, match="command"):
        mcp_tools(**where)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(EnvError, match=r"pip install 'gspo-rllib\[mcp\]'"):
        mcp_tools(command=["x"])


def test_whatever_a_result_consists_of_is_shown_as_text(mcp_env) -> None:
    kinds = ["structure", "both", "nothing", "resources", "refused"]
    steps = play(mcp_env(), *[call("parts", {"which": kind}) for kind in kinds])
    assert [step[0] for step in steps] == [
        '{"sum": 3, "of": "é"}',
        "three",
        "",
        "see\na note\n[resource blob://2]\n[image]",
        'error: parts: RuntimeError: {"why": "so"}',
    ]
