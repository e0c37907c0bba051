"""Compares conversations as they are built here, piece by piece, with what transformers makes of them as a whole.

Done once for a model and an environment, before the first actor. The texts hold what tokenizers and templates trip
over: quotes, line breaks, spaces at the ends, a long word, letters of other scripts. A difference is allowed where it
is meant (see ``chat``); any other is told with the place where it begins.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.chat_frames import REPLY, Frame, common, make_frame
from gspo_rllib.env_runners.chat_template import Refused
from gspo_rllib.errors import ModelError
from gspo_rllib.types import ChatSpec

logger = logging.getLogger("gspo_rllib")

TEXTS = (
    'It\'s "here":\n\n  <b>two</b> & three. ',
    "\n ignorance-of-Donaudampfschifffahrtsgesellschaftskapit\u00e4n \u4e2d\u6587 \U0001f600\n",
    " 3.5\t{x}\\n ",
)
# Between marks: how a reply's own ends meet the text around it is the policy's business, and stays as it was sampled.
REPLIES = tuple(
    f"\u2983{reply}\u2984" for reply in ('I\'d say "17",\nor \u00e9\u4e2d.', "Antidisestablishmentarianism: 42")
)
_REASONING = "\u2983reasoning\u2984"
_AROUND = 6  # ids that are shown on either side of a difference
_told: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """How a renderer's conversations compare with the chat template's.

    Attributes:
        notes: What a user should know, one sentence or two each.
        differences: By role of the observations, where the ids first differ; only roles in which they do.
        drops_reasoning: Whether the template leaves the reasoning of earlier replies out; here it stays.
    """

    notes: tuple[str, ...]
    differences: dict[str, str]
    drops_reasoning: bool


def check_conversation(
    renderer: ChatRenderer, *, model: str, roles: Iterable[str] = ("user",), one_turn: bool = False
) -> None:
    """Refuses a chat template that cannot frame an environment's conversations, and tells what else is to be known.

    Each thing is told once per process.

    Args:
        renderer: Renders the environment's conversations.
        model: What to call the model.
        roles: Roles the observations after the first may have.
        one_turn: Whether every episode has one turn, so that nothing follows a reply.

    Raises:
        ModelError: The first observation, or one after a reply, cannot be framed, or a reply would end where it begins.
    """
    roles = () if one_turn else tuple(roles)
    try:
        renderer.first_prompt(TEXTS[0])
        for role in roles:
            renderer.prompt_after((), TEXTS[1], role=role)
        _check_beginning(renderer)
    except ModelError as error:
        raise ModelError(f"model path {model!r}: {error}") from error
    report = probe(renderer, roles)
    differences = (
        f"with observations of the role {role!r}, contexts differ from what it makes of the whole conversation. {where}"
        for role, where in report.differences.items()
    )
    for note in (*report.notes, *differences):
        if (model, note) not in _told:
            _told.add((model, note))
            logger.warning("The chat template of %s: %s", model, note)


def _check_beginning(renderer: ChatRenderer) -> None:
    """Refuses an end that replies begin with."""
    tokens = renderer.format.tokens
    begins, _ = tokens.whole(renderer.format.opening.own)
    for token_id in renderer.stop_token_ids:
        if token_id in begins:
            raise ModelError(
                f"{tokens.shown([token_id])!r} is declared to end a text (eos_token_id in generation_config.json, "
                f"config.json or the tokenizer), but the chat template has every reply begin with "
                f"{renderer.format.opening.own!r}: it would end there. Correct the declaration."
            )


def probe(renderer: ChatRenderer, roles: Iterable[str] = ("user", "tool")) -> ProbeReport:
    """Compares conversations of three turns, and collects what there is to know about the chat template.

    Args:
        renderer: Renders conversations; its first prompt must be possible.
        roles: Roles of the observations after the first.
    """
    roles = tuple(roles)
    notes = [*_notes_on_framing(renderer, roles), *_notes_on_replies(renderer, many_turns=bool(roles))]
    differences = {role: where for role in roles or ("",) if (where := _difference(renderer, role))}
    return ProbeReport(tuple(notes), differences, _drops_reasoning(renderer))


def _notes_on_framing(renderer: ChatRenderer, roles: Iterable[str]) -> Iterable[str]:
    form = renderer.format
    if unread := form.template.unread():
        yield unread
    if renderer.chat.system_prompt is not None and form.system_role is not None:
        yield f"it takes no system message ({form.system_role}): the system prompt begins the first observation."
    foreign = json.dumps(list(renderer.tools), ensure_ascii=False)
    for token_id in sorted(form.tokens.special & set(form.tokens.added)):
        if (spelling := form.tokens.added[token_id].content) in foreign:
            yield f"a declared tool's name, description or parameters hold {spelling!r}, which becomes that token."
    for role in roles:
        shown, why = form.shown_role(role)
        if shown != role:
            yield (
                f"it takes no message of the role {role!r} ({why}): what tools return is shown as a {shown} message. "
                f"With obs_role={shown!r} the environment asks for that itself."
            )
    if "user" in roles and renderer.moved:
        yield (
            f"it shows the {' and the '.join(renderer.moved)} with the latest user message alone. A context only "
            "grows, so here they stay before the first one."
        )


def _notes_on_replies(renderer: ChatRenderer, *, many_turns: bool) -> Iterable[str]:
    opening, end, tokens = renderer.format.opening, renderer.format.end, renderer.format.tokens
    if opening.missing:
        yield f"it does not write the header of a reply when asked to, so {opening.missing!r} is added."
    if opening.changed is not None:
        asked, shown = opening.changed
        yield f"it opens a reply with {asked!r}, but shows earlier ones after {shown!r}; here they stay as they were."
    for token_id in end.stop_token_ids:
        if token_id not in tokens.added:
            spelt = tokens.shown([token_id])
            yield f"a reply also ends at {spelt!r} (id {token_id}), which the model declares to end a text."
    if end.kind == "text":
        yield (
            f"it ends a reply with {end.stop_string!r}, which is no token of the tokenizer: sampling stops where a "
            "reply spells it."
        )
    if many_turns and end.kind in ("other", "nothing"):
        yield (
            f"a reply ends at {tokens.shown(end.ids)!r}, which stays in the context, followed by what the template "
            "writes after an earlier reply."
        )


def _difference(renderer: ChatRenderer, role: str) -> str | None:
    """Where a conversation first differs from the template's, in words; None where it does not."""
    form = renderer.format
    shown = form.shown_role(role)[0] if role else ""
    if shown == "user" and renderer.moved:
        renderer = renderer.reframed(ChatSpec(template_kwargs=renderer.chat.template_kwargs))
    turns = [(REPLIES[n], TEXTS[n + 1]) for n in range(2)] if role else []
    while True:
        messages = list(renderer.opening_messages(TEXTS[0]))
        for reply, text in turns:
            messages += [{"role": "assistant", "content": reply}, {"role": shown, "content": text}]
        try:
            theirs = form.template.token_ids(messages, renderer.tools)
        except Refused:
            if not turns:
                return None
            turns.pop()  # a template may want calls between two results; what it takes is compared
            continue
        if form.opening.missing:
            theirs = form.tokens.whole(form.template.render(messages, renderer.tools) + form.opening.missing)[0]
        break
    ours = _in_pieces(renderer, role, turns)
    if ours == theirs:
        return None
    n = common(ours, theirs)
    start = max(0, n - _AROUND)
    parts = (ours[start:n], ours[n : n + _AROUND], theirs[n : n + _AROUND])
    before, here, there = (form.tokens.shown(ids) for ids in parts)
    if here.startswith(there) or there.startswith(here):  # the same text, cut otherwise
        here, there = ("|".join(form.tokens.shown([i]) for i in ids) for ids in parts[1:])
    return f"After {before!r} they go on with {here!r}, the template with {there!r}."


def _in_pieces(renderer: ChatRenderer, role: str, turns: list[tuple[str, str]]) -> list[int]:
    """The conversation as an env runner builds it, but for what is meant to differ in its earlier replies.

    They are opened as the template shows them, and where it does not end them with the id that the policy samples, they
    are without it.
    """
    if not turns:
        return renderer.first_prompt(TEXTS[0])
    opening, end = renderer.format.opening, renderer.format.end
    as_asked = not opening.kept and opening.changed is None
    ids = renderer.first_prompt(TEXTS[0]) if as_asked else _earlier(renderer, None).ids(TEXTS[0])
    for number, (reply, text) in enumerate(turns, start=1):
        sampled = renderer.reply(reply, ended=end.kind == "token")
        if as_asked or number == len(turns):
            following = renderer.prompt_after(sampled, text, role=role)
        else:
            following = _earlier(renderer, role).ids(text, sampled[-1])
        ids += [*sampled, *following]
    return ids


def _earlier(renderer: ChatRenderer, role: str | None) -> Frame:
    """The frame of an observation whose reply has come and gone."""
    form = renderer.format

    def render(content: str) -> str:
        return form.opening.as_shown(renderer.text(content, role))

    return make_frame(form.tokens, render, after=None if role is None else REPLY, held=form.end.held)


def _drops_reasoning(renderer: ChatRenderer) -> bool:
    form = renderer.format
    reply = f"<think>\n{_REASONING}\n</think>\n\n{REPLIES[1]}"
    told = [*renderer.opening_messages("."), {"role": "assistant", "content": reply}, {"role": "user", "content": "."}]
    try:
        return _REASONING not in form.template.render(told)
    except Refused:
        return False
