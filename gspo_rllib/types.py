"""The data that flows between environments, engines and the learner.

A trajectory is a plain RLlib ``SingleAgentEpisode`` whose step is one *turn*: observation and action are ``str``.
What the policy saw and sampled in that turn is one ``Turn``, stored under ``extra_model_outputs["turn"]``; it is one
opaque object on purpose, because RLlib's ``to_numpy()`` broadcasts or rejects ragged per-turn arrays.

An example, with one made-up token id per word: <user> 1, <assistant> 2, <end> 3, Guess 4, 1-9 5, five 6, Higher 7,
seven 8. The policy guesses five, then seven, and seven was the number:

    turn 0   prompt   <user> Guess 1-9 <assistant>    1 4 5 2
             action   five <end>                      6 3
    turn 1   prompt   <user> Higher <assistant>       1 7 2
             action   seven <end>                     8 3

The env runner makes one ``Turn`` per action. The prompt of turn 1 holds only what was *added* to the context:

    >>> five = Turn(np.int32([1, 4, 5, 2]), np.int32([6, 3]), np.float32([-1.5, -0.25]), 0, "stop")
    >>> seven = Turn(np.int32([1, 7, 2]), np.int32([8, 3]), np.float32([-0.5, -0.125]), 0, "stop")

The turns are the steps of an episode, and the episodes in which one task was played are a ``TrajectoryGroup``:

    >>> from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    >>> episode = SingleAgentEpisode()
    >>> episode.add_env_reset("Guess 1-9")
    >>> episode.add_env_step("Higher", "five", reward=0.0, extra_model_outputs={TURN: five})
    >>> episode.add_env_step("", "seven", reward=1.0, terminated=True, extra_model_outputs={TURN: seven})
    >>> episode.custom_data[GROUP] = GroupMember(group_id="12", index=0, task_seed=7)
    >>> TrajectoryGroup("12", episodes=[episode]).num_tokens  # a group of K = 1
    11

The learner trains on the turns laid end to end, a ``TokenTrajectory``. The mask is 1 on sampled tokens; turn, behaviour
log-probability and advantage have one entry per sampled token:

    >>> from gspo_rllib.connectors import token_trajectory
    >>> trajectory = token_trajectory(episode, advantage=0.5)
    >>> trajectory.segments[0].tolist()
    [1, 4, 5, 2, 6, 3, 1, 7, 2, 8, 3]
    >>> trajectory.loss_masks[0].astype(int).tolist()
    [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]
    >>> trajectory.turn_index.tolist(), trajectory.behavior_logp.tolist(), trajectory.advantages.tolist()
    ([0, 0, 1, 1], [-1.5, -0.25, -0.5, -0.125], [0.5, 0.5, 0.5, 0.5])
    >>> trajectory.turn_rewards.tolist()
    [0.0, 1.0]

There is one segment, because the context only grew. Had turn 1 been given an edited history (a summary, say), it would
start a second segment, and its prompt would be all of that new context.

This module imports neither torch, ray, transformers nor vllm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gspo_rllib.errors import SettingError

if TYPE_CHECKING:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

FinishReason = Literal["stop", "length"]
TruncatedBy = Literal["turns", "context", "tokens", "time", "env"]

TURN = "turn"
"""Key of the ``Turn`` in an episode's ``extra_model_outputs``."""

GROUP = "group"
"""Key of the ``GroupMember`` in an episode's ``custom_data``."""

TRUNCATED_BY = "truncated_by"
"""Key in an episode's ``custom_data``: a ``TruncatedBy``, or absent when the trajectory ended by itself."""

STATED_ANSWER = "stated_answer"
"""Key of the last ``info``: the answer a reply states, in a form in which equal answers are equal texts."""

TURN_REWARDS = "turn_rewards"
"""Key in an episode's ``custom_data``: rewards to learn from instead of the environment's; see ``turn_rewards``."""

TASK = "task"
"""Key in an episode's ``custom_data``: what an agent was to do, as plain JSON; absent where nothing says so. Nothing
trains on it."""

ORIGIN = "origin"
"""Key of the ``Origin`` in a recorded episode's ``custom_data``."""

REWARD_PARTS = "reward_parts"
"""Key in an environment's ``info``: ``{name: float}``, what this turn's reward is made of, if of several parts."""

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy was shown and sampled in one turn, as token ids.

    Appending ``prompt_token_ids`` and ``action_token_ids`` of every turn of a segment in order gives exactly the ids
    the engine saw: nothing sampled is ever re-tokenised. The top of this file shows two turns with their ids.

    Attributes:
        prompt_token_ids: int32 [P], only the ids this turn *appends* to the context (observation and chat frame); all
            ids of the context where the turn starts a segment.
        action_token_ids: int32 [A], the sampled ids, the end-of-turn token included when it was sampled.
        action_logp: float32 [A], log-probability (nats) of each sampled id under the distribution it was drawn
            from, temperature included.
        policy_version: The weights version that sampled this turn; the oldest one where it spans several.
        finish_reason: ``"stop"``: the model ended its turn, or wrote a stop string; ``"length"``: it ran out of tokens.
        starts_segment: Whether the history was edited before this turn, so that the turn starts a new context; False
            for the first turn of a trajectory, although a context starts there too.
        is_summary: Whether the policy wrote a summary of the conversation instead of an action; the environment was
            not stepped.
        token_versions: int32 [A], the weights version that sampled each id; None where all are ``policy_version``.
    """

    prompt_token_ids: np.ndarray
    action_token_ids: np.ndarray
    action_logp: np.ndarray
    policy_version: int
    finish_reason: FinishReason
    starts_segment: bool = False
    is_summary: bool = False
    token_versions: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class GroupMember:
    """Which trajectory of which group an episode is.

    Attributes:
        group_id: Names the group within a run; K trajectories carry the same one.
        index: Position of this trajectory in its group, 0 … K-1.
        task_seed: The ``reset(seed=…)`` that fixed the task; the same for the whole group.
    """

    group_id: str
    index: int
    task_seed: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an episode was read, for whoever finds it wrong.

    Attributes:
        group: File and line of its group.
        trajectory: Which trajectory of the group it was there.
        calls: Number of the call that each turn was there.
    """

    group: str
    trajectory: int
    calls: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrajectoryGroup:
    """K complete trajectories of one task: the unit of sampling, sharding, retrying and staleness.

    The top of this file makes one.

    Attributes:
        group_id: Names the group within a run.
        episodes: K finished episodes, ordered by ``GroupMember.index``.
    """

    group_id: str
    episodes: list[SingleAgentEpisode] = field(repr=False)

    @property
    def num_tokens(self) -> int:
        """Tokens of all trajectories, prompts included; a prompt they share counts in each."""
        return sum(trajectory_num_tokens(episode) for episode in self.episodes)


@dataclass(frozen=True, slots=True)
class ChatSpec:
    """How an environment wants its conversation framed; optional attribute ``chat`` of an environment.

    Attributes:
        system_prompt: Content of the system message before the first observation, if any.
        template_kwargs: Passed to the tokenizer's chat template, e.g. ``{"enable_thinking": False}``; what the run sets
            with ``generation(template_kwargs=...)`` holds where both name one.
        tools: Functions the policy may call, each ``{"type": "function", "function": {"name", "description",
            "parameters"}}`` with ``parameters`` a JSON schema of type object. The chat template shows them; where it
            does not, the system message does.
        tool_syntax: One line that says how a call is written; shown only where the template does not show tools.
        stop: Strings that end a turn; the reply keeps the one that ended it.
        max_turns: Most turns of a trajectory; where the run sets a limit too, the smaller one holds.
        max_tokens_per_turn: Most tokens of one turn; where the run sets a limit too, the smaller one holds.

    Raises:
        SettingError: A tool is not described by such a schema, a stop string is empty, or a limit is below 1.

    Example:
        >>> look = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
        >>> ChatSpec(tools=({"type": "function", "function": look},), stop=("</tool_call>",)).stop
        ('</tool_call>',)
        >>> ChatSpec(tools=({"type": "function", "function": {"name": "look", "parameters": {"type": "text"}}},))
        Traceback (most recent call last):
        gspo_rllib.errors.SettingError: tool 'look': its `parameters` are no JSON schema of type "object": got the \
type 'text'.
    """

    system_prompt: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()
    tool_syntax: str = 'To call a tool, write <tool_call>{"name": ..., "arguments": {...}}</tool_call>.'
    stop: tuple[str, ...] = ()
    max_turns: int | None = None
    max_tokens_per_turn: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise SettingError(
                f"chat.stop={self.stop!r}: must be a tuple of non-empty strings, e.g. ('</tool_call>',)."
            )
        object.__setattr__(self, "stop", tuple(self.stop))
        for name in ("max_turns", "max_tokens_per_turn"):
            limit = getattr(self, name)
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
                raise SettingError(f"chat.{name}={limit!r}: must be an integer of at least 1, or None for no limit.")
        if isinstance(self.tools, Mapping | str) or not isinstance(self.tools, Iterable):
            raise SettingError(f"chat.tools is a {type(self.tools).__name__}; it must be a tuple of tool schemas.")
        object.__setattr__(self, "tools", tuple(self.tools))
        names = [_checked_tool(tool, number) for number, tool in enumerate(self.tools)]
        for name in names:
            if names.count(name) > 1:
                raise SettingError(f"tool {name!r} is declared {names.count(name)} times; names must be unique.")


def _checked_tool(tool: Any, number: int) -> str:
    """The name of a declared tool, once it is known to be a function with a JSON schema."""
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping):
        raise SettingError(
            f"tool {number} is {str(tool)[:120]!r}; it must be "
            '{"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}.'
        )
    name = function.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise SettingError(f"tool {number}: its name is {name!r}; it must be 1 to 64 of letters, digits, _ - and .")
    if not isinstance(function.get("description", ""), str):
        raise SettingError(f"tool {name!r}: its description is {function['description']!r}; it must be a str.")
    try:
        json.dumps(tool)
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingError(f"tool {name!r} cannot be written as JSON: {str(error)[:200]}.") from error
    fault = _schema_fault(function.get("parameters"))
    if fault:
        raise SettingError(f'tool {name!r}: its `parameters` are no JSON schema of type "object": {fault}.')
    return name


def _schema_fault(schema: Any) -> str | None:
    """What is wrong with the schema of a tool's arguments, in words."""
    if not isinstance(schema, dict):
        return f"got {str(schema)[:80]!r}"
    if schema.get("type") != "object":
        return f"got the type {str(schema.get('type'))[:40]!r}"
    # Ray brings jsonschema along; imported here because an environment without tools needs none of it.
    import referencing.exceptions
    from jsonschema import Draft202012Validator, SchemaError
    from referencing.jsonschema import DRAFT202012

    try:
        Draft202012Validator.check_schema(schema)
        resolver = referencing.Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
        for named in _references(schema):
            resolver.lookup(named)  # an empty registry: what is not in the schema itself is not found
    except SchemaError as error:
        place = "".join(f"[{part!r}]" for part in error.path)
        return f"{place}{': ' if place else ''}{error.message[:200]}"
    except referencing.exceptions.Unresolvable:
        return f"it refers to {named!r}, which is not in it"
    return None


def _references(schema: Any) -> Iterator[str]:
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        yield schema["$ref"]
    for part in inner:
        yield from _references(part)


def turns(episode: SingleAgentEpisode) -> Iterator[Turn]:
    """The turns of a trajectory, in order."""
    return iter(episode.get_extra_model_outputs(TURN))


def turn_rewards(episode: SingleAgentEpisode) -> np.ndarray:
    """float64 [N], the reward to learn from in every turn: the environment's, unless something has replaced them."""
    replaced = episode.custom_data.get(TURN_REWARDS)
    return np.asarray(episode.get_rewards() if replaced is None else replaced, dtype=np.float64)


def trajectory_num_tokens(episode: SingleAgentEpisode) -> int:
    """Tokens of one trajectory, prompts included."""
    return sum(len(t.prompt_token_ids) + len(t.action_token_ids) for t in turns(episode))


def group_episodes(episodes: list[SingleAgentEpisode]) -> list[TrajectoryGroup]:
    """Collects episodes into their groups, in the order the groups first appear.

    Args:
        episodes: Finished episodes that carry a ``GroupMember`` in ``custom_data``.

    Returns:
        One group per distinct ``group_id``, members ordered by index.
    """
    members: dict[str, list[SingleAgentEpisode]] = {}
    for episode in episodes:
        members.setdefault(episode.custom_data[GROUP].group_id, []).append(episode)
    return [
        TrajectoryGroup(group_id, sorted(group, key=lambda e: e.custom_data[GROUP].index))
        for group_id, group in members.items()
    ]


def succeeded(episode: SingleAgentEpisode) -> bool | None:
    """Whether a trajectory solved its task; None where it ended by itself and the environment did not say.

    One that was cut short before the environment said so has not.
    """
    said = episode.get_infos(-1).get("success", False if TRUNCATED_BY in episode.custom_data else None)
    return None if said is None else bool(said)


@dataclass(frozen=True, slots=True)
class TokenTrajectory:
    """One trajectory as the learner trains it: concatenated token ids and what is known about the sampled ones.

    The top of this file shows one of N = 2 turns and L = 4 sampled tokens.

    Attributes:
        group_id: The group the trajectory belongs to.
        index: Position of the trajectory in the group, 0 … K-1.
        segments: The contiguous contexts of the trajectory, int32 [T_s] each; one, unless the history was edited.
        loss_masks: bool [T_s] per segment, True on sampled tokens; never True on a segment's first token.
        turn_index: int32 [L], turn of each sampled token, over all segments in order.
        behavior_logp: float32 [L], log-probability (nats) the engine sampled each token with.
        behavior_version: Oldest weights version that sampled any of the turns.
        turn_rewards: float64 [N], reward of each turn.
        advantages: float32 [L], advantage of each sampled token; equal within a trajectory or a turn where credit is
            given to those.
        value_targets: float32 [L], return that a critic is to predict before each sampled token; None without a critic.
        reference_logp: float32 [L], log-probability (nats) of each sampled token under a frozen reference policy; None
            without one.
    """

    group_id: str
    index: int
    segments: tuple[np.ndarray, ...]
    loss_masks: tuple[np.ndarray, ...]
    turn_index: np.ndarray
    behavior_logp: np.ndarray
    behavior_version: int
    turn_rewards: np.ndarray
    advantages: np.ndarray
    value_targets: np.ndarray | None = None
    reference_logp: np.ndarray | None = None

    @property
    def num_turns(self) -> int:
        """N, the number of turns."""
        return len(self.turn_rewards)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all segments, prompts included."""
        return sum(len(segment) for segment in self.segments)

    @property
    def num_loss_tokens(self) -> int:
        """L, the number of sampled tokens."""
        return len(self.behavior_logp)
