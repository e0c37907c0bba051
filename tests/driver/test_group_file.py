"""Groups in a file: read as they were written, one by one, and refused with the place of what is wrong."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import load_groups, save_groups
from gspo_rllib import metrics as names
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.agents.session import Call, ChatRequest
from gspo_rllib.agents.stitching import episode_of
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.policy_gradient.recorded_training import TrainsOnRecorded
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.driver.group_file import drop_groups
from gspo_rllib.errors import RecordError
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.types import (
    GROUP,
    ORIGIN,
    REWARD_PARTS,
    TRUNCATED_BY,
    TURN,
    GroupMember,
    Origin,
    TokenTrajectory,
    TrajectoryGroup,
    group_episodes,
    turns,
)
from tests.agents.made_up_policy import MadeUpPolicy, user
from tests.episodes import make_episode, make_group
from tests.toy_envs.coin_env import CoinEnv

CALL = {"prompt_ids": [1, 2], "sampled_ids": [3, 4, 5], "logprobs": [-1.0, -0.5, 0.0], "version": 2}
NEXT = {"prompt_ids": [1, 2, 3, 4, 5, 6], "sampled_ids": [7], "logprobs": [-2.0], "version": 2}


def _row(group_id: str = "a") -> dict[str, Any]:
    played = [{"calls": [CALL, NEXT], "reward": reward} for reward in (1.0, 0.0)]
    row: dict[str, Any] = json.loads(json.dumps({"group_id": group_id, "trajectories": played}))
    return row


def _file(folder: Path, *rows: Any) -> Path:
    path = folder / "groups.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def _varied_groups() -> list[TrajectoryGroup]:
    """All that a turn, an episode and a group can hold."""
    long = make_episode("b", 0, [(5, 3), (4, 2), (6, 4)], 0.1, version=7)
    recorded = long.extra_model_outputs[TURN].data
    recorded[1] = dataclasses.replace(recorded[1], starts_segment=True, token_versions=np.int32([7, 8]))
    recorded[2] = dataclasses.replace(recorded[2], is_summary=True, finish_reason="length")
    long.observations.data[1] = 'line\u2028separator, ünïcode, a lone \ud800, "quotes"'
    long.infos.data[1] = {REWARD_PARTS: {"form": 0.1}}
    long.infos.data[-1] = {"success": np.bool_(True), REWARD_PARTS: {"form": 0.2, "content": 1 / 3}}
    cut = make_episode("b", 3, [(5, 3)], -1 / 3, version=7)
    cut.is_terminated, cut.is_truncated = False, True
    cut.custom_data[TRUNCATED_BY] = "context"
    for episode in (long, cut):
        episode.custom_data[GROUP] = dataclasses.replace(episode.custom_data[GROUP], task_seed=2**63)
        episode.custom_data["task"] = {"question": "1 + 1"}
    return [*group_episodes(make_group("a", 3)), TrajectoryGroup("b", [long, cut])]


def _parts(episode: Any) -> dict[str, float]:
    found = [info.get(REWARD_PARTS, {}) for info in episode.get_infos()]
    return {name: sum(part[name] for part in found if name in part) for part in found for name in part}


def _assert_same_episode(ours: Any, theirs: Any) -> None:
    assert {**ours.custom_data, ORIGIN: None} == {**theirs.custom_data, ORIGIN: None}
    assert ours.get_observations() == theirs.get_observations() and ours.get_actions() == theirs.get_actions()
    assert ours.get_rewards() == theirs.get_rewards()
    assert (ours.is_terminated, ours.is_truncated) == (theirs.is_terminated, theirs.is_truncated)
    assert ours.get_infos(-1).get("success") == theirs.get_infos(-1).get("success")
    assert _parts(ours) == _parts(theirs)
    for one, other in zip(turns(ours), turns(theirs), strict=True):
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(b, np.ndarray):
                assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), field.name
            else:
                assert a == b and type(a) is type(b), field.name


def test_groups_are_read_as_they_were_written(tmp_path: Path) -> None:
    groups, path = _varied_groups(), tmp_path / "groups.jsonl"
    save_groups(path, groups)
    read = list(load_groups(path))
    assert read == [
        dataclasses.replace(group, episodes=ours.episodes) for group, ours in zip(groups, read, strict=True)
    ]
    for group, ours in zip(groups, read, strict=True):
        for episode, our_episode in zip(group.episodes, ours.episodes, strict=True):
            _assert_same_episode(our_episode, episode)
    assert read[1].episodes[1].custom_data[ORIGIN] == Origin(f"{path}, line 2", 1, (0,))
    written = path.read_bytes()
    save_groups(path, read)
    assert path.read_bytes() == written and [file.name for file in tmp_path.iterdir()] == [path.name]

    more = [dataclasses.replace(group) for group in group_episodes(make_group("c", 2))]
    save_groups(path, more, append=True)
    assert path.read_bytes().startswith(written)
    assert [group.group_id for group in load_groups(str(path))] == ["a", "b", "c"]


@given(st.lists(st.floats(max_value=-0.0, allow_infinity=False, allow_nan=False, width=32), min_size=1))
def test_every_log_probability_keeps_its_bits(values: list[float]) -> None:
    from gspo_rllib.driver.group_file import _turn_row

    (turn,) = turns(make_episode("a", 0, [(2, len(values))], 0.0))
    logp = np.float32(values)
    row = json.loads(json.dumps(_turn_row(dataclasses.replace(turn, action_logp=logp), 0, "")))
    made = {"group_id": "a", "trajectories": [{"calls": [row], "reward": 0}] * 2}
    ((read, _),) = [group.episodes for group in load_groups([made])]
    assert next(turns(read)).action_logp.tobytes() == logp.tobytes()


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = _file(tmp_path, _row("a"), "", "{", _row("b"))
    groups = load_groups(path)
    assert next(groups).group_id == "a"
    with pytest.raises(RecordError, match=r"groups\.jsonl, line 3: not JSON: "):
        next(groups)


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        for part in path[:-1]:
            row = row[part]
        row[path[-1]] = to

    return change


def _pop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        for part in path[:-1]:
            row = row[part]
        del row[path[-1]]

    return change


T1 = ("trajectories", 1)
C1 = (*T1, "calls", 1)
AT = ", line 2, trajectory 1"
AT_CALL = f"{AT}, call 1"
WRONG: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (_set("group_id", to=7), ", line 2: group_id is 7; it must be a text that names the group."),
    (_set("group_id", to="a"), ", line 2: group_id 'a' is that of {path}, line 1 too; each must have its own."),
    (_set("trajectorys", to=1), ", line 2: 'trajectorys' is unknown. Did you mean 'trajectories'?"),
    (_pop("trajectories"), ", line 2: trajectories is None; it must be a list of at least one trajectory."),
    (_set("trajectories", to=[]), ", line 2: trajectories is []; it must be a list of at least one trajectory."),
    (_set("task_seed", to=1.5), ", line 2: task_seed is 1.5; it must be a whole number."),
    (_set(*T1, to=[]), f"{AT} is []; it must be an object. Allowed: calls, conversations, index, "),
    (_set(*T1, "index", to=0), f"{AT}: index is 0; it must be a number from 0 that no other has."),
    (_pop(*T1, "calls"), f"{AT} must have either calls, with ids, or conversations, with messages."),
    (_set(*T1, "calls", to=[]), f"{AT}: calls is []; it must be a list of at least one call."),
    (_pop(*T1, "reward"), f"{AT} has no reward; give one of the trajectory, or of its calls."),
    (_set(*T1, "reward", to="1"), f"{AT}: reward is '1'; it must be a finite number."),
    (_set(*T1, "reward", to=True), f"{AT}: reward is True; it must be a finite number."),
    (_set(*T1, "reward", to=float("nan")), f"{AT}: reward is nan; it must be a finite number."),
    (_set(*T1, "reward", to=10**400), f"{AT}: reward is 1000"),
    (_set(*T1, "reward_parts", to=[1]), f"{AT}: reward_parts is [1]; it must be an object of names and numbers."),
    (_set(*T1, "reward_parts", to={"x": None}), f"{AT}: reward_parts['x'] is None; it must be a finite number."),
    (_set(*T1, "success", to=1), f"{AT}: success is 1; allowed: True, False, None."),
    (_set(*T1, "truncated_by", to="x"), f"{AT}: truncated_by is 'x'; allowed: 'turns', 'context', 'tokens', 'time', "),
    (_set(*C1, "logprob", to=[]), f"{AT_CALL}: 'logprob' is unknown. Did you mean 'logprobs'?"),
    (_set(*C1, "sampled_ids", to=[]), f"{AT_CALL}: sampled_ids is empty; a call needs at least one sampled id."),
    (_set(*C1, "sampled_ids", to=[7.0]), f"{AT_CALL}: sampled_ids is [7.0]; it must be a list of whole numbers."),
    (_set(*C1, "sampled_ids", to=[True]), f"{AT_CALL}: sampled_ids is [True]; it must be a list of whole numbers."),
    (_set(*C1, "sampled_ids", to=[-1]), f"{AT_CALL}: sampled_ids holds -1, which is no token id; each must be at lea"),
    (_set(*C1, "sampled_ids", to=[2**31]), f"{AT_CALL}: sampled_ids holds 2147483648, which is no token id; "),
    (_pop(*C1, "sampled_ids"), f"{AT_CALL}: sampled_ids is None; it must be a list of whole numbers."),
    (_set(*C1, "logprobs", to=[-1, -1]), f"{AT_CALL}: logprobs has 2 numbers for 1 sampled ids; there must be one log"),
    (_set(*C1, "logprobs", to=[]), f"{AT_CALL}: logprobs has 0 numbers for 1 sampled ids; there must be one log"),
    (_set(*C1, "logprobs", to=[None]), f"{AT_CALL}: logprobs[0] is None; it must be a number (nats)."),
    (_set(*C1, "logprobs", to=[0.5]), f"{AT_CALL}: logprobs[0] is 0.5; each must be finite and at most 0 (nats)."),
    (_set(*C1, "logprobs", to=[float("nan")]), f"{AT_CALL}: logprobs[0] is nan; each must be finite and at most 0"),
    (_set(*C1, "logprobs", to=[float("-inf")]), f"{AT_CALL}: logprobs[0] is -inf; each must be finite and at most"),
    (_set(*C1, "logprobs", to=[-1e300]), f"{AT_CALL}: logprobs[0] is -1e+300; each must be finite and at most 0"),
    (_set(*C1, "logprobs", to=-1.0), f"{AT_CALL}: logprobs is -1.0; it must be a list of numbers, or left out."),
    (_pop(*C1, "version"), f"{AT_CALL} has logprobs and no version; say which weights version sampled it (0 for the"),
    (_set(*C1, "version", to=-1), f"{AT_CALL}: version is -1; it must be a whole number of at least 0, or one for e"),
    (_set(*C1, "version", to=[1, 2]), f"{AT_CALL}: version has 2 versions for 1 sampled ids; one each, or one for al"),
    (_set(*C1, "prompt_ids", to=[]), f"{AT_CALL}: prompt_ids is empty; a context begins with a prompt."),
    (_pop(*C1, "prompt_ids"), f"{AT_CALL} must have either prompt_ids, all ids that stood before the reply, or appen"),
    (_set(*C1, "appended_ids", to=[]), f"{AT_CALL} must have either prompt_ids, all ids that stood before the reply"),
    (_set(*C1, "after", to=1), f"{AT_CALL}: after is 1; it must be the number of an earlier call (0 to 0)."),
    (_set(*T1, "calls", 0, "after", to=0), f"{AT}, call 0: after is 0; it must be the number of an earlier call (only"),
    (_set(*C1, to=NEXT | {"after": 0, "prompt_ids": [1, 2, 9, 4, 5, 6]}), f"{AT_CALL}: prompt_ids do not begin with"),
    (_set(*C1, "finish_reason", to="end"), f"{AT_CALL}: finish_reason is 'end'; allowed: 'stop', 'length'."),
    (_set(*C1, "reward", to=float("inf")), f"{AT_CALL}: reward is inf; it must be a finite number."),
    (_set(*C1, "text", to=None), f"{AT_CALL}: text is None; it must be a text."),
    (
        _set(*T1, to={"reward": 1, "conversations": [{"messages": []}]}),
        f"{AT} holds messages, which only the run's model has ids for: load_groups(..., config).",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[-60:] for _, message in WRONG])
def test_what_is_wrong_is_refused_with_its_place(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    row = _row("b")
    change(row)
    path = _file(tmp_path, _row("a"), row)
    with pytest.raises(RecordError) as refused:
        list(load_groups(path))
    assert str(refused.value).startswith(f"{path}{message.format(path=path)}"), str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "groups.jsonl is empty; there must be at least one group."),
        ("[1", "line 1: not JSON: "),
        ("[" * 100_000, "line 1: not JSON: "),
        ("7", "line 1 is 7; it must be an object."),
        ('{"group_id": "a", "group_id": "b"}', "line 1: 'group_id' is there twice in one object; leave out one."),
    ],
)
def test_what_is_no_group_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError) as refused:
        list(load_groups(_file(tmp_path, text)))
    assert message in str(refused.value)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "none.jsonl", "no such file; it must be a JSONL file with a group on each line."),
        (7, "load_groups: got 7; it must be a JSONL file or objects, one for each group."),
        ({"group_id": "a"}, "it must be a JSONL file or objects, one for each group."),
    ):
        with pytest.raises(RecordError) as refused:
            load_groups(source)  # type: ignore[arg-type]
        assert message in str(refused.value)
    (tmp_path / "groups.jsonl").write_bytes(b'{"group_id": "\xff"}')
    with pytest.raises(RecordError, match="line 1 or after: not UTF-8 text"):
        list(load_groups(tmp_path / "groups.jsonl"))


def _not_json(groups: list[TrajectoryGroup]) -> None:
    groups[1].episodes[0].custom_data["task"] = {1, 2}


def _no_cause(groups: list[TrajectoryGroup]) -> None:
    del groups[1].episodes[1].custom_data[TRUNCATED_BY]


def _seeds(groups: list[TrajectoryGroup]) -> None:
    groups[1].episodes[1].custom_data[GROUP] = GroupMember("b", 3, 5)


def _no_text(groups: list[TrajectoryGroup]) -> None:
    groups[1].episodes[1].observations.data[0] = 7


def _no_name(groups: list[TrajectoryGroup]) -> None:
    for episode in groups[0].episodes:
        episode.custom_data[GROUP] = dataclasses.replace(episode.custom_data[GROUP], group_id="")
    groups[0] = TrajectoryGroup("", groups[0].episodes)


def _newer(groups: list[TrajectoryGroup]) -> None:
    recorded = groups[1].episodes[0].extra_model_outputs[TURN].data
    recorded[1] = dataclasses.replace(recorded[1], policy_version=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_not_json, "group 'b' cannot be written as JSON: Object of type set is not JSON serializable."),
        (_no_cause, "group 'b', trajectory 1 is truncated, but custom_data['truncated_by'] does not say by what."),
        (_seeds, f"group 'b': its trajectories have the task seeds [5, {2**63}]; a group has one task."),
        (_newer, "trajectory 0, turn 1: policy_version is 8; it must be the oldest of its token_versions, 7."),
        (_no_text, "group 'b', trajectory 1: an observation or action is 7; it must be a text."),
        (_no_name, "group '': group_id is ''; it must be a text that names the group."),
        (lambda groups: groups.append(groups[0]), "groups[2] ('a'): another group has the same group_id"),
    ],
)
def test_what_cannot_be_written_leaves_the_file_as_it_was(
    change: Callable[[list[TrajectoryGroup]], None], message: str, tmp_path: Path
) -> None:
    path, groups = tmp_path / "groups.jsonl", _varied_groups()
    path.write_text("kept")
    change(groups)
    for append in (False, True):
        with pytest.raises(RecordError) as refused:
            save_groups(path, groups, append=append)
        assert message in str(refused.value)
        assert path.read_text() == "kept" and len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope="module")
def renderer(tiny_dense: str) -> MessageRenderer:
    return MessageRenderer(load_tokenizer(tiny_dense))


def _played(renderer: MessageRenderer, seed: int) -> tuple[MadeUpPolicy, list[Call]]:
    """A tree of calls: new conversations, goings-on from any earlier reply, several replies to one prompt."""
    policy, random = MadeUpPolicy(renderer, seed), np.random.default_rng([seed, 2])
    asked: list[tuple[list[Any], Call]] = []
    for number in range(int(random.integers(1, 10))):
        messages = [user(f"task {number}")]
        if asked and random.random() < 0.85:
            history, parent = asked[int(random.integers(len(asked)))]
            messages = [*history, parent.reply.message, user(f"next {number}")]
        request = ChatRequest(messages, choices=int(random.choice([1, 1, 2])))
        asked += [(messages, call) for call in policy.ask(request)]
    return policy, policy.session.trained_calls()


def _in_context(trajectory: TokenTrajectory) -> list[tuple[bytes, int, float]]:
    """Each sampled id of a trajectory with all that stood before it, and its log-probability."""
    found: list[tuple[bytes, int]] = []
    for ids, mask in zip(trajectory.segments, trajectory.loss_masks, strict=True):
        found += [(ids[:place].tobytes(), int(ids[place])) for place in np.flatnonzero(mask)]
    return [(*one, float(logp)) for one, logp in zip(found, trajectory.behavior_logp, strict=True)]


def test_a_tree_is_found_from_whole_prompts_and_trained_like_the_live_one(renderer: MessageRenderer) -> None:
    num_branched = 0
    for seed in range(150):
        policy, calls = _played(renderer, seed)
        rows = [
            {
                "prompt_ids": policy.seen[call.number][0],
                "sampled_ids": policy.seen[call.number][1],
                "logprobs": call.sampled.generation.logp,
                "version": call.sampled.version,
                "finish_reason": call.sampled.generation.finish_reason,
            }
            for call in calls
        ]
        group = {"group_id": "g", "trajectories": [{"calls": rows, "reward": 1.0}] * 2}
        (read,) = load_groups([group])
        ours = token_trajectory(read.episodes[0])
        live = token_trajectory(episode_of(calls, AgentResult(1.0), GroupMember("g", 0, 0)))
        assert sorted(_in_context(ours)) == sorted(_in_context(live))
        assert ours.num_loss_tokens == live.num_loss_tokens and ours.behavior_version == live.behavior_version
        assert len(ours.segments) <= len(live.segments), "what one context can hold is not two"
        num_branched += len(ours.segments) > 1
    assert num_branched > 50, "the trees became too plain"


def test_a_call_may_say_where_it_goes_on(tmp_path: Path) -> None:
    alone = NEXT | {"after": None}
    branch = {"after": 0, "appended_ids": [8], "sampled_ids": [9], "logprobs": [-1.0], "version": [3]}
    cut = {"after": 0, "appended_ids": [], "sampled_ids": [9], "logprobs": [-1.0], "version": 3}
    for calls, segments in (
        ([CALL, NEXT], [[1, 2, 3, 4, 5, 6, 7]]),
        ([CALL, alone], [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]]),
        ([CALL, NEXT, branch], [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 8, 9]]),
        ([CALL, cut], [[1, 2, 3, 4, 5, 9]]),
    ):
        (group,) = load_groups([{"group_id": "a", "trajectories": [{"calls": calls, "reward": 1}] * 2}])
        trajectory = token_trajectory(group.episodes[0])
        assert [segment.tolist() for segment in trajectory.segments] == segments
        assert trajectory.num_loss_tokens == sum(len(call["sampled_ids"]) for call in calls)
        assert trajectory.turn_rewards.tolist() == [*[0.0] * (len(calls) - 1), 1.0]
        save_groups(tmp_path / "groups.jsonl", [group])
        (again,) = load_groups(tmp_path / "groups.jsonl")
        _assert_same_episode(again.episodes[0], group.episodes[0])


def _config(path: str, **training: Any) -> GSPOConfig:
    return (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": str(path)})
        .generation(engine="transformers", temperature=0.7, max_tokens_per_turn=6)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .training(**{"group_size": 4, "groups_per_iteration": 4, "num_minibatches": 2, "lr": 1e-3, **training})
        .debugging(seed=1)
    )


def _parameters(algo: Any) -> dict[str, np.ndarray]:
    state = algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]
    return {name: np.array(array) for name, array in state.items()}


def _are_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


def _last(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    return _set("trajectories", 3, "calls", 0, *path, to=to)


AT_LAST = " ('{group}'), trajectory 3, call 0"
SPOILT: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (
        lambda row: row["trajectories"].__delitem__(slice(1, None)),
        " ('{group}') has 1 trajectories; a group needs at least 2, since an advantage is the difference to the others",
    ),
    (_last("logprobs", 0, to=0.25), ", trajectory 3, call 0: logprobs[0] is 0.25; each"),
    (
        _last("sampled_ids", 0, to=320),
        f"{AT_LAST}: action_token_ids holds 320, which is no id of the model's vocabulary",
    ),
    (_last("prompt_ids", to=[5] * 600), f"{AT_LAST}: its context has 60"),
    (_last("version", to=9), f"{AT_LAST} was sampled with weights version 9, but the learner's is 1. Restore the chec"),
    (_pop("trajectories", 3, "calls", 0, "logprobs"), f"{AT_LAST} has no log-probabilities (action_logp is None"),
    (_set("group_id", to="0"), ": group_id '0' is that of {path}, line 1 too; each must have its own."),
]
"""What spoils the last line of a file, and what the refusal says after it."""


@pytest.mark.parametrize("append", [True, False])
def test_what_has_no_room_is_not_written_by_half(append: bool, tmp_path: Path) -> None:
    path, groups = tmp_path / "groups.jsonl", list(load_groups([_row()]))
    save_groups(path, groups, append=True)
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + (20 if append else -20), hard))
    try:
        with pytest.raises(OSError, match="too large"):
            save_groups(path, groups, append=append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]
    save_groups(path, groups, append=True)
    assert path.read_bytes() == whole * 2


def test_groups_that_cannot_be_recorded_are_said_and_end_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Recording(TrainsOnRecorded):
        iteration = 6

    recording = Recording()
    recording.record_groups(tmp_path / "removed" / "groups.jsonl")
    recording._keep(list(load_groups([_row()])))
    assert "1 groups of iteration 7 are not recorded: [Errno 2] No such file" in caplog.text
    (tmp_path / "removed").mkdir()
    recording._keep(list(load_groups([_row("b")])))
    assert [group.group_id for group in load_groups(tmp_path / "removed" / "groups.jsonl")] == ["b"]


def test_groups_from_a_file_are_trained_like_sampled_ones_or_not_at_all(
    tiny_dense: str, ray_local: None, tmp_path: Path
) -> None:
    sampling, recorded = _config(tiny_dense).build_algo(), _config(tiny_dense).build_algo()
    path = tmp_path / "groups.jsonl"
    try:
        sampling.record_groups(path)
        sampling.train()
        result = recorded.train_on(load_groups(path))
        after = _parameters(sampling)
        assert _are_equal(_parameters(recorded), after), "bit for bit"
        assert result["learners"][DEFAULT_MODULE_ID]["num_trajectories"] == 16
        assert result[names.GROUP_STREAM][names.NUM_TRAJECTORIES_BEHAVIOR_UNKNOWN] == 0

        lines = path.read_text().splitlines()
        group = json.loads(lines[3])["group_id"]
        for change, message in SPOILT:
            last = json.loads(lines[3])
            change(last)
            spoilt = _file(tmp_path, *lines[:3], last)
            with pytest.raises(RecordError) as refused:
                recorded.train_on(load_groups(spoilt))
            expected = f"{spoilt}, line 4{message.format(group=group, path=spoilt)}"
            assert str(refused.value).startswith(expected), str(refused.value)
            assert _are_equal(_parameters(recorded), after), message
        assert recorded.iteration == 1

        told = [{"role": "user", "content": "heads or tails"}, {"role": "assistant", "content": "From another model."}]
        told += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "heads", "trainable": True}]
        played = [{"conversations": [{"messages": told}], "reward": reward} for reward in (1, 0)]
        rows = [{"group_id": "told", "trajectories": played}]
        with pytest.raises(RecordError, match=r"entry 0 \('told'\), trajectory 0, call 0 has no log-prob"):
            recorded.train_on(load_groups(rows, recorded.config))
        assert _are_equal(_parameters(recorded), after)
        recorded.record_groups(tmp_path / "more.jsonl")
        result = recorded.train_on(load_groups(rows, recorded.config), behavior="unknown")
        assert not (tmp_path / "more.jsonl").exists(), "nothing was sampled"
        measured = result["learners"][DEFAULT_MODULE_ID]
        assert result[names.GROUP_STREAM][names.NUM_TRAJECTORIES_BEHAVIOR_UNKNOWN] == 2
        assert measured["logp_gap_max"] == pytest.approx(0.0, abs=1e-5), "the ratio starts at 1"
        assert not _are_equal(_parameters(recorded), after)
    finally:
        sampling.stop()
        recorded.stop()


def test_groups_that_are_dropped_leave_the_others_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "groups.jsonl"
    drop_groups(file, lambda name: True)
    assert not file.exists()
    lines = [f'{{"group_id": "{number}", "trajectories":  [] }}\n' for number in range(4)]
    file.write_text("".join([*lines[:2], '{"gro{"group_id": 1}\n', "[]\n", *lines[2:]]) + '{"group_id": "9"}')
    drop_groups(file, lambda name: name == "2")
    assert file.read_text() == "".join([*lines[:2], lines[3]]), "to the letter, and without what is no group"
    assert list(tmp_path.iterdir()) == [file]
