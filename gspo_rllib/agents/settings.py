"""Every knob of agents, once: default, range, unit, effect and the source of the default."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from gspo_rllib.agents.function import Play
from gspo_rllib.agents.session import HISTORIES, History
from gspo_rllib.knobs import Settings, knob, positional_settings_dataclass


@positional_settings_dataclass
class AgentSettings(Settings):
    """``.agent(...)``; its first argument may be given without its name."""

    SECTION: ClassVar[str] = "agent"

    play: str | Play | None = knob(
        None, "The function that plays a trajectory, 'module:name' or the function; in place of an environment.",
        source="ours",
    )  # fmt: skip
    _: dataclasses.KW_ONLY
    tasks: str | list[Any] | None = knob(
        None,
        "A JSONL file with a task on each line, or a list of them; each group plays one. None gives the agent a seed.",
        source="ours",
    )
    history: History = knob(
        "sampled",
        "What a prompt is made of where a reply is recognised in it: the ids that were sampled, so that a conversation "
        "stays one context (sampled), or the text as the client sent it, a context for every call (as_sent).",
        choices=HISTORIES,
        source="ours: what was sampled is never tokenised again",
    )
    trajectory_timeout_s: float = knob(
        600.0, "Longest a trajectory may take before it counts as failed.", unit="seconds", low=0.0, low_open=True,
        source="ours",
    )  # fmt: skip
    idle_timeout_s: float = knob(
        120.0,
        "Longest an agent may take between two calls before its trajectory counts as failed.",
        unit="seconds",
        low=0.0,
        low_open=True,
        source="ours",
    )
