"""Counts, times and complete groups of one rollout, and how they are logged as RLlib metrics."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import get_args

from ray.rllib.core import DEFAULT_AGENT_ID, DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import (
    EPISODE_DURATION_SEC_MEAN,
    EPISODE_LEN_MAX,
    EPISODE_LEN_MEAN,
    EPISODE_LEN_MIN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    NUM_MODULE_STEPS_SAMPLED,
    NUM_MODULE_STEPS_SAMPLED_LIFETIME,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.util import log_once

from gspo_rllib import metrics as names
from gspo_rllib.env_pool.calls import EnvFailure, FailureKind
from gspo_rllib.env_pool.info import is_finite
from gspo_rllib.env_runners.group_scheduler import Settled
from gspo_rllib.types import TRUNCATED_BY, TrajectoryGroup, TruncatedBy, succeeded, turns

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class RolloutStats:
    """Counts and times of one rollout, or of a part of one.

    Attributes:
        engine_s: Seconds inside ``engine.step``.
        engine_steps: Calls of ``engine.step``.
        env_s: Seconds environments took to answer, summed although they overlap.
        sample_s: Seconds of wall time, set by the caller.
        weight_update_s: Seconds in which turns were held back for new weights, or these were loaded; set by the caller.
        num_weight_updates: New weights loaded while groups were in flight; set by the caller.
        tokens_sampled: All sampled tokens, those of discarded trajectories included.
        tokens_cached: Prompt tokens the engine did not have to compute.
        failures: Failed trajectories by kind.
        errors: Distinct messages of the failures, oldest first.
        mixed_tasks: (group, replacement) whose members saw different first observations, or answers to the
            same first reply.
        groups: The complete groups.
        num_retries: Trajectories started again with the same task.
        num_replaced: Groups started again with another task.
        num_ragged: Complete groups that lack a member.
        num_segments: Times a conversation went on in a new context.
        num_turns_mixed: Turns sampled by more than one weights version, those of discarded trajectories included.
        passed_over: Fields without an effect that agents sent, by name.
        given_up: Ids of the groups not completed.
    """

    engine_s: float = 0.0
    engine_steps: int = 0
    env_s: float = 0.0
    sample_s: float = 0.0
    weight_update_s: float = 0.0
    num_weight_updates: int = 0
    tokens_sampled: int = 0
    tokens_cached: int = 0
    failures: Counter[FailureKind] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    mixed_tasks: set[tuple[str, int]] = field(default_factory=set)
    groups: list[TrajectoryGroup] = field(default_factory=list)
    num_retries: int = 0
    num_replaced: int = 0
    num_ragged: int = 0
    num_segments: int = 0
    num_turns_mixed: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    given_up: list[str] = field(default_factory=list)

    def add_failure(self, failure: EnvFailure) -> None:
        """Counts a failed trajectory."""
        self.failures[failure.kind] += 1
        if failure.message not in self.errors:
            self.errors.append(failure.message)

    def add_settled(self, settled: Settled[SingleAgentEpisode]) -> None:
        """Adds the groups that the scheduler completed or gave up, and its counts of retries and replacements."""
        self.groups += [TrajectoryGroup(group_id, episodes) for group_id, episodes in settled.complete]
        self.num_retries += settled.num_retries
        self.num_replaced += settled.num_replaced
        self.num_ragged += settled.num_ragged
        self.given_up += settled.given_up

    def add(self, later: RolloutStats) -> None:
        """Adds what happened after this; times and counts add up, a message is kept once."""
        self.errors += [message for message in later.errors if message not in self.errors]
        self.mixed_tasks |= later.mixed_tasks
        for name in (f.name for f in fields(self) if f.name not in ("errors", "mixed_tasks")):
            setattr(self, name, getattr(self, name) + getattr(later, name))

    @property
    def settled_ids(self) -> list[str]:
        """Ids of the groups that were completed or given up."""
        return [*(group.group_id for group in self.groups), *self.given_up]

    @property
    def episodes(self) -> list[SingleAgentEpisode]:
        """The trajectories of the complete groups: group by group, by index within a group."""
        return [episode for group in self.groups for episode in group.episodes]

    @property
    def num_turns(self) -> int:
        """Environment steps of the complete groups."""
        return sum(len(episode) for episode in self.episodes)

    def log(self, logger: MetricsLogger) -> None:
        """Logs everything, so that a mean is over what was sampled since metrics were last collected.

        Args:
            logger: An env runner's metrics logger, emptied by ``reduce()``.
        """
        self._log_rllib_counters(logger)
        for episode in self.episodes:
            _log_episode(episode, logger)
        self._say_what_misleads()
        for group in self.groups:
            said = [success for success in map(succeeded, group.episodes) if success is not None]
            if said:
                logger.log_value(names.SUCCESS_GROUP_SQUARE_MEAN, (sum(said) / len(said)) ** 2, reduce="mean")
        sampled = prompted = cut = 0
        for episode in self.episodes:
            for turn in turns(episode):
                sampled += len(turn.action_token_ids)
                prompted += len(turn.prompt_token_ids)
                cut += turn.finish_reason == "length"
        if self.num_turns:
            logger.log_value(names.TURN_TOKENS_MEAN, sampled / self.num_turns, reduce="mean")
        sums = {
            names.NUM_GROUPS: len(self.groups),
            names.NUM_TOKENS_SAMPLED: sampled,
            names.NUM_TOKENS_PROMPTED: prompted,
            names.NUM_TOKENS_CACHED: self.tokens_cached,
            names.NUM_TOKENS_DISCARDED: self.tokens_sampled - sampled,
            names.NUM_TURNS_CUT: cut,
            names.NUM_INVALID_ACTIONS: sum(
                info.get("valid_action") is False for episode in self.episodes for info in episode.get_infos()
            ),
            names.ENGINE_BUSY_S: self.engine_s,
            names.ENV_S: self.env_s,
            names.SAMPLE_S: self.sample_s,
            names.NUM_TRAJECTORY_RETRIES: self.num_retries,
            names.NUM_GROUPS_REPLACED: self.num_replaced,
            names.NUM_GROUPS_RAGGED: self.num_ragged,
            names.NUM_GROUPS_GIVEN_UP: len(self.given_up),
            names.NUM_GROUPS_MIXED_TASKS: len(self.mixed_tasks),
            names.NUM_NEW_SEGMENTS: self.num_segments,
            names.NUM_WEIGHT_UPDATES: self.num_weight_updates,
            names.WEIGHT_UPDATE_S: self.weight_update_s,
            names.NUM_TURNS_MIXED_VERSIONS: self.num_turns_mixed,
        }
        for name, value in sums.items():
            logger.log_value(name, value, reduce="sum")
        for name, count in self.passed_over.items():
            logger.log_value((names.NUM_FIELDS_PASSED_OVER, name), count, reduce="sum")
        truncated = Counter(episode.custom_data.get(TRUNCATED_BY) for episode in self.episodes)
        for cause in get_args(TruncatedBy):
            logger.log_value((names.NUM_TRUNCATED, cause), truncated[cause], reduce="sum")
        for kind in get_args(FailureKind):
            logger.log_value((names.NUM_TRAJECTORY_FAILURES, kind), self.failures[kind], reduce="sum")

    def _say_what_misleads(self) -> None:
        """Once per process: what the means do not show."""
        if self.num_replaced and log_once("gspo_rllib_replaced_group"):
            _log.warning(
                "%d groups were given another task, as theirs could not be played: %s. The metrics "
                "num_trajectory_failures and num_groups_replaced go on counting.",
                self.num_replaced,
                "; ".join(self.errors[:3]),
            )
        silent = sum(succeeded(episode) is None for episode in self.episodes)
        if 0 < silent < len(self.episodes) and log_once("gspo_rllib_silent_about_success"):
            _log.warning(
                "%d of %d trajectories ended without info['success'], and success_mean is of the others. Say it, true "
                "or false, at the end of every episode, or of none.",
                silent,
                len(self.episodes),
            )

    def _log_rllib_counters(self, logger: MetricsLogger) -> None:
        steps, episodes = self.num_turns, len(self.episodes)
        for key in (
            NUM_ENV_STEPS_SAMPLED,
            (NUM_AGENT_STEPS_SAMPLED, DEFAULT_AGENT_ID),
            (NUM_MODULE_STEPS_SAMPLED, DEFAULT_MODULE_ID),
        ):
            logger.log_value(key, steps, reduce="sum")
        logger.log_value(NUM_EPISODES, episodes, reduce="sum")
        logger.log_value(NUM_EPISODES_LIFETIME, episodes, reduce="lifetime_sum")
        logger.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, steps, reduce="lifetime_sum", with_throughput=True)
        for key in (
            (NUM_AGENT_STEPS_SAMPLED_LIFETIME, DEFAULT_AGENT_ID),
            (NUM_MODULE_STEPS_SAMPLED_LIFETIME, DEFAULT_MODULE_ID),
        ):
            logger.log_value(key, steps, reduce="lifetime_sum")


def _log_episode(episode: SingleAgentEpisode, logger: MetricsLogger) -> None:
    # reduce="mean" without a window: over all episodes since the last reduce(), not RLlib's moving average of 100.
    length, episode_return = len(episode), episode.get_return()
    logger.log_value(EPISODE_LEN_MEAN, length, reduce="mean")
    logger.log_value(EPISODE_LEN_MIN, length, reduce="min")
    logger.log_value(EPISODE_LEN_MAX, length, reduce="max")
    logger.log_value(EPISODE_RETURN_MEAN, episode_return, reduce="mean")
    logger.log_value(EPISODE_RETURN_MIN, episode_return, reduce="min")
    logger.log_value(EPISODE_RETURN_MAX, episode_return, reduce="max")
    logger.log_value(("agent_episode_return_mean", DEFAULT_AGENT_ID), episode_return, reduce="mean")
    logger.log_value(("module_episode_return_mean", DEFAULT_MODULE_ID), episode_return, reduce="mean")
    logger.log_value(EPISODE_DURATION_SEC_MEAN, episode.get_duration_s(), reduce="mean")
    logger.log_value(names.SEGMENTS_MEAN, 1 + sum(turn.starts_segment for turn in turns(episode)), reduce="mean")
    for name, value in _env_metrics(episode).items():
        logger.log_value((names.ENV_METRICS, name), value, reduce="mean")
    success = succeeded(episode)
    if success is not None:
        logger.log_value(names.SUCCESS_MEAN, float(success), reduce="mean")


def _env_metrics(episode: SingleAgentEpisode) -> dict[str, float]:
    """The last number reported under each name; anything else is the environment's mistake, and no reason to stop."""
    reported: dict[str, float] = {}
    for info in episode.get_infos():
        given = info.get("metrics")
        if isinstance(given, dict):
            reported |= {str(name): float(value) for name, value in given.items() if is_finite(value)}
    return reported
