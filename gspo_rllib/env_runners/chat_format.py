"""How one model writes a conversation, found by asking its chat template, and the same for every environment.

Nothing here goes by a family's name. The template is rendered with marks in place of contents, and what it writes
around them says how a reply is opened and ended, which roles there are, and how a conversation goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gspo_rllib.env_runners.chat_frames import OBSERVATION, QUESTION, REPLY, Frame, NotWritten, make_frame
from gspo_rllib.env_runners.chat_template import ChatTemplate, Message, Refused
from gspo_rllib.env_runners.chat_tokens import ChatTokens
from gspo_rllib.env_runners.turn_end import TurnEnd, find_turn_end

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
    ) -> None:
        self.template = ChatTemplate(tokenizer, template_kwargs)
        self._declared = tuple(dict.fromkeys([int(tokenizer.eos_token_id), *end_token_ids]))
        self.tokens = ChatTokens(tokenizer, self.template.source, self._declared)
        self._frames: dict[str, Frame] = {}
        self._roles: dict[str, tuple[str, str | None]] = {}

    @cached_property
    def end(self) -> TurnEnd:
        """How a reply ends.

        Raises:
            Refused: The template takes no conversation with a reply.
        """
        return find_turn_end(self.template, self.tokens, self._declared, self._before)

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

    @cached_property
    def _before(self) -> list[Message]:
        """What a conversation must begin with; some templates take none without a system message."""
        for before in ([], [{"role": "system", "content": "."}]):
            try:
                self.template.render([*before, {"role": "user", "content": "."}])
            except Refused:
                continue
            return before
        return []

    def _question(self, content: str) -> list[Message]:
        return [*self._before, {"role": "user", "content": content}]

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
