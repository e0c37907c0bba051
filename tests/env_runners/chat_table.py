"""The table of ``docs/chat_templates.md``: what happens to each family's chat template.

``python -m tests.env_runners.chat_table`` prints it.
"""

from __future__ import annotations

from collections.abc import Iterator

from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.chat_probe import probe
from gspo_rllib.types import ChatSpec
from tests.env_runners.chat_families import ADD, FAMILIES, Family

HEADER = (
    "| family | a reply ends with | system prompt | tools | what tools return | same ids as the template "
    "| what differs |\n"
    "|---|---|---|---|---|---|---|\n"
)


def table() -> str:
    """The whole table, as the page has it."""
    return HEADER + "".join(f"| {' | '.join(_row(family))} |\n" for family in FAMILIES)


def _row(family: Family) -> Iterator[str]:
    renderer = family.renderer(ChatSpec(system_prompt="Be kind.", tools=(ADD,)))
    report = probe(renderer)
    form = renderer.format
    yield family.name
    yield _end(renderer)
    if "system prompt" in renderer.moved:
        yield "kept first"
    else:
        yield "a message" if form.system_role is None else "in the first observation"
    yield "kept first" if "tools" in renderer.moved else "shown" if renderer.tools else "in the system prompt"
    shown, why = form.shown_role("tool")
    yield "a user message" if why else f"a {shown} message"
    yield ", ".join(f"not for {role}" for role in report.differences) or "yes"
    yield "; ".join(_particulars(renderer, drops_reasoning=report.drops_reasoning)) or "nothing"


def _end(renderer: ChatRenderer) -> str:
    end, tokens = renderer.format.end, renderer.format.tokens
    own = " ".join(_code(tokens.shown([i])) for i in end.ids) if end.stop_string is None else _code(end.stop_string)
    others = [_code(tokens.shown([i])) for i in end.stop_token_ids if i not in end.ids]
    return own + (f" (or {', '.join(others)})" if others else "")


def _particulars(renderer: ChatRenderer, *, drops_reasoning: bool) -> Iterator[str]:
    opening, end = renderer.format.opening, renderer.format.end
    kinds = {
        "other": "earlier replies end otherwise, so this id and the template's stay",
        "header": "it is the next message's first token",
        "text": "a stop string: the tokenizer has no such token",
        "nothing": "the template ends no reply; the id stays",
    }
    if end.kind in kinds:
        yield kinds[end.kind]
    if opening.missing:
        yield f"the header of a reply ({_code(opening.missing)}) is added"
    if opening.own.strip():
        yield f"the policy begins a reply with {_code(opening.own)}"
    elif opening.own:
        yield "the policy begins a reply with a space" if opening.own == " " else "the policy begins with a line break"
    if opening.kept:
        yield f"{_code(opening.kept)} stays before earlier replies"
    if drops_reasoning:
        yield "the template drops earlier reasoning, here it stays"
    ways = {renderer.frame(role).writes for role in ("user", "tool")} - {"as it is"}
    yield from sorted(f"contents are written {way.replace('its', 'their')}" for way in ways)


def _code(text: str) -> str:
    return f"`{text}`".replace("\n", "\\n").replace("|", "\\|")


if __name__ == "__main__":
    print(table(), end="")
