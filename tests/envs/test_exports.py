"""What a user writes environments with is exported from one place each."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

EXPORTS = {
    "gspo_rllib.envs": ["LanguageEnvReport", "UnicodeText", "check_language_env"],
    "gspo_rllib.envs.tools": [
        "Task",
        "Tool",
        "ToolCall",
        "ToolCallError",
        "ToolEnv",
        "parse_tool_calls",
        "render_tool_call",
        "tool",
        "tools_of",
    ],
}


@pytest.mark.parametrize("package", EXPORTS)
def test_a_package_exports_these_names(package) -> None:
    defined = vars(importlib.import_module(package)).items()
    exported = [name for name, value in defined if getattr(value, "__module__", "").startswith("gspo_rllib.")]
    assert sorted(exported) == EXPORTS[package]


def test_no_name_is_exported_twice() -> None:
    names = [name for exported in EXPORTS.values() for name in exported]
    assert len(names) == len(set(names))


def test_environments_without_tools_load_no_tools() -> None:
    code = "import gspo_rllib.envs, sys; print(any(name.startswith('gspo_rllib.envs.tools') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
