"""Every knob of agents, once: default, range, unit, effect and the source of the default."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from gspo_rllib.agents.address import LOOPBACK
from gspo_rllib.agents.function import Play
from gspo_rllib.agents.session import HISTORIES, History
from gspo_rllib.knobs import Settings, knob, positional_settings_dataclass
from gspo_rllib.value_forms import LONGEST_WAIT_S

WorkersKind = Literal["thread", "process", "external"]
WORKERS: tuple[WorkersKind, ...] = ("thread", "process", "external")


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
    workers: WorkersKind = knob(
        "thread",
        "Who plays: the function in a thread of the env runner for each trajectory (thread), in a process of its own "
        "(process), or a harness of yours that takes trajectories over HTTP; play stays None then (external).",
        choices=WORKERS,
        source="ours",
    )
    host: str = knob(
        LOOPBACK,
        "IP address that env runners listen on for a harness outside; any but a loopback address needs an admin token.",
        source="ours",
    )
    addresses: str | None = knob(
        None,
        "A folder in which each env runner writes where a harness outside finds it; None only logs it.",
        source="ours",
    )
    history: History = knob(
        "sampled",
        "What a prompt is made of where a reply is recognised in it: the ids that were sampled, so that a conversation "
        "stays one context (sampled), or the text as the client sent it, a context for every call (as_sent).",
        choices=HISTORIES,
        source="ours: what was sampled is never tokenised again",
    )
    tool_parser: str | None = knob(
        None,
        "vLLM's parser that finds calls of tools in replies, as its --tool-call-parser names it, e.g. 'deepseek_v3'; "
        "None reads what Hermes, Qwen, Llama and Mistral write. Needs vllm, whatever the engine.",
        source="ours",
    )
    trajectory_timeout_s: float = knob(
        600.0,
        "Longest a trajectory may take before it counts as failed.",
        unit="seconds",
        low=0.0,
        high=LONGEST_WAIT_S,
        low_open=True,
        source="ours",
    )
    idle_timeout_s: float = knob(
        120.0,
        "Longest an agent may take between two calls before its trajectory counts as failed.",
        unit="seconds",
        low=0.0,
        high=LONGEST_WAIT_S,
        low_open=True,
        source="ours",
    )

    call_timeout_s: float | None = knob(
        None,
        "Longest a call may wait for its reply before it is refused, which is the agent's business; None lets it wait "
        "as long as its trajectory may take.",
        unit="seconds",
        low=0.0,
        low_open=True,
        source="ours",
    )

    @property
    def plays(self) -> bool:
        """Whether agents play, in place of an environment."""
        return self.play is not None or self.workers == "external"
