"""Prompts that an agent wrote itself, as text or ids, and the replies that later prompts go on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gspo_rllib.agents.session import Call

RawPrompt = str | tuple[int, ...]


class RawPrompts:
    """The replies of one session to such prompts.

    A prompt goes on from a reply if it begins with what the reply was shown and what it said: as text, with or without
    the stop string that ended it, or as ids.
    """

    def __init__(self) -> None:
        self._texts: list[tuple[str, Call]] = []
        self._ids: list[tuple[np.ndarray, Call]] = []

    def note(self, prompt: RawPrompt, call: Call) -> None:
        """Adds a reply; from now on it is recognised."""
        if isinstance(prompt, str):
            for said in {call.text, call.reply.content}:
                self._texts.append((prompt + said, call))
        else:
            self._ids.append((np.concatenate([call.prompt(), call.token_ids]), call))

    def recognised(self, prompt: RawPrompt) -> tuple[Call | None, int]:
        """The reply that a prompt goes on from, and how many of its characters or ids are known by it."""
        found: Sequence[tuple[int, Call]]
        if isinstance(prompt, str):
            found = [(len(t), call) for t, call in self._texts if len(t) < len(prompt) and prompt.startswith(t)]
        else:
            ids = np.asarray(prompt, np.int32)
            found = [
                (len(known), call)
                for known, call in self._ids
                if len(known) < len(ids) and np.array_equal(known, ids[: len(known)])
            ]
        if not found:
            return None, 0
        # The longest, and of several that read alike one that nothing goes on from yet, which makes no second branch.
        known, call = min(found, key=lambda one: (-one[0], len(one[1].children)))
        return call, known
