"""Watches for a run whose replies are cut off: what they were about to say never reaches the environment.

Such a run goes on, and learns from how its replies begin.
"""

from __future__ import annotations

from collections.abc import Sequence

from gspo_rllib.types import TrajectoryGroup, turns

_SHARE = 0.5
"""Of the replies that were cut off, from which the run says so."""
_FEWEST = 32
"""Replies; a share of fewer says little."""


class CutMonitor:
    """Says once that most replies run out of tokens."""

    def __init__(self) -> None:
        self._told = False

    def draw(self, groups: Sequence[TrajectoryGroup]) -> str | None:
        """Takes notice of groups that were sampled.

        Args:
            groups: What came of one request for groups.

        Returns:
            What to warn about; None mostly.
        """
        if self._told:
            return None
        replies = [turn for group in groups for episode in group.episodes for turn in turns(episode)]
        cut = [len(turn.action_token_ids) for turn in replies if turn.finish_reason == "length"]
        if len(replies) < _FEWEST or len(cut) < _SHARE * len(replies):
            return None
        self._told = True
        return (
            f"{len(cut)} of {len(replies)} replies did not end by themselves: they were cut off, the longest after "
            f"{max(cut)} tokens, and the environment was given what there was. Raise "
            "generation.max_tokens_per_turn (an environment's ChatSpec and the context, generation.max_model_len, are "
            "limits too), or ask for shorter replies."
        )
