"""How one model writes a conversation, found by asking its chat template, and the same for every environment.

Nothing here goes by a family's name. The template is rendered with marks in place of contents, and what it writes
around them says how a reply is opened and ended, which roles there are, and how a conversation goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gspo_rllib.chat.frames import OBSERVATION, QUESTION, REPLY, Frame, NotWritten, make_frame
from gspo_rllib.chat.template import ChatTemplate, Message, Refused
from gspo_rllib.chat.tokens import ChatTokens, Left
from gspo_rllib.chat.turn_end import TurnEnd, find_turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM = "\u2983system\u2984"


@dataclass(frozen=True, slots=True)
class Opening:
    """How a reply begins: what is asked for with ``add_generation_prompt``, against what the template shows later.

    Attributes:
        missing: The header of a reply, where the template does not write it when it is asked for; added here.
        own: What the policy writes before its reply, as the template does for earlier ones: a channel, a space.
        kept: What begins a reply when it is asked for, and is dropped from earlier ones: an open ``<think>``.
        changed: Where neither begins with the other: what is asked for, and what is shown before earlier replies.
    """

    missing: str = ""
    own: str = ""
    kept: str = ""
    changed: tuple[str, str] | None = None

    def as_shown(self, text: str) -> str:
        """A text that ends with the header of a reply, with what an earlier reply has in its place."""
        if self.changed is not None and text.endswith(self.changed[0]):
            return text.removesuffix(self.changed[0]) + self.changed[1]
        return text.removesuffix(self.kept)


class ChatFormat:
    """One tokenizer, its chat template and arguments for it.

    Args:
        tokenizer: Has a chat template and an ``eos_token``.
        end_token_ids: Ids that the model declares to end a text.
        template_kwargs: Passed to the template.
        tokens: The tokenizer's text and ids, where they are known already; see ``given``.

    Attributes:
        template: Renders text.
        tokens: Turns text into ids and back.

    Raises:
        SettingError: A name in ``template_kwargs`` is not the caller's to choose.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_token_ids: Iterable[int] = (),
        template_kwargs: Mapping[str, Any] | None = None,
        tokens: ChatTokens | None = None,
    ) -> None:
        self.template = ChatTemplate(tokenizer, template_kwargs)
        self._tokenizer = tokenizer
        self._declared = tuple(dict.fromkeys([int(tokenizer.eos_token_id), *end_token_ids]))
        self.tokens = tokens or ChatTokens(tokenizer, self.template.source, self._declared)
        self._frames: dict[str, Frame] = {}
        self._roles: dict[str, tuple[str, str | None]] = {}

    def given(self, template_kwargs: Mapping[str, Any]) -> ChatFormat:
        """How the same model writes a conversation with other arguments for its template."""
        return ChatFormat(
            self._tokenizer, end_token_ids=self._declared, template_kwargs=template_kwargs, tokens=self.tokens
        )

    @cached_property
    def end(self) -> TurnEnd:
        """How a reply ends.

        Raises:
            Refused: The template takes no conversation with a reply.
        """
        return find_turn_end(self.template, self.tokens, self._declared, self.before)

    @cached_property
    def opening(self) -> Opening:
        """How a reply begins."""
        asked = self._asked(generation=True)
        if asked is None:
            return Opening()
        shown = self._shown()
        if shown is None or shown == asked:
            return Opening()
        if shown.startswith(asked):
            more = shown[len(asked) :]
            ignored = self._asked(generation=False) == asked
            return Opening(missing=more) if ignored and more.strip() else Opening(own=more)
        if asked.startswith(shown):
            return Opening(kept=asked[len(shown) :])
        return Opening(changed=(asked, shown))

    @cached_property
    def system_role(self) -> str | None:
        """Why a system prompt cannot be a message of its own; None where it can."""
        try:
            text = self.template.render([{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "."}])
        except Refused as error:
            return str(error.__cause__)
        return None if _SYSTEM in text else "it leaves system messages out"

    def shown_role(self, role: str) -> tuple[str, str | None]:
        """The role in which messages of a role are shown, and why where it is another one.

        What tools return is shown as a user message where the template has no role for it.
        """
        if role not in self._roles:
            why = None if role == "user" else self._refusal(role)
            self._roles[role] = (role, None) if why is None else ("user", why)
        return self._roles[role]

    def told(self, role: str, content: str) -> list[Message]:
        """A question, a marked reply, and one more message, without a system prompt."""
        shown, _ = self.shown_role(role)
        return [*self._question("."), {"role": "assistant", "content": REPLY}, {"role": shown, "content": content}]

    def next_frame(self, role: str) -> Frame:
        """The frame of an observation after a reply, where neither system prompt nor tools change it."""
        if role not in self._frames:
            self._frames[role] = self.frame_after(
                lambda content: self.template.render(self.told(role, content)) + self.opening.missing
            )
        return self._frames[role]

    def frame_after(self, render: Any) -> Frame:
        """The frame of an observation after a marked reply.

        Args:
            render: The text of the conversation with this content.

        Raises:
            NotWritten: The template does not write the reply or the content.
        """

        def whole(content: str) -> str:
            text: str = render(content)
            if REPLY not in text:
                raise NotWritten(
                    "the chat template does not write a reply's content as it is, so what follows it cannot be framed."
                )
            return text

        return make_frame(self.tokens, whole, after=REPLY, held=self.end.held)

    def closing(
        self, told: Sequence[Message], system: Sequence[Message], tools: Sequence[dict[str, Any]], mark: str = REPLY
    ) -> tuple[str, str]:
        """What stands before a marked reply, and what follows it up to the next.

        Args:
            told: The conversation that holds the reply, without its system message.
            system: The system message, or none.
            tools: Tools that are declared.
            mark: Stands for the reply.
        """
        before, _, closing = self.template.render([*system, *told], tools).rpartition(mark)
        return before, closing

    def context_after(
        self, told: Sequence[Message], system: list[Message], tools: tuple[dict[str, Any], ...], mark: str = REPLY
    ) -> tuple[list[Message], tuple[dict[str, Any], ...]]:
        """The system message and the tools, where they change what follows a reply and are to stay there.

        Args: as of ``closing``.
        """
        if not (system or tools) or self.closing(told, system, tools, mark)[1] == self.closing(told, (), (), mark)[1]:
            return [], ()
        return [] if self.is_moved(system, ()) else system, () if self.is_moved((), tools) else tools

    def is_moved(self, system: Sequence[Message], tools: Sequence[dict[str, Any]]) -> bool:
        """Whether the template shows these with the latest user message alone; here they stay with the first."""
        if not (system or tools):
            return False
        told = self.told("user", OBSERVATION)
        before, closing = self.closing(told, system, tools)
        bare_before, bare_closing = self.closing(told, (), ())
        return before == bare_before and closing != bare_closing

    def text_held(self, reply: Sequence[int], closing: Callable[[], str]) -> int:
        """How many characters of what follows a reply it holds already; 0 for one that does not spell its end.

        Args:
            reply: The ids of a reply that text ends.
            closing: What follows a reply.
        """
        stop = self.end.stop_string
        assert stop is not None
        reach = len(stop.encode()) + 8  # an id has one byte at least, and some have more after the end
        _, ended, more = self.tokens.decode(reply[-reach:]).partition(stop)
        if not ended:
            return 0
        held = self.end.held_text
        return held + (len(more) if closing()[held:].startswith(more) else 0)

    def reply(self, text: str, *, follows_token: bool, ended: bool = True) -> list[int]:
        """Ids of a reply as the policy should sample it.

        Args:
            text: What it says.
            follows_token: Whether the header of the reply ends with a token, not with text.
            ended: Whether it has its end.
        """
        opening, end = self.own_opening, self.end
        follows: Left = "token" if opening[0] or follows_token else "text"
        said = f"{opening[1]}{text}{end.text if ended else ''}"
        return [*opening[0], *self.tokens.written(said, follows), *(end.ids if ended else ())]

    def decode(self, reply: Sequence[int]) -> str:
        """The text of a sampled reply, exactly.

        Its end is left out, and so are special tokens. Where the template opens replies with a special token that the
        policy writes itself (a channel, say), the reply is what follows the last of these, if there is one.
        """
        ids = list(reply)
        while ids and ids[-1] in self._ending:
            ids.pop()
        marker = self.own_opening[0]
        if marker and not self.tokens.special.isdisjoint(marker):
            ids = ids[_after_last(ids, marker) :]
        text = self.tokens.decode(ids)
        stop = self.end.stop_string
        return text if stop is None else text.partition(stop)[0]

    @cached_property
    def own_opening(self) -> tuple[list[int], str]:
        """What the policy writes before a reply: ids up to the last token, and the text after that."""
        own = self.opening.own
        ids, _ = self.tokens.whole(own)
        structural = [n for n, i in enumerate(ids) if i in self.tokens.structural]
        if not structural:
            return [], own
        last = structural[-1]
        spelling = self.tokens.shown([ids[last]])
        return ids[: last + 1], own[own.rindex(spelling) + len(spelling) :]

    @cached_property
    def _ending(self) -> frozenset[int]:
        return frozenset([*self.end.stop_token_ids, *self.end.ids]) & self.tokens.structural

    @cached_property
    def before(self) -> list[Message]:
        """What a conversation must begin with; some templates take none without a system message."""
        for before in ([], [{"role": "system", "content": "."}]):
            try:
                self.template.render([*before, {"role": "user", "content": "."}])
            except Refused:
                continue
            return before
        return []

    def _question(self, content: str) -> list[Message]:
        return [*self.before, {"role": "user", "content": content}]

    def _asked(self, *, generation: bool) -> str | None:
        """What follows a question where the next reply is asked for."""
        try:
            text = self.template.render(self._question(QUESTION), generation=generation)
        except Refused:
            return None
        _, found, asked = text.rpartition(QUESTION)
        return asked if found else None

    def _shown(self) -> str | None:
        """What stands between a question and its reply in a conversation that went on."""
        reply: Message = {"role": "assistant", "content": REPLY}
        for more in ([{"role": "user", "content": OBSERVATION}], []):
            try:
                text = self.template.render([*self._question(QUESTION), reply, *more], generation=bool(more))
            except Refused:
                continue
            _, asked, rest = text.partition(QUESTION)
            shown, replied, _ = rest.rpartition(REPLY)
            return shown if asked and replied else None
        return None

    def _refusal(self, role: str) -> str | None:
        reply: Message = {"role": "assistant", "content": REPLY}
        try:
            text = self.template.render([*self._question("."), reply, {"role": role, "content": OBSERVATION}])
        except Refused as error:
            return str(error.__cause__)
        # In JSON, say, the marks are as they are; a template that changes them has not written them.
        written = OBSERVATION in text.rpartition(REPLY)[2] and REPLY in text
        return None if written else f"it leaves {role} messages out"


def _after_last(ids: list[int], marker: list[int]) -> int:
    """Where the last occurrence of a run of ids ends; 0 without one."""
    size = len(marker)
    return next((n + size for n in range(len(ids) - size, -1, -1) if ids[n : n + size] == marker), 0)
