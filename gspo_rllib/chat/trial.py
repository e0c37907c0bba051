"""Whether a chat template comes to an end: it is a program, and comes with the model.

It is tried in a process of its own with limits on time and memory, before it runs in any that is needed. What it writes
is not looked at here (``env_runners.chat_probe``), and neither is what it refuses.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from gspo_rllib.errors import ModelError

SECONDS = 1
"""Processor time that all conversations of the trial may take; templates take milliseconds."""
WALL_SECONDS = 30
"""Longest wait, on a machine that is busy."""
MEGABYTES = 1024
"""Address space of the trial."""

_CHILD = """
import json, resource, sys
from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
asked = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
used = resource.getrusage(resource.RUSAGE_SELF)
resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + asked["seconds"] + 1,) * 2)
resource.setrlimit(resource.RLIMIT_AS, (asked["megabytes"] << 20,) * 2)
def refuse(message):
    raise TemplateError(message)
environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
environment.filters["tojson"] = lambda value, **_: json.dumps(value)
environment.globals.update(raise_exception=refuse, strftime_now=lambda form: form)
for source in asked["sources"]:
    for messages in asked["conversations"]:
        try:
            environment.from_string(source).render(messages=messages, add_generation_prompt=True, **asked["kwargs"])
        except MemoryError:
            sys.exit(3)
        except RecursionError:
            sys.exit(4)
        except Exception:
            pass
"""
_ENDS = {3: "takes more than {megabytes} MB", 4: "calls itself without end"}
_ASK, _ANSWER = {"role": "user", "content": "What is 17 + 25?"}, {"role": "assistant", "content": "42"}
_CONVERSATIONS = (
    [_ASK],
    [{"role": "system", "content": "Be brief."}, _ASK],
    [_ASK, _ANSWER, _ASK],
    [_ASK, _ANSWER, {"role": "tool", "content": "x" * 1000}],
)


def check_ends(source: Any, kwargs: Mapping[str, Any], *, model: str) -> None:
    """Refuses a chat template that takes for ever, or all of the memory.

    Args:
        source: The template, or several by name.
        kwargs: What it is handed besides the conversation.
        model: What to call the model.

    Raises:
        ModelError: It does.
    """
    sources = tuple(str(text) for text in source.values()) if isinstance(source, Mapping) else (str(source),)
    try:
        handed = json.dumps(dict(kwargs), sort_keys=True)
    except (TypeError, ValueError):  # what is no plain data is not sent to another process
        handed = "{}"
    if (problem := _trial(sources, handed)) is not None:
        raise ModelError(
            f"model path {model!r}: the chat template {problem} for a conversation of three short messages. Use the "
            "template that the model was trained with."
        )


@functools.cache
def _trial(sources: tuple[str, ...], kwargs: str) -> str | None:
    """What a template does that it must not; None where it ends in time."""
    asked = {"sources": sources, "kwargs": json.loads(kwargs), "conversations": _CONVERSATIONS}
    asked |= {"seconds": SECONDS, "megabytes": MEGABYTES}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=json.dumps(asked),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"does not end within {WALL_SECONDS} s"
    if done.returncode < 0:  # by the limit on its time
        return f"does not end within {SECONDS} s"
    return _ENDS[done.returncode].format(megabytes=MEGABYTES) if done.returncode in _ENDS else None
