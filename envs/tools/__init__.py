"""Tools a policy may call: declared from functions or MCP servers, written and parsed in a model's own syntax."""

from gspo_rllib.envs.tools.declare import Tool as Tool
from gspo_rllib.envs.tools.declare import tool as tool
from gspo_rllib.envs.tools.declare import tools_of as tools_of
