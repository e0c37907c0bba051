"""Whether a reply has just come to one of the strings that end a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARGIN = 8  # tokens: room for a character that begins before the stop string, and for a lost leading space


class StopStrings:
    """Decodes just enough of a reply's end to find a stop string in it.

    Args:
        tokenizer: Tokenizer of the model that samples.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._reach: dict[tuple[str, ...], int] = {}

    def reached(self, token_ids: list[int], stop: tuple[str, ...], start: int = 0) -> bool:
        """Whether the reply's end holds a stop string; to be asked after every sampled id.

        Args:
            token_ids: The reply so far, from index ``start`` on.
            stop: The strings that end it.
            start: Where the reply begins in ``token_ids``.
        """
        if stop not in self._reach:
            # A token that is not special decodes to one byte at least.
            self._reach[stop] = max(len(text.encode("utf-8", "replace")) for text in stop) + _MARGIN
        tail: list[int] = []
        for place in range(len(token_ids) - 1, start - 1, -1):
            if token_ids[place] not in self._special:
                tail.append(token_ids[place])
                if len(tail) == self._reach[stop]:
                    break
        text = self._tokenizer.decode(tail[::-1])
        return any(one in text for one in stop)
