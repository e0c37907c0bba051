"""What happens when a conversation outgrows the model's context: it goes on in a new segment, or ends.

A segment is one contiguous context. A new one starts from the system prompt and the task's first observation, and then
holds either the latest turns (a sliding window) or a summary that the policy itself wrote. What was sampled before and
is repeated there is context only: every sampled token carries loss in exactly one segment, the one it was sampled in.
Observations are tokenised again for a new segment; what the policy sampled never is.
"""

from __future__ import annotations

from typing import Literal, get_args

from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.env_worker import EnvAnswer
from gspo_rllib.env_runners.trajectory import Trajectory, role_of

ContextOverflow = Literal["truncate", "sliding_window", "summarize"]
CONTEXT_OVERFLOWS: tuple[str, ...] = get_args(ContextOverflow)

SUMMARY_REQUEST = "The context is nearly full. Write down all you need to go on: only that will be kept."
SUMMARY_HEADER = "Summary so far:"


class Segments:
    """Builds the contexts that a trajectory goes on in.

    Args:
        overflow: What is done when a conversation outgrows the context.
        budget: Most ids a new segment may start with.
        max_summary_tokens: Most ids of a summary.
    """

    def __init__(self, overflow: ContextOverflow, *, budget: int, max_summary_tokens: int) -> None:
        self._overflow = overflow
        self._budget = budget
        self._max_summary_tokens = max_summary_tokens
        self._request_lengths: dict[ChatRenderer, int] = {}

    def reserve(self, trajectory: Trajectory) -> int:
        """Ids of the context that are kept free for a summary and the request for it."""
        if self._overflow != "summarize":
            return 0
        renderer = trajectory.renderer
        assert renderer is not None
        if renderer not in self._request_lengths:
            # Closing a reply that did not end itself takes the longer request.
            self._request_lengths[renderer] = len(renderer.next_prompt(SUMMARY_REQUEST, reply_ended=False))
        return self._request_lengths[renderer] + self._max_summary_tokens

    def summary_request(self, trajectory: Trajectory) -> list[int]:
        """The ids that ask the policy for a summary, to be appended to the context; they fit in what was reserved."""
        assert trajectory.renderer is not None
        return trajectory.renderer.next_prompt(SUMMARY_REQUEST, reply_ended=trajectory.reply_ended)

    def after_summary(self, trajectory: Trajectory, answer: EnvAnswer) -> list[int] | None:
        """A segment that starts from the task, the summary just written and the observation that waited for it.

        Returns:
            Its ids up to where the next reply begins; None if they are more than the budget.
        """
        assert trajectory.renderer is not None
        task = trajectory.episode.get_observations(0)
        ids = trajectory.renderer.first_prompt(
            f"{task}\n\n{SUMMARY_HEADER}\n{trajectory.action}\n\n{answer.observation}"
        )
        return ids if len(ids) <= self._budget else None

    def window(self, trajectory: Trajectory, answer: EnvAnswer) -> list[int] | None:
        """A segment that repeats the first turn and as many of the latest ones as fit, and asks the new observation.

        Returns:
            Its ids up to where the next reply begins; None where segments are not wanted, or not even the first turn
            and the new observation fit.
        """
        renderer = trajectory.renderer
        if self._overflow != "sliding_window" or renderer is None:
            return None
        replies = [turn.action_token_ids.tolist() for turn in trajectory.turns()]
        ended = [reply[-1] in renderer.stop_token_ids for reply in replies]
        shown = [*trajectory.episode.get_observations(), answer.observation]
        roles = [info.get("obs_role", "user") for info in trajectory.episode.get_infos()] + [role_of(answer)]

        def framed(number: int, after: int) -> list[int]:
            """Observation ``number`` with the frame that follows the reply of turn ``after``."""
            return renderer.next_prompt(shown[number], reply_ended=ended[after], role=roles[number])

        last = len(replies)
        head = renderer.first_prompt(shown[0]) + replies[0]
        best: list[int] | None = None
        tail: list[int] = []
        # From the new observation backwards: each turn may be the first that follows the head.
        for number in range(last, 0, -1):
            reply = replies[number] if number < last else []
            candidate = head + framed(number, 0) + reply + tail
            if len(candidate) > self._budget:
                break
            best = candidate
            tail = framed(number, number - 1) + reply + tail
        return best
