"""Messages and tools as token ids: a whole conversation, or the bridge from a sampled reply to what follows it.

The bridge is what the chat template writes after an assistant message. It is asked with a stand-in for the reply, so it
does not depend on what the template does to earlier turns: the ids before it are those the engine saw. How a reply is
opened and ended is found as for environments (see ``gspo_rllib.chat``), and so a conversation has the same ids.

Text of a client cannot forge a turn (see ``defused``), and nothing a client sent is run.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gspo_rllib.agents.defused import Defused, Risks
from gspo_rllib.agents.messages import Message, RequestRefused
from gspo_rllib.agents.script import Script
from gspo_rllib.chat.format import ChatFormat
from gspo_rllib.chat.frames import ids_held, spans
from gspo_rllib.chat.template import ALWAYS_GIVEN, Refused
from gspo_rllib.errors import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_SCRIPTS = 32


class MessageRenderer:
    """Writes conversations with a tokenizer's chat template.

    Args:
        tokenizer: Has a chat template and an ``eos_token``.
        end_token_ids: Ids that the model declares to end a text, beside the tokenizer's own.
        template_kwargs: Passed to the chat template; where a client names one too, the client's holds.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_token_ids: Iterable[int] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._format = ChatFormat(tokenizer, end_token_ids=end_token_ids, template_kwargs=template_kwargs)
        self._scripts: dict[str, Script] = {"{}": Script(self._format)}
        self._risks = Risks(self._format.tokens)
        self._reserved = ALWAYS_GIVEN | {"self"} | inspect.signature(tokenizer.apply_chat_template).parameters.keys()
        # A tokenizer keeps between calls whether special tokens are split: one call at a time.
        self._lock = threading.RLock()

    @property
    def is_idle(self) -> bool:
        """Whether no other thread is writing a conversation, for which one would have to wait."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
            return True
        return False

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a reply: the chat template's own first, then those that model and tokenizer declare."""
        with self._lock:
            return self._format.end.stop_token_ids

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a reply in the chat template, where no id does; mostly none."""
        with self._lock:
            own = self._format.end.stop_string
        return () if own is None else (own,)

    def full(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any]
    ) -> list[int]:
        """Ids of a whole conversation, up to where the reply begins.

        Raises:
            RequestRefused: The chat template refuses these messages.
        """
        defused = Defused(self._risks)
        with self._lock, _refusals(messages):
            script = self._script(defused.within(template_kwargs))
            return defused.ids(script.whole(messages, tools, defused))

    def bridge(
        self,
        tail: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        *,
        reply: Sequence[int],
        system: Sequence[Message] = (),
    ) -> list[int] | None:
        """Ids to append after a sampled reply, up to where the next reply begins.

        The template's end always follows a reply in full. What of it the policy sampled is not written again; a reply
        that stopped at another id, or at none, has that and then the template's end.

        Args:
            tail: The messages that follow the reply, at least one.
            tools: Tools of the conversation.
            template_kwargs: Further arguments of the template.
            reply: The ids of the reply, as they were sampled.
            system: The system message that the conversation begins with, if any.

        Returns:
            The ids; None where this template cannot write them without the reply itself.
        """
        defused = Defused(self._risks)
        mark = f"\u2983{secrets.token_hex(12)}\u2984"
        try:
            with self._lock, _refusals(tail):
                script = self._script(defused.within(template_kwargs))
                text, form = script.continued(system, mark, tail, tools, defused), script.form
                place = text.rfind(mark) + len(mark)
                if place < len(mark):
                    return None
                if form.end.stop_string is not None:
                    held = form.text_held(reply, lambda: text[place:])
                    return defused.ids(text[:place] + text[place + held :], place)
                ids = defused.ids(text, place)
                kept = ids_held(form.tokens, ids, form.end.held).get(reply[-1], 0) if len(reply) else 0
                return ids[kept:]
        except RequestRefused:
            return None

    def reply(self, text: str, prompt: Sequence[int], *, ended: bool = True) -> list[int]:
        """Ids of a reply as the policy should sample it.

        Args:
            text: What it says.
            prompt: What stands before it, or only the end of that; at least one id.
            ended: Whether it has its end.
        """
        with self._lock:
            follows_token = prompt[-1] in self._format.tokens.structural
            return self._format.reply(text, follows_token=follows_token, ended=ended)

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, added tokens included."""
        return len(self._tokenizer)

    def raw(self, text: str, reply: Sequence[int] = ()) -> list[int]:
        """Ids of a prompt that the agent wrote itself, or of what follows a reply in one.

        The agent is its own template here: what spells a token is one.

        Args:
            text: The prompt, or what follows the reply.
            reply: The ids of the reply, as they were sampled; none for a whole prompt. Its end is not written again.
        """
        with self._lock:
            tokens = self._format.tokens
            if not len(reply):
                found = tokens.whole(text)[0]
                return found if found[:1] == self._beginning else [*self._beginning, *found]
            before = "\u2984"
            if reply[-1] in tokens.structural:
                before = tokens.shown([reply[-1]])
                text = text.removeprefix(before)
            return spans(tokens, before + text, len(before))[0]

    def raw_text(self, token_ids: Sequence[int]) -> str:
        """The text of a reply to such a prompt; without its end and without special tokens."""
        ids = [int(token_id) for token_id in token_ids]
        with self._lock:
            while ids and ids[-1] in self._format.end.stop_token_ids:
                ids.pop()
            return self._format.tokens.decode(ids)

    def shown(self, token_ids: Sequence[int]) -> str:
        """Ids as a person reads them, special tokens included."""
        with self._lock:
            return self._format.tokens.shown(token_ids)

    @cached_property
    def _beginning(self) -> list[int]:
        """What the tokenizer begins a text with: one id or none."""
        first = list(self._tokenizer(".")["input_ids"])[:1]
        return first if first and first[0] in self._format.tokens.beginning else []

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a sampled reply, exactly; without its end and without special tokens."""
        with self._lock:
            return self._format.decode([int(token_id) for token_id in token_ids])

    def with_tokens(self, token_ids: Sequence[int]) -> str:
        """The text of a sampled reply with its special tokens written out; without its end."""
        ids = [int(token_id) for token_id in token_ids]
        with self._lock:
            while ids and ids[-1] in self._format.end.stop_token_ids:
                ids.pop()
            return self._format.tokens.shown(ids)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each id by itself, for clients that ask for log-probabilities."""
        with self._lock:
            return [self._tokenizer.decode([token_id]) for token_id in token_ids]

    def checked_template_kwargs(self, given: Any) -> dict[str, Any]:
        """Arguments for the chat template that a client may send: plain values for the template's own variables.

        Raises:
            RequestRefused: They are something else, or would change what the template is or what it returns.
        """
        if given is None:
            return {}
        place = "chat_template_kwargs"
        if not isinstance(given, Mapping):
            raise RequestRefused(f"{place} is {shown(given)}; it must be an object.", place)
        for name, value in given.items():
            if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or name in self._reserved:
                raise RequestRefused(f"{place}.{shown(name)} is not allowed: it is no variable of the template.", place)
            if name == "messages" or not isinstance(value, bool | int | float | str | None):
                raise RequestRefused(f"{place}.{name} is {shown(value)}; allowed: text, a number, true, false.", place)
        return dict(given)

    def reads(self, name: str) -> bool:
        """Whether an argument makes a difference to the chat template, as far as can be told."""
        reads = self._format.template.reads
        return reads is None or name in reads

    def _script(self, template_kwargs: Mapping[str, Any]) -> Script:
        """How conversations are written with these arguments of a client, on top of the run's."""
        key = json.dumps(template_kwargs, sort_keys=True)
        if key not in self._scripts:
            if len(self._scripts) > _MOST_SCRIPTS:
                del self._scripts[list(self._scripts)[1]]  # the oldest but the run's own
            form = self._format.given({**self._format.template.kwargs, **template_kwargs})
            self._scripts[key] = Script(form)
        return self._scripts[key]


@contextlib.contextmanager
def _refusals(messages: Sequence[Message]) -> Iterator[None]:
    """Tells a client what its messages made of the template."""
    try:
        yield
    except RequestRefused:
        raise
    # A template is foreign code: it raises jinja2's errors, and Python's own for what it did not expect.
    except Exception as error:
        roles = ", ".join(message["role"] for message in messages)
        why = error.__cause__ if isinstance(error, Refused) and error.__cause__ else error
        raise RequestRefused(
            f"the chat template refuses these messages (roles {roles[:200]}): {str(why)[:300]}", "messages"
        ) from error
