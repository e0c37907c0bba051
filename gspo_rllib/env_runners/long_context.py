"""What happens when a conversation outgrows the model's context: it goes on in a new segment, or ends.

A segment is one contiguous context. A new one starts from the system prompt and the task's first observation, and then
holds either the latest turns (a sliding window) or a summary that the policy itself wrote. What was sampled before and
is repeated there is context only: every sampled token carries loss in exactly one segment, the one it was sampled in.
Observations are tokenised again for a new segment; what the policy sampled never is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.env_pool.calls import EnvAnswer
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.types import TURN, Turn

SUMMARY_REQUEST = "The context is nearly full. Write down all you need to go on: only that will be kept."
SUMMARY_HEADER = "Summary so far:"


class Segments:
    """Builds the contexts that a trajectory goes on in.

    Args:
        renderer: Renders the conversation.
        settings: Say what is done when a conversation outgrows the context, and how long a summary may be.
        budget: Most ids a new segment may start with.
    """

    def __init__(self, renderer: ChatRenderer, settings: GenerationSettings, *, budget: int) -> None:
        self._renderer = renderer
        self._settings = settings
        self._budget = budget

    @cached_property
    def reserve(self) -> int:
        """Ids of the context that are kept free for a summary and the request for it."""
        if not self._settings.asks_for_summaries:
            return 0
        # Closing a reply that did not end itself takes the longer request.
        return len(self.summary_request(())) + self._settings.max_summary_tokens

    def summary_request(self, reply: Sequence[int]) -> list[int]:
        """The ids that ask the policy for a summary after this reply; they fit in what was reserved."""
        return self._renderer.prompt_after(reply, SUMMARY_REQUEST)

    def after_summary(self, episode: SingleAgentEpisode, summary: str, answer: EnvAnswer) -> list[int] | None:
        """A segment that holds the task, the summary just written and the observation to be answered next.

        Returns:
            Token ids of the segment up to where the next reply begins; None if they are more than the budget.
        """
        task = episode.get_observations(0)
        ids = self._renderer.first_prompt(f"{task}\n\n{SUMMARY_HEADER}\n{summary}\n\n{answer.observation}")
        return ids if len(ids) <= self._budget else None

    def window(self, episode: SingleAgentEpisode, latest: Turn, answer: EnvAnswer) -> list[int] | None:
        """A segment that repeats the first turn and as many of the latest ones as fit, and asks the new observation.

        Args:
            episode: All turns before the latest.
            latest: The turn the environment has just answered.
            answer: The environment's answer to that turn.

        Returns:
            Token ids of the segment up to where the next reply begins; None where segments are not wanted, or not even
            the first turn and the new observation fit.
        """
        if self._settings.context_overflow != "sliding_window":
            return None
        renderer = self._renderer
        earlier = episode.get_extra_model_outputs(TURN) if len(episode) else []
        replies = [turn.action_token_ids.tolist() for turn in (*earlier, latest)]
        shown = [*episode.get_observations(), answer.observation]
        roles = [info.get("obs_role", "user") for info in episode.get_infos()] + [answer.role]

        def framed(number: int, after: int) -> list[int]:
            """Observation ``number`` with the frame that follows the reply of turn ``after``."""
            return renderer.prompt_after(replies[after], shown[number], role=roles[number])

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
