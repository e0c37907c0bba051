"""Prompts that an agent wrote itself, as text or ids, and which of them go on from a reply to an earlier one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

import numpy as np

RawPrompt = str | tuple[int, ...]

Answered = TypeVar("Answered")


class RawPrompts(Generic[Answered]):
    """The replies of one session to such prompts.

    A prompt goes on from a reply if it begins with what the reply was shown and what it said: as text, with or without
    the stop string that ended it, or as ids.
    """

    def __init__(self) -> None:
        self._texts: list[tuple[str, Answered]] = []
        self._ids: list[tuple[np.ndarray, Answered]] = []

    def note(self, prompt: RawPrompt, said: Iterable[str], token_ids: np.ndarray, answered: Answered) -> None:
        """Adds a reply; from now on it is recognised.

        Args:
            prompt: The prompt as the client sent it.
            said: The texts by which the reply may come back.
            token_ids: int32, the sampled ids.
            answered: What a later prompt goes on from.
        """
        if isinstance(prompt, str):
            self._texts += [(prompt + text, answered) for text in said]
        else:
            self._ids.append((np.concatenate([np.asarray(prompt, np.int32), token_ids]), answered))

    def recognised(self, prompt: RawPrompt) -> tuple[list[Answered], int]:
        """The replies that a prompt may go on from, all alike, and how many of its characters or ids they explain.

        Something must follow the reply; where several fit, these are the ones that explain most.
        """
        if isinstance(prompt, str):
            found = [(len(t), one) for t, one in self._texts if len(t) < len(prompt) and prompt.startswith(t)]
        else:
            ids = np.asarray(prompt, np.int32)
            shorter = [(known, one) for known, one in self._ids if len(known) < len(ids)]
            found = [(len(known), one) for known, one in shorter if np.array_equal(known, ids[: len(known)])]
        longest = max((known for known, _ in found), default=0)
        return [one for known, one in found if known == longest], longest
