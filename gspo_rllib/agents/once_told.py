"""What the log says, once each, about how agents use the server: what would otherwise be wrong in silence.

A framework hides much of what it does, and some hide what they are answered: a call that was refused may look like a
trajectory that went badly.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence

from gspo_rllib.agents.fields import why_without_effect
from gspo_rllib.agents.messages import RequestRefused

logger = logging.getLogger("gspo_rllib")

MOST_TOLD = 100
"""Things that the log tells; a client can make up any number."""


class OnceTold:
    """Tells each thing once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def no_effect(self, names: Sequence[str]) -> None:
        """Fields that were passed over."""
        for name in names:
            if self._is_new(name):
                logger.warning("An agent sends %r. It has no effect: %s.", name[:60], why_without_effect(name))

    def refused(self, refused: RequestRefused) -> None:
        """A call that no agent makes on purpose; those that end a conversation or a session are part of any run."""
        # Of a list of messages each would be told by its number.
        if refused.status == 400 and refused.code is None and self._is_new(re.sub(r"\d+", "#", str(refused.param))):
            logger.warning(
                "A call of an agent was refused: %.300s If the agent passes over that, it is trained on what it did "
                "without a reply.",
                refused,
            )

    def models(self, names: Collection[str]) -> None:
        """Names of models that one trajectory asked for."""
        if len(names) > 1 and self._is_new("models"):
            logger.warning(
                "One trajectory asks for the models %s. All of them are the policy, and whatever it is asked for is "
                "trained: a judge, or another model, needs an address of its own.",
                ", ".join(repr(name[:60]) for name in sorted(names)),
            )

    def _is_new(self, thing: str) -> bool:
        if thing in self._told or len(self._told) >= MOST_TOLD:
            return False
        self._told.add(thing)
        return True
