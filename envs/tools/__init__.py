"""Tools a policy may call: declared from functions, written and parsed in a model's own syntax, played by ``ToolEnv``.

The tools of an MCP server are in ``gspo_rllib.envs.tools.mcp``.
"""

from gspo_rllib.envs.tools.calls import ToolCall as ToolCall
from gspo_rllib.envs.tools.calls import ToolCallError as ToolCallError
from gspo_rllib.envs.tools.calls import parse_tool_calls as parse_tool_calls
from gspo_rllib.envs.tools.calls import render_tool_call as render_tool_call
from gspo_rllib.envs.tools.declare import Tool as Tool
from gspo_rllib.envs.tools.declare import tool as tool
from gspo_rllib.envs.tools.declare import tools_of as tools_of
from gspo_rllib.envs.tools.env import Task as Task
from gspo_rllib.envs.tools.env import ToolEnv as ToolEnv
