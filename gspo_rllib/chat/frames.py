"""What a chat template writes around one message, as ids that do not change and text that may join the message's own.

The template is asked with a mark for the content. What stands between the mark and the nearest structural tokens
(``<|im_start|>`` and the like, see ``tokens``) is encoded anew with each content, because a tokenizer may join
them: ``.`` and ``\\n</tool_response>`` meet in a token ``.\\n``. What lies beyond has the same ids every time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gspo_rllib.chat.tokens import WHITE_SPACE, ChatTokens, Left
from gspo_rllib.errors import ModelError

QUESTION = "\u2983question\u2984"
REPLY = "\u2983reply\u2984"
OBSERVATION = "\u2983observation\u2984"
PROBE = "  \"a\"\t'b' \\ <c> & d\u00e9,\n\n e \n "
"""A content that every way of writing one but literally changes: spaces at its ends, quotes, line breaks."""

WRITERS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "without spaces at its ends": str.strip,
    "without spaces at its end": str.rstrip,
    "as JSON": lambda content: json.dumps(content, ensure_ascii=False)[1:-1],
}
"""How templates are known to write a content; any other has the template asked anew for each content."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The ids around a content.

    Attributes:
        head: Ids before it, up to the last structural one.
        rest: Ids after it, from the first structural one on.
        writes: How the template writes a content, in words.
        after: Where a reply came before: by the last id sampled, what is left of ``head``.
    """

    head: list[int]
    rest: list[int]
    writes: str
    after: dict[int, list[int]]
    _tokens: ChatTokens = field(repr=False)
    _tail: str
    _lead: str
    _left: Left
    _strips: tuple[str, str] | None
    _write: Callable[[str], str] = field(repr=False)
    _whole: Callable[[str], list[int]] | None = field(repr=False)

    def ids(self, content: str, last_id: int | None = None) -> list[int]:
        """The ids that a content adds, with those around it.

        Args:
            content: What the environment said.
            last_id: The last id of the reply before it; None where there is none.
        """
        head = self.head if last_id is None else self.after.get(last_id, self.head)
        if self._whole is not None and not content.strip():
            return self._whole(content)[len(self.head) - len(head) :]
        text = f"{self._tail}{self._write(content)}{self._lead}"
        if self._strips is not None:
            text = text.lstrip(self._strips[0]).rstrip(self._strips[1])
        return [*head, *self._tokens.plain(text, self._left), *self.rest]


class NotWritten(ModelError):
    """The template does not write a content, or not so that it can be found again."""


def make_frame(tokens: ChatTokens, render: Callable[[str], str], *, after: str | None = None, held: int = 0) -> Frame:
    """The frame of a content.

    Args:
        tokens: The tokenizer.
        render: The text of the conversation whose last content is this.
        after: The mark of the reply that the frame follows; None where it begins the conversation.
        held: How many of the ids after a reply belong to its end, so that the policy may have sampled some of them.

    Raises:
        NotWritten: The content is not there.
    """
    text = render(OBSERVATION)
    start = text.rindex(after) + len(after) if after else 0
    here = text.find(OBSERVATION, start)
    if here < 0:
        raise NotWritten("the chat template does not write a message's content as it is, so it cannot be framed.")
    end = here + len(OBSERVATION)
    ids, starts, ends = spans(tokens, text, start)
    before = [n for n, i in enumerate(ids) if i in tokens.structural and ends[n] <= here]
    behind = [n for n, i in enumerate(ids) if i in tokens.structural and starts[n] >= end]
    head = ids[: before[-1] + 1] if before else []
    rest = ids[behind[0] :] if behind else []
    tail = text[ends[before[-1]] if before else start : here]
    lead = text[end : starts[behind[0]] if behind else len(text)]
    left: Left = "token" if before else "text" if after else "start"
    strips_left = WHITE_SPACE if before and tokens.strips(ids[before[-1]])[1] else ""
    strips_right = WHITE_SPACE if behind and tokens.strips(ids[behind[0]])[0] else ""
    strips = (strips_left, strips_right) if strips_left or strips_right else None
    writes, write = _writer(render, text[start:here], text[end:], after)
    kept = {last_id: head[count:] for last_id, count in ids_held(tokens, head, held).items()}

    def whole(content: str) -> list[int]:
        text = render(content)
        return spans(tokens, text, text.rindex(after) + len(after) if after else 0)[0]

    # Where spaces are taken off, a blank content may take some of the text before it with it; it cannot forge anything.
    return Frame(
        head, rest, writes, kept, tokens, tail, lead, left, strips, write, whole if "without" in writes else None
    )


def ids_after(tokens: ChatTokens, text: str, mark: str) -> tuple[list[int], list[int]]:
    """The ids of what follows a mark, and where in the text each begins."""
    ids, starts, _ = spans(tokens, text, text.rindex(mark) + len(mark))
    return ids, starts


def ids_held(tokens: ChatTokens, following: Sequence[int], held: int) -> dict[int, int]:
    """By the last id of a reply, how many of the ids that follow one within a conversation it holds already.

    Args:
        tokens: The tokenizer.
        following: The ids that follow a reply.
        held: How many of them belong to its end.
    """
    return {i: n + 1 for n, i in reversed(list(enumerate(following[:held]))) if i in tokens.structural}


def spans(tokens: ChatTokens, text: str, start: int) -> tuple[list[int], list[int], list[int]]:
    """The ids of a text from ``start`` on, as they are in the whole text, and the characters each one covers."""
    skipped = start if tokens.is_cut(text, start) else 0  # such a token is all that what follows can see
    ids, offsets = tokens.whole(text[skipped:])
    if offsets is not None and skipped:
        return ids, [a + start for a, _ in offsets], [b + start for _, b in offsets]
    if offsets is None:
        return _spans_slowly(tokens, text, start)
    first = 1 + max((n for n, (a, _) in enumerate(offsets) if a < start), default=-1) if start else 0
    starts, ends = [a for a, _ in offsets[first:]], [b for _, b in offsets[first:]]
    found = ids[first:]
    if first and offsets[first - 1][1] > start:  # the mark and what follows it met in one token
        edge = next((n for n, i in enumerate(found) if i in tokens.structural), len(found))
        until = starts[edge] if edge < len(found) else len(text)
        alone = tokens.plain(text[start:until], "text")
        return [*alone, *found[edge:]], [*[start] * len(alone), *starts[edge:]], [*[until] * len(alone), *ends[edge:]]
    return found, starts, ends


def _spans_slowly(tokens: ChatTokens, text: str, start: int) -> tuple[list[int], list[int], list[int]]:
    """For a tokenizer that does not say what its ids cover: what each added token covers can be found in the text."""
    ids: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    place = start
    for token_id in tokens.whole(text[start:])[0]:
        spelling = tokens.added[token_id].content if token_id in tokens.structural and token_id in tokens.added else ""
        at = text.find(spelling, place) if spelling else -1
        begin, place = (at, at + len(spelling)) if at >= 0 else (place, place)
        ids.append(token_id)
        starts.append(begin)
        ends.append(place)
    return ids, starts, ends


def _writer(
    render: Callable[[str], str], before: str, behind: str, after: str | None
) -> tuple[str, Callable[[str], str]]:
    """How the template writes a content between what it writes around it, in words and as a function."""

    def ask(content: str) -> str:
        text = render(content)
        text = text[text.rindex(after) + len(after) :] if after else text
        if not (text.startswith(before) and text.endswith(behind)) or len(text) < len(before) + len(behind):
            raise NotWritten(
                "the chat template writes other things around this content than around others, so it cannot be framed."
            )
        return text[len(before) : len(text) - len(behind)]

    written = ask(PROBE)
    for words, write in WRITERS.items():
        if write(PROBE) == written:
            return words, write
    return "in its own way", ask


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
