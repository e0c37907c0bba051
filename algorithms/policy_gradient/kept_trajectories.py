"""The part of an algorithm that keeps a few trajectories of every iteration, for people to look at."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.algorithms.policy_gradient.reporting_settings import ReportingSettings
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.learners.trained_tokens import TrainedTokens, trained_tokens
from gspo_rllib.seeds import derive_seed
from gspo_rllib.trajectory_table import FOLDER, file_of, row_of, write_table
from gspo_rllib.types import GROUP, TrajectoryGroup, turns

if TYPE_CHECKING:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
    from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings

logger = logging.getLogger("gspo_rllib")


_Member = tuple[str, int]


def _member(episode: SingleAgentEpisode) -> _Member:
    member = episode.custom_data[GROUP]
    return member.group_id, member.index


class KeepsTrajectories:
    """What ``PolicyGradient`` does to keep them.

    Attributes:
        trajectory_folder: Where the files are written; None for ``trajectories/`` in ``logdir``.
    """

    config: PolicyGradientConfig
    logdir: str
    iteration: int
    _settings: TrainingSettings
    _first_learner: Callable[[Callable[[Any], Any]], list[Any]]
    trajectory_folder: str | os.PathLike[str] | None = None
    _most_kept: int = 0
    _kept: Mapping[str, list[SingleAgentEpisode]] = {}
    _trained: Mapping[_Member, TrainedTokens] = {}
    _fails_to_keep: bool = False

    def _begin_keeping(self) -> None:
        """Forgets what the last iteration left; called when one begins."""
        self._most_kept = self.config.settings(ReportingSettings).keep_trajectories
        self._kept, self._trained = {}, {}

    def _offer(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Keeps some of what was sampled, in place of some of what was kept before."""
        if not self._most_kept:
            return
        offered = {**self._kept, **{group.group_id: list(group.episodes) for group in groups}}
        # By name, so that neither the order nor the number of draws decides which tasks are seen.
        order = sorted(offered, key=lambda name: (derive_seed(self.config.seed, "kept", name, bits=31), name))
        kept: dict[str, list[SingleAgentEpisode]] = {}
        room = self._most_kept
        for name in order:
            if len(offered[name]) <= room or not kept:
                kept[name] = offered[name]
                room -= len(offered[name])
        self._kept = kept

    def _look_at_trained(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Asks a learner what it did with those that are kept, right after its update."""
        chosen = {_member(episode) for episode in self._chosen}
        kept = [group for group in groups if group.group_id in {name for name, _ in chosen}]
        episodes = [e for group in kept for e in group.episodes if any(len(t.action_token_ids) for t in turns(e))]
        wanted = [place for place, episode in enumerate(episodes) if _member(episode) in chosen]
        if not wanted:
            return
        temperature = float(self.config.settings(GenerationSettings).temperature)
        # A critic has changed since, and a connector of the user's own may count what it sees.
        knows = not self._settings.uses_critic and self.config._learner_connector is None
        (found,) = self._first_learner(
            lambda learner: trained_tokens(learner, episodes, wanted, temperature=temperature, knows_advantages=knows)
        )
        members = [_member(episodes[place]) for place in wanted]
        self._trained = {**self._trained, **dict(zip(members, found, strict=True))}

    @property
    def _chosen(self) -> list[SingleAgentEpisode]:
        """Those that are written: of a group that is larger than what is kept, the first members."""
        return [episode for episodes in self._kept.values() for episode in episodes][: self._most_kept]

    def _write_kept(self) -> None:
        """Writes the iteration's file; where there is no room, says so once, and goes on."""
        rows = []
        for episode in self._chosen:
            trained = self._trained.get(_member(episode))
            rows.append(
                row_of(
                    episode,
                    iteration=self.iteration + 1,
                    trained=trained is not None,
                    advantages=None if trained is None else trained.advantage_L,
                    updated_logp=None if trained is None else trained.logp_L,
                )
            )
        if not rows:
            return
        folder = Path(self.logdir) / FOLDER if self.trajectory_folder is None else Path(self.trajectory_folder)
        try:
            write_table(file_of(folder, self.iteration + 1), rows)
        except OSError as error:
            if not self._fails_to_keep:
                logger.warning(
                    "Trajectories of iteration %d, and of those after it while this lasts, are not kept: %s",
                    self.iteration + 1,
                    error,
                )
            self._fails_to_keep = True
        else:
            self._fails_to_keep = False
