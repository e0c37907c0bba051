"""Keeps text of a client from becoming a token, whatever it spells, while the chat template still handles it as text.

The template is given one private character in place of each spelling; what stands around it is encoded as the
tokenizer would encode it had it never heard of that token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from gspo_rllib.agents.messages import RequestRefused
from gspo_rllib.chat.frames import spans
from gspo_rllib.chat.tokens import ChatTokens, Left

_PRIVATE = 0xF0000  # first character of a Unicode plane for private use: as many stand-ins as a text could need
_MOST_PRIVATE = 0xFFFD
_STAND_IN = re.compile(f"[{chr(_PRIVATE)}-{chr(_PRIVATE + _MOST_PRIVATE)}]")
_SURROGATE = "[\ud800-\udfff]"  # without a UTF-8 form: tokenizers raise on it

Speaker = Literal["own", "foreign"]
"""Whose text it is. What the agent's author and the policy write may spell tokens like ``<tool_call>``, but no special
ones; what users and tools say may spell none."""


class Risks:
    """What texts must not spell.

    Args:
        tokens: The tokenizer.
    """

    def __init__(self, tokens: ChatTokens) -> None:
        self.tokens = tokens
        self._ids: dict[Speaker, frozenset[int]] = {"own": tokens.special, "foreign": tokens.structural}
        self._spelt = {speaker: self._pattern(ids) for speaker, ids in self._ids.items()}

    def places(self, text: str, speaker: Speaker) -> list[tuple[int, int]]:
        """Where a text spells something, in its order, without overlaps."""
        found = [match.span() for match in self._spelt[speaker].finditer(text)]
        if not self.tokens.normalizes:
            return found
        # A token may also be what the normaliser makes of another spelling.
        for start, end in self.tokens.places(text if text.isascii() else _sound(text), self._ids[speaker]):
            if not any(start < b and a < end for a, b in found):
                found.append((start, end))
        return sorted(found)

    def _pattern(self, ids: frozenset[int]) -> re.Pattern[str]:
        spelled = {self.tokens.added[i].content for i in ids if i in self.tokens.added} - {""}
        # Longest first: one token may begin with another. Stand-ins a client sends itself are plain text too.
        ordered = sorted(spelled, key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, ordered), _STAND_IN.pattern, _SURROGATE]))


class Defused:
    """The stand-ins of one conversation, and what each stands for.

    Args:
        risks: What is replaced.
    """

    def __init__(self, risks: Risks) -> None:
        self._risks = risks
        self._stand_ins: dict[str, str] = {}
        self._texts: list[str] = []

    def __call__(self, text: str, speaker: Speaker = "own") -> str:
        """The text with stand-ins.

        Raises:
            RequestRefused: It holds more kinds of private characters than there are stand-ins.
        """
        parts, place = [], 0
        for start, end in self._risks.places(text, speaker):
            parts += [text[place:start], self._stand_in(text[start:end])]
            place = end
        return "".join([*parts, text[place:]]) if place else text

    def within(self, value: Any) -> Any:
        """Plain data with every text in it defused."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, Mapping):
            return {self.within(key): self.within(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.within(inner) for inner in value]
        return value

    def ids(self, text: str, start: int = 0) -> list[int]:
        """The ids of a rendered text from a place on, as they are in the whole text.

        Args:
            text: What the template made of defused messages.
            start: Where the ids begin; in front of it is text, if anything.
        """
        tokens = self._risks.tokens
        found, starts, ends = spans(tokens, text, start)
        if not self._texts:
            return found
        ids: list[int] = []
        between: list[int] = []
        place = start
        left: Left = "text" if start else "start"
        for token_id, begin, end in zip(found, starts, ends, strict=True):
            if token_id not in tokens.structural:
                between.append(token_id)
                continue
            ids += [*self._plain(text[place:begin], left, between), token_id]
            place, left, between = end, "token", []
        return [*ids, *self._plain(text[place:], left, between)]

    def _plain(self, piece: str, left: Left, known: list[int]) -> tuple[int, ...] | list[int]:
        """The ids of a piece without tokens; those that are known, where it has no stand-in."""
        if not _STAND_IN.search(piece):
            return known
        return self._risks.tokens.plain(_STAND_IN.sub(lambda found: self._texts[ord(found[0]) - _PRIVATE], piece), left)

    def _stand_in(self, text: str) -> str:
        if text not in self._stand_ins:
            if len(self._texts) > _MOST_PRIVATE:
                raise RequestRefused("messages hold too many different private characters.", "messages")
            self._stand_ins[text] = chr(_PRIVATE + len(self._texts))
            self._texts.append(text)
        return self._stand_ins[text]


def _sound(text: str) -> str:
    return re.sub(_SURROGATE, "?", text)
