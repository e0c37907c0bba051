"""Text to ids and back, as a tokenizer does it within a longer text, and without letting foreign text forge a token.

A tokenizer cuts a text at its added tokens and encodes what lies between them. So a piece of a text has the ids it has
in the whole if it is encoded between the same two added tokens. Three things would go wrong if it were encoded alone:
SentencePiece writes a space before a text (but not, or not always, after an added token), its decoder takes that space
away again, and added tokens that the piece spells become those tokens: special ones (``<|im_end|>``) and others
(``<tool_call>``, ``</think>``).

Copies of the tokenizer that know fewer added tokens, or only one that no text spells, put that right; they share its
vocabulary and cost microseconds. Added tokens that are mere text stay known: runs of spaces or line breaks, and entries
of the vocabulary such as ``<table>`` that the chat template does not use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from gspo_rllib.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerBase

Left = Literal["start", "token", "text"]
"""What a piece follows: nothing, an added token, or text."""

WHITE_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and c not in "\x1c\x1d\x1e\x1f")
"""What an added token with ``lstrip`` or ``rstrip`` takes with it."""

# Noncharacters: no text means anything by them.
_ANCHOR = "\ufdd0\ufdd1"
_REMEMBERED_TEXTS = 128
_REMEMBERED_LENGTH = 10_000  # characters: all remembered texts and their ids stay below some 20 MB
_SHORT = 4096
"""Characters up to which a text is encoded at once; longer ones let other threads run meanwhile, which costs more."""
# Texts to follow: no tokenizer joins the first with its neighbours, and the second is in every vocabulary.
_TEXTS = ("\u2984", ".")


class ChatTokens:
    """One tokenizer's text and ids.

    Args:
        tokenizer: A transformers tokenizer.
        template: Source of its chat template; the added tokens it names are not mere text.
        end_token_ids: Ids that end a turn; they are not mere text either.

    Attributes:
        structural: Ids that foreign text must not become: all added tokens but those that are mere text.
        special: Those of them that ``decode`` leaves out.
        beginning: Those that begin a text.
        normalizes: Whether a text may become one of them although it spells it otherwise.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str = "", end_token_ids: Iterable[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        self.added: dict[int, AddedToken] = dict(tokenizer.added_tokens_decoder)
        self.special = frozenset({*tokenizer.all_special_ids, *(i for i, token in self.added.items() if token.special)})
        mere = self._mere_text(template) - self.special - set(end_token_ids)
        self._unknown: int | None = getattr(tokenizer, "unk_token_id", None)
        # What stands for unknown characters may stand in any text.
        self.structural = frozenset((set(self.added) - mere | self.special) - {self._unknown})
        self.beginning = frozenset({tokenizer.bos_token_id} - set(end_token_ids))
        loose = any(i in self.added and self.added[i].normalized for i in self.structural)
        self.normalizes = loose and self._backend is not None and self._backend.normalizer is not None
        self._cuts = tuple(
            token.content
            for i, token in self.added.items()
            if i in self.structural and token.content and not (token.normalized or token.lstrip or token.single_word)
        )
        self._text = self._some_text()
        self._plain = self._encoder(mere, self.structural)
        self._written = self._encoder({i for i in self.added if i not in self.special}, self.special)
        self._decode = self._decoder()

    def whole(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Ids of a rendered conversation as ``apply_chat_template`` makes them, and the characters each one covers.

        The second is None where the tokenizer cannot say.
        """
        options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        if self._backend is None:
            return list(self._tokenizer(text, **options)["input_ids"]), None
        if len(text) < _SHORT and self._encodes_plainly(self._backend):
            short = self._backend.encode(text, add_special_tokens=False)
            return list(short.ids), list(short.offsets)
        encoded = self._tokenizer(text, return_offsets_mapping=True, **options)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def is_cut(self, text: str, place: int) -> bool:
        """Whether a token stands there that cuts the text in two whatever comes before it, as far as can be told.

        What the text before it ends with must be no part of any token.
        """
        return self._backend is not None and text.startswith(self._cuts, place)

    @staticmethod
    def _encodes_plainly(backend: Tokenizer) -> bool:
        """Whether it does what the tokenizer around it has it do: cut off nothing, add nothing, take tokens as one."""
        return backend.truncation is None and backend.padding is None and not backend.encode_special_tokens

    def places(self, text: str, ids: Collection[int]) -> list[tuple[int, int]]:
        """Where in a text the tokenizer finds one of these ids; nowhere, where it cannot say."""
        found, offsets = self.whole(text)
        return [place for i, place in zip(found, offsets or (), strict=False) if i in ids and place[0] < place[1]]

    def plain(self, text: str, left: Left = "token") -> tuple[int, ...]:
        """Ids of foreign text; none of them is structural, whatever the text spells."""
        return self._plain(text, left)

    def written(self, text: str, left: Left = "token") -> tuple[int, ...]:
        """Ids of a reply as the policy should write it: it may hold ``<tool_call>``, but no special token."""
        return self._written(text, left)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a reply, exactly: without special tokens, but with the space SentencePiece begins a word with."""
        return self._decode(token_ids if isinstance(token_ids, list) else list(token_ids))

    def shown(self, token_ids: Sequence[int]) -> str:
        """Ids as a person reads them, special tokens included."""
        text: str = self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)
        return text

    def strips(self, token_id: int) -> tuple[bool, bool]:
        """Whether an added token takes the white space to its left, and to its right, with it."""
        token = self.added.get(token_id)
        return (False, False) if token is None else (token.lstrip, token.rstrip)

    def _mere_text(self, template: str) -> set[int]:
        """Added tokens that stand for what they spell, as any entry of the vocabulary does."""
        if self._backend is None:
            return set()
        from tokenizers import Tokenizer

        base = Tokenizer(self._backend.model)

        def is_mere(token: AddedToken) -> bool:
            spells_space = not token.content.strip(WHITE_SPACE + "\u2581")
            return spells_space or (base.token_to_id(token.content) is not None and token.content not in template)

        return {i for i, token in self.added.items() if not token.special and is_mere(token)}

    def _encoder(self, known: set[int], forbidden: frozenset[int]) -> Callable[[str, Left], tuple[int, ...]]:
        if self._backend is None:
            return self._encode_slowly
        return _Copy(self._backend, {i: self.added[i] for i in known}, forbidden - {self._unknown}, self._text)

    def _some_text(self) -> str:
        """A text for others to follow."""
        known = [text for text in _TEXTS if self._unknown not in self.whole(text)[0]]
        return known[0] if known else _TEXTS[-1]

    def _encode_slowly(self, text: str, left: Left) -> tuple[int, ...]:
        """For tokenizers written in Python, by what they have: one flag for special tokens."""
        before = "" if left == "start" else self._text
        options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True}
        skipped = len(self._tokenizer.encode(before, **options)) if before else 0
        return tuple(self._tokenizer.encode(before + _sound(text), **options)[skipped:])

    def _decoder(self) -> Callable[[list[int]], str]:
        if self._backend is None:
            plainly: Callable[[list[int]], str] = functools.partial(
                self._tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        else:
            plainly = self._backend.decode  # without special tokens
        before = list(self.plain(self._text))
        sample = list(self.plain(" a", "text"))
        if plainly([*before, *sample]) == plainly(before) + plainly(sample):
            return plainly

        def after_text(ids: list[int]) -> str:
            # The decoder takes one space off the beginning of whatever it is given, so it is given a beginning.
            text = plainly([*before, *ids])
            return text.removeprefix(plainly(before))

        return after_text


class _Copy:
    """A fast tokenizer's own vocabulary and rules with fewer added tokens.

    Args:
        backend: The tokenizer to copy; it stays as it is.
        known: Added tokens to keep, by id.
        forbidden: Ids that no text may become.
        text: Some text, for another to follow.
    """

    def __init__(
        self, backend: Tokenizer, known: dict[int, AddedToken], forbidden: frozenset[int | None], text: str
    ) -> None:
        from tokenizers import AddedToken, Tokenizer

        self._copy = Tokenizer(backend.model)
        if backend.normalizer is not None:
            self._copy.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._copy.pre_tokenizer = backend.pre_tokenizer
        self._copy.add_tokens(list(known.values()))
        self._copy.add_special_tokens([AddedToken(_ANCHOR, special=True, normalized=False)])
        # An added token beside the vocabulary is numbered anew here.
        new = {self._copy.token_to_id(token.content): i for i, token in known.items()}
        self._renumbered = {mine: theirs for mine, theirs in new.items() if mine != theirs}
        # Only an entry of the vocabulary itself can come out of a text, and the anchor where a text spells it.
        vocabulary = Tokenizer(backend.model)
        spelt = {i for i in forbidden if i is not None and vocabulary.id_to_token(i) is not None}
        self._forbidden = frozenset({*spelt, self._copy.token_to_id(_ANCHOR)})
        before: dict[Left, tuple[str, int]] = {
            "start": ("", 0),
            "token": (_ANCHOR, 1),
            "text": (_ANCHOR + text, len(self._ids(_ANCHOR + text))),
        }
        samples = ("a a", " a", "\na", "")
        self._before = {
            # Most tokenizers do not care what a piece follows, and are not bothered with it then.
            left: piece if any(self._ids(piece[0] + s)[piece[1] :] != self._ids(s) for s in samples) else ("", 0)
            for left, piece in before.items()
        }
        # The members of a group are shown the same text first, and many environments say few things.
        self._remembered = functools.lru_cache(maxsize=_REMEMBERED_TEXTS)(self._encode)

    def __call__(self, text: str, left: Left) -> tuple[int, ...]:
        return self._remembered(text, left) if len(text) < _REMEMBERED_LENGTH else self._encode(text, left)

    def _encode(self, text: str, left: Left) -> tuple[int, ...]:
        before, skipped = self._before[left]
        sound = text if text.isascii() else _sound(text)
        ids: list[int] = self._copy.encode(before + sound, add_special_tokens=False).ids
        if skipped:
            ids = ids[skipped:]
        if not self._forbidden.isdisjoint(ids):
            return self._in_pieces(sound, left)
        return tuple([self._renumbered.get(i, i) for i in ids] if self._renumbered else ids)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._copy.encode(text, add_special_tokens=False).ids
        return ids

    def _in_pieces(self, text: str, left: Left) -> tuple[int, ...]:
        """A vocabulary that holds the spelling of a special token as an entry of its own: cut such a text smaller."""
        if len(text) < 2:
            raise ModelError(
                f"the tokenizer has a special token that is the single character {text!r}, so text that holds it "
                "cannot be told from the token. Use a tokenizer whose special tokens are longer."
            )
        half = len(text) // 2
        return (*self(text[:half], left), *self(text[half:], "text"))


def _sound(text: str) -> str:
    # A lone surrogate (json.loads makes them) has no UTF-8 form, and tokenizers raise on it: "?" takes its place.
    return text.encode("utf-8", errors="replace").decode("utf-8")
