"""How a chat template ends a reply, found by rendering one, and which ids stop the sampling of one.

    token    the template closes a reply with a token, the same at the end of a conversation and within (most families)
    other    it closes the last reply with an id the model declares, those before with another token (gpt-oss)
    header   it closes a reply with nothing: the next message's first token ends it (GLM)
    text     it closes a reply with text that is no token: a stop string ends it
    nothing  it writes nothing that could be recognised; the model's own end-of-sequence ids end a reply

A reply also stops at every id that the model declares. Where such an id is not the template's own end, it stays in the
context, as everything does that was sampled, and the template's own end follows it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from gspo_rllib.env_runners.chat_frames import OBSERVATION, QUESTION, REPLY, common, ids_after
from gspo_rllib.env_runners.chat_template import ChatTemplate, Message, Refused
from gspo_rllib.env_runners.chat_tokens import ChatTokens

EndKind = Literal["token", "other", "header", "text", "nothing"]


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The end of a reply.

    Attributes:
        kind: Which of the kinds at the top of this file.
        stop_token_ids: Ids that end a reply: the template's first, then what the model declares.
        stop_string: Text that ends a reply; None where ids do.
        text: What the template writes between a reply and the token that ends it, mostly nothing.
        ids: From the first token of the end to the one that stops; of a text, all of it.
        held: How many of the ids that follow a reply within a conversation belong to its end.
        held_text: The same in characters, where text ends a reply.
    """

    kind: EndKind
    stop_token_ids: tuple[int, ...]
    stop_string: str | None = None
    text: str = ""
    ids: tuple[int, ...] = ()
    held: int = 0
    held_text: int = 0


def find_turn_end(
    template: ChatTemplate, tokens: ChatTokens, declared: Sequence[int], before: Sequence[Message]
) -> TurnEnd:
    """Renders a conversation that ends with a reply, and one that goes on after it, and compares.

    Args:
        template: The chat template.
        tokens: The tokenizer.
        declared: Ids that the model and the tokenizer declare to end a text, at least one.
        before: Messages that a conversation must begin with; mostly none.

    Raises:
        Refused: The template takes no conversation with a reply.
    """
    told: list[Message] = [
        *before,
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": REPLY},
    ]
    within = _rendered(template, [*told, {"role": "user", "content": OBSERVATION}])
    last = _rendered(template, told, generation=False)
    if within is None and last is None:
        template.render(told)  # raises what is wrong
    within, last = within or last or "", last if last is not None else within or ""
    if REPLY not in within or REPLY not in last:
        return TurnEnd("nothing", tuple(declared), ids=(declared[0],))
    within_ids, within_starts = ids_after(tokens, within, REPLY)
    last_ids, last_starts = ids_after(tokens, last, REPLY)
    alike = within_ids[: common(within_ids, last_ids)]
    first = _first(alike, tokens.structural)
    if first is not None:
        opening = set(tokens.whole(within[: max(within.find(QUESTION), 0)])[0])
        run = _run(alike, first, tokens.structural, opening)
        stop = next((n for n in run if alike[n] in declared), run[-1])
        text = within[within.rindex(REPLY) + len(REPLY) : within_starts[first]]
        return TurnEnd(
            "token", _stops(alike[stop], declared), text=text, ids=tuple(alike[first : stop + 1]), held=run[-1] + 1
        )
    final = _first(last_ids, declared)
    if final is not None:
        first = _first(last_ids, tokens.structural)
        first = final if first is None else first
        text = last[last.rindex(REPLY) + len(REPLY) : last_starts[first]]
        return TurnEnd("other", _stops(last_ids[final], declared), text=text, ids=tuple(last_ids[first : final + 1]))
    return _without_token(template, tokens, declared, told, within, last)


def _without_token(
    template: ChatTemplate,
    tokens: ChatTokens,
    declared: Sequence[int],
    told: Sequence[Message],
    within: str,
    last: str,
) -> TurnEnd:
    """The end of a reply that the template marks by no token of its own."""
    closings = [text[text.rindex(REPLY) + len(REPLY) :] for text in (within, last)]
    alike = closings[0][: common([*map(ord, closings[0])], [*map(ord, closings[1])])]
    if alike != closings[1]:  # what stands behind the last line break may begin the header of either's next message
        alike = alike.rpartition("\n")[0]
    if alike.strip():
        stop = alike.strip().splitlines()[0].rstrip()
        text = closings[1][: closings[1].index(stop) + len(stop)]
        return TurnEnd("text", tuple(declared), stop, ids=tokens.written(text, "text"), held_text=len(text))
    headers, between, held = [], [], 0
    for role in ("user", "tool"):
        text = _rendered(template, [*told, {"role": role, "content": OBSERVATION}]) or ""
        if REPLY in text and OBSERVATION in text:
            ids, starts = ids_after(tokens, text, REPLY)
            first = _first(ids, tokens.structural - tokens.beginning)
            closing = "" if first is None else text[text.rindex(REPLY) + len(REPLY) : starts[first]]
            if first is not None and not closing.strip():
                headers.append(ids[first])
                between.append(closing)
                held = max(held, first + 1)
    if headers:
        stops = tuple(dict.fromkeys([*headers, *declared]))
        return TurnEnd("header", stops, text=between[0], ids=(headers[0],), held=held)
    return TurnEnd("nothing", tuple(declared), ids=(declared[0],))


def _rendered(template: ChatTemplate, messages: Sequence[Message], *, generation: bool = True) -> str | None:
    try:
        return template.render(messages, generation=generation)
    except Refused:
        return None


def _first(ids: Sequence[int], wanted: Collection[int]) -> int | None:
    return next((n for n, i in enumerate(ids) if i in wanted), None)


def _run(ids: Sequence[int], first: int, structural: Collection[int], opening: Collection[int]) -> list[int]:
    """Places of the tokens that close a reply together; one that also opens messages is not among them."""
    run = [first]
    while run[-1] + 1 < len(ids) and ids[run[-1] + 1] in structural and ids[run[-1] + 1] not in opening:
        run.append(run[-1] + 1)
    return run


def _stops(own: int, declared: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys([own, *declared]))
