"""Which tokens each cache slot holds, and which slot a new request should use.

A slot keeps its tokens after its request finished, so the next turn of the same trajectory, whose prompt extends them,
finds its context already computed. Trajectories of one group start with the same prompt; all but the first copy it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_WORTH_COPYING = 16  # tokens; below this, computing them again costs less than the extra bookkeeping


@dataclass(frozen=True, slots=True)
class SlotChoice:
    """Where a request goes.

    Attributes:
        slot: The slot to use.
        cached: Leading prompt tokens that need no computing.
        copy_from: Slot to copy those tokens from, or None when ``slot`` holds them already.
    """

    slot: int
    cached: int
    copy_from: int | None = None


class SlotTable:
    """Tokens of every slot, and who uses it.

    Args:
        num_slots: Slots there may ever be.
        max_model_len: Longest context in tokens.
    """

    def __init__(self, num_slots: int, max_model_len: int) -> None:
        self._tokens = np.zeros((num_slots, max_model_len), dtype=np.int32)
        self._known = np.zeros(num_slots, dtype=np.int64)  # tokens written down, computed or about to be
        self._computed = np.zeros(num_slots, dtype=np.int64)  # of those, keys and values in the cache
        self._busy = np.zeros(num_slots, dtype=bool)
        self._last_used = np.zeros(num_slots, dtype=np.int64)
        self._clock = 0

    @property
    def full(self) -> bool:
        """Whether every slot is busy."""
        return bool(self._busy.all())

    def choose(self, prompt: np.ndarray) -> SlotChoice | None:
        """The best slot for a prompt, which this call does not yet take.

        Args:
            prompt: int32 [P], ids of the request's prompt.

        Returns:
            None when another request is about to compute a prefix worth waiting for.
        """
        assert not self.full
        shared = self._shared_prefix(prompt)
        # The last prompt token is always computed: its logits are what the first sample is drawn from.
        ready = np.minimum(shared, np.minimum(self._computed, len(prompt) - 1))
        own = np.where(~self._busy & (self._computed > 0) & (ready == self._computed), ready, 0)
        best = int(ready.argmax())
        if own.max() > 0 and own.max() + _WORTH_COPYING > ready[best]:
            return SlotChoice(int(own.argmax()), int(own.max()))
        coming = int(np.minimum(shared[self._busy], len(prompt) - 1).max(initial=0))
        if coming >= int(ready[best]) + _WORTH_COPYING:
            return None
        target = int(np.where(self._busy, np.iinfo(np.int64).max, self._last_used).argmin())
        if ready[best] < _WORTH_COPYING:
            return SlotChoice(target, 0)
        return SlotChoice(target, int(ready[best]), copy_from=None if target == best else best)

    def take(self, choice: SlotChoice, prompt: np.ndarray) -> None:
        """Gives a slot to a request."""
        slot = choice.slot
        self._tokens[slot, : len(prompt)] = prompt
        self._known[slot], self._computed[slot], self._busy[slot] = len(prompt), choice.cached, True

    def advance(self, slot: int, computed: int) -> None:
        """Records that the first ``computed`` tokens of a slot are in the cache."""
        self._computed[slot] = computed

    def append(self, slot: int, token: int) -> None:
        """Writes a sampled token down."""
        self._tokens[slot, self._known[slot]] = token
        self._known[slot] += 1

    def release(self, slot: int) -> None:
        """Ends a request; what is computed stays for later prompts."""
        self._clock += 1
        self._known[slot], self._busy[slot], self._last_used[slot] = self._computed[slot], False, self._clock

    def forget(self) -> None:
        """Forgets what was computed; a busy slot keeps its tokens, whose keys and values are to be computed again."""
        self._computed[:] = self._last_used[:] = 0
        self._known[~self._busy] = 0

    def _shared_prefix(self, prompt: np.ndarray) -> np.ndarray:
        differs = self._tokens[:, : len(prompt)] != prompt
        first = differs.argmax(axis=1)
        # Where nothing differs, argmax is 0 as well. What lies behind a slot's known tokens is no part of them.
        first[~differs[np.arange(len(first)), first]] = len(prompt)
        shared: np.ndarray = np.minimum(first, self._known)
        return shared
