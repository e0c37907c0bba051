"""Watches for agents whose conversations do not stay one context, and says why."""

from __future__ import annotations

import logging
from collections import Counter

from gspo_rllib.agents.session import NewContext, Session

logger = logging.getLogger("gspo_rllib")

ENOUGH = 16
"""Trajectories after which more than half are many."""

REMEDIES: dict[NewContext, str] = {
    "other tools": "the list of tools differs from call to call; send the same one, or history='as_sent'",
    "other first message": "the first message differs from call to call, as a system prompt does that holds the time",
    "rewritten history": "the client rewrites what the policy said, so it is not recognised",
    "no bridge": "the model's chat template cannot continue a conversation from a reply alone",
}
"""Causes that are avoidable, in words. A conversation begun anew on purpose is none."""


class ContextWatch:
    """Counts, and warns once."""

    def __init__(self) -> None:
        self._num_trajectories = 0
        self._num_split = 0
        self._causes: Counter[NewContext] = Counter()
        self._told = False

    def note(self, session: Session) -> None:
        """Takes a finished session into account."""
        avoidable: Counter[NewContext] = Counter({c: n for c, n in session.new_contexts.items() if c in REMEDIES})
        self._num_trajectories += 1
        self._num_split += bool(avoidable)
        self._causes += avoidable
        if self._told or self._num_trajectories < ENOUGH or 2 * self._num_split <= self._num_trajectories:
            return
        self._told = True
        cause, times = self._causes.most_common(1)[0]
        logger.warning(
            "%d of %d trajectories were played in more contexts than they have conversations; each costs its whole "
            "prompt again. Most often (%d times): %s.",
            self._num_split,
            self._num_trajectories,
            times,
            REMEDIES[cause],
        )
