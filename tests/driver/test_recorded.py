"""Groups made elsewhere: accepted whole or not at all, and trained as sampled ones are."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib import metrics as names
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.driver.recorded import check_recorded, with_own_behavior
from gspo_rllib.errors import RecordError
from gspo_rllib.types import GROUP, REWARD_PARTS, TURN, GroupMember, TrajectoryGroup, group_episodes, turns
from tests.episodes import VOCABULARY, make_group
from tests.toy_envs.coin_env import CoinEnv


def _groups() -> list[TrajectoryGroup]:
    return group_episodes([*make_group("a", 2), *make_group("b", 3)])


def _changed(**fields: Any) -> Callable[[list[TrajectoryGroup]], None]:
    """Changes the last turn of group b's second member."""

    def change(groups: list[TrajectoryGroup]) -> None:
        recorded = groups[1].episodes[1].extra_model_outputs[TURN].data
        made = {name: value(recorded[-1]) if callable(value) else value for name, value in fields.items()}
        recorded[-1] = dataclasses.replace(recorded[-1], **made)

    return change


def _logp(value: float) -> Callable[[Any], np.ndarray]:
    return lambda turn: np.full(len(turn.action_token_ids), value, np.float32)


def _unfinished(groups: list[TrajectoryGroup]) -> None:
    groups[1].episodes[1].is_terminated = False


def _empty(groups: list[TrajectoryGroup]) -> None:
    episode = SingleAgentEpisode()
    episode.add_env_reset("start")
    episode.custom_data[GROUP] = GroupMember("b", 1, 0)
    groups[1].episodes[1] = episode


def _no_turns(groups: list[TrajectoryGroup]) -> None:
    del groups[1].episodes[1].extra_model_outputs[TURN]


def _twice(groups: list[TrajectoryGroup]) -> None:
    groups.append(copy.deepcopy(groups[0]))


def _same_index(groups: list[TrajectoryGroup]) -> None:
    groups[1].episodes[2].custom_data[GROUP] = GroupMember("b", 1, 0)


def _set_member(groups: list[TrajectoryGroup]) -> None:
    groups[1].episodes[1].custom_data[GROUP] = GroupMember("a", 1, 0)


def _index(index: Any) -> Callable[[list[TrajectoryGroup]], None]:
    def change(groups: list[TrajectoryGroup]) -> None:
        groups[1].episodes[1].custom_data[GROUP] = GroupMember("b", index, 0)

    return change


def _reward(reward: Any) -> Callable[[list[TrajectoryGroup]], None]:
    def change(groups: list[TrajectoryGroup]) -> None:
        groups[1].episodes[1].rewards.data[0] = reward

    return change


WHERE = "groups[1] ('b'), episode 1"
WRONG: list[tuple[Callable[[list[Any]], None], str]] = [
    (lambda groups: groups.clear(), "groups is empty; there must be at least one TrajectoryGroup."),
    (lambda groups: groups.__setitem__(1, 7), "groups[1] is 7; it must be a TrajectoryGroup."),
    (lambda groups: groups[1].episodes.__delitem__(slice(1, None)), "groups[1] ('b') has 1 trajectories; a group"),
    (_changed(prompt_token_ids=np.int32([1] * 600)), "tokens, and the model was made for at most 512 (max_position_"),
    (_changed(action_token_ids=np.int32([1, 2]), action_logp=np.float32([-1, np.nan])), "action_logp holds nan; each"),
    (_twice, "groups[2] ('a'): another group has the same group_id; each must have its own."),
    (lambda groups: groups[1].episodes.__setitem__(1, "x"), f"{WHERE} is 'x'; it must be a SingleAgentEpisode."),
    (_set_member, f"{WHERE}: custom_data['group'] is GroupMember(group_id='a'"),
    (_same_index, "groups[1] ('b'): indices [0, 1, 1] of its members; each must have its own."),
    (_empty, f"{WHERE} has no turns; it needs at least one."),
    (_unfinished, f"{WHERE} is unfinished; its last step must be terminated or truncated."),
    (_no_turns, "steps and 0 turns; each step must have its Turn."),
    (_changed(action_logp=np.float32([-1.0] * 77)), "action_logp of shape (77,); there must be one log-prob"),
    (_changed(action_logp=_logp(0.5)), "action_logp holds 0.5; each must be finite and at most 0 (nats)."),
    (_changed(action_logp=_logp(-np.inf)), "action_logp holds -inf; each must be finite and at most 0 (nats)."),
    (_changed(action_logp=_logp(np.nan)), 'has no log-probabilities (action_logp is None or NaN). Record them'),
    (_changed(action_logp=None), 'or pass behavior="unknown"'),
    (_changed(prompt_token_ids=np.int32([1, VOCABULARY])), f"holds {VOCABULARY}, which is no id of the mod"),
    (_changed(action_token_ids=np.int32([-1]), action_logp=np.float32([-1])), "holds -1, which is no id of the"),
    (_changed(prompt_token_ids=np.float32([1.5])), "prompt_token_ids has shape (1,) and dtype float32; it must"),
    (_changed(action_token_ids=np.int32([])), "action_token_ids is empty; a turn needs at least one sampled id."),
    (_changed(policy_version=4), "was sampled with weights version 4, but the learner's is 3."),
    (_changed(policy_version=None), "policy_version is None and token_versions None; versions are whole numbers from"),
    (_changed(policy_version=-1), "policy_version is -1 and token_versions None; versions are whole numbers from 0."),
    (_changed(policy_version=True), "policy_version is True and token_versions None; versions are whole numbers"),
    (_changed(token_versions=lambda turn: ["3"] * len(turn.action_token_ids)), "versions are whole numbers from 0."),
    (_changed(action_logp=lambda turn: ["x"] * len(turn.action_token_ids)), "action_logp is ['x"),
    (_changed(action_logp=lambda turn: [[-1.0], [-1.0, -1.0]]), "action_logp is [[-1.0], [-1.0, -1.0]]; it must be"),
    (_changed(action_logp=-1.0), "action_logp of shape (); there must be one log-probability for each id."),
    (_changed(action_token_ids=[[1], [1, 2]]), "action_token_ids is [[1], [1, 2]]; it must be a list of numbers."),
    (_changed(action_token_ids=None), "action_token_ids has shape () and dtype object; it must be a list of whole"),
    (_changed(prompt_token_ids=[True]), "prompt_token_ids has shape (1,) and dtype bool; it must be a list of whole"),
    (_changed(finish_reason="end"), "finish_reason is 'end'; allowed: 'stop', 'length'."),
    (lambda groups: groups.__setitem__(1, TrajectoryGroup(7, [])), "groups[1]: group_id is 7; it must be a text."),
    (lambda groups: groups.__setitem__(1, TrajectoryGroup("b", None)), "groups[1]: episodes is None; it must be a li"),
    (_index(-1), "its index is -1; it must be a whole number from 0."),
    (_index("1"), "its index is '1'; it must be a whole number from 0."),
    (_reward("x"), f"{WHERE}: its rewards are no numbers: ValueError: could not convert string"),
    (_reward(np.nan), f"{WHERE}: rewards [nan"),
    (_changed(token_versions=np.int32([3] * 77)), "77 token_versions; there must be one for each id, or None."),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_group_is_refused_with_its_place(change: Callable[[list[Any]], None], message: str) -> None:
    groups = _groups()
    check_recorded(groups, version=3, vocab_size=VOCABULARY, longest=512)
    change(groups)
    with pytest.raises(RecordError) as refused:
        check_recorded(groups, version=3, vocab_size=VOCABULARY, longest=512)
    assert message in str(refused.value)


def test_what_is_no_list_of_groups_and_no_behavior_is_refused() -> None:
    for given, behavior, message in (
        (7, "recorded", "groups is 7; it must be a list of TrajectoryGroup."),
        (_groups(), "guessed", "behavior='guessed' is unknown."),
    ):
        with pytest.raises(RecordError) as refused:
            check_recorded(given, version=3, vocab_size=None, behavior=behavior)
        assert message in str(refused.value)


def test_what_an_advantage_needs_must_be_there() -> None:
    alone = group_episodes(make_group("a", 1))
    check_recorded(alone, version=3, vocab_size=VOCABULARY, smallest=1)
    with pytest.raises(RecordError, match="has 1 trajectories; a group needs at least 2"):
        check_recorded(alone, version=3, vocab_size=VOCABULARY)
    groups = _groups()
    for group in groups:
        for episode in group.episodes:
            episode.infos.data[-1] = {REWARD_PARTS: {"form": 1.0}}
    check_recorded(groups, version=3, vocab_size=VOCABULARY, reward_parts=("form",))
    with pytest.raises(RecordError) as refused:
        check_recorded(groups, version=3, vocab_size=VOCABULARY, reward_parts=("form", "content"))
    assert "groups[0] ('a'), episode 0 has no reward part 'content' (but 'form'), and" in str(refused.value)


def test_only_trajectories_without_log_probs_are_given_the_learners() -> None:
    groups = _groups()
    _changed(action_logp=None)(groups)
    check_recorded(groups, version=3, vocab_size=VOCABULARY, behavior="unknown")
    filled, num_unknown = with_own_behavior(
        groups, version=3, score=lambda ts: [-np.arange(t.num_loss_tokens, dtype=np.float32) for t in ts]
    )
    assert num_unknown == 1
    known, given = filled[1].episodes[1], groups[1].episodes[1]
    logp = np.concatenate([turn.action_logp for turn in turns(known)])
    assert logp.tolist() == [-n for n in range(len(logp))]
    assert {turn.policy_version for turn in turns(known)} == {3}
    assert list(turns(given))[-1].action_logp is None, "what was given stays as it is"
    assert len(known) == len(given) and known.get_return() == given.get_return()
    assert filled[0].episodes == groups[0].episodes and filled[1].episodes[0] is groups[1].episodes[0]


def _config(path: str, *, num_env_runners: int = 0, **training: Any) -> GSPOConfig:
    return (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": str(path)})
        .generation(engine="transformers", temperature=0.7, max_tokens_per_turn=6)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=8)
        .training(**{"group_size": 4, "groups_per_iteration": 4, "num_minibatches": 2, "lr": 1e-3, **training})
        .debugging(seed=1)
    )


def _parameters(algo: Any) -> dict[str, np.ndarray]:
    state = algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]
    return {name: np.array(array) for name, array in state.items()}


def _assert_equal(a: Any, b: Any) -> None:
    ours, theirs = _parameters(a), _parameters(b)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def _noting(algo: Any) -> list[TrajectoryGroup]:
    """The groups that an algorithm is about to train on, as they were sampled."""
    taken: list[TrajectoryGroup] = []
    take = algo._source.take

    def note(count: int) -> Any:
        groups, reports = take(count)
        taken.extend(copy.deepcopy(groups))
        return groups, reports

    algo._source.take = note
    return taken


def test_recorded_groups_are_trained_bit_for_bit_like_sampled_ones(tiny_dense: str, ray_local: None) -> None:
    sampling, recorded = _config(tiny_dense).build_algo(), _config(tiny_dense).build_algo()
    try:
        taken = _noting(sampling)
        theirs = sampling.train()["learners"][DEFAULT_MODULE_ID]
        ours = recorded.train_on(taken[:4])["learners"][DEFAULT_MODULE_ID]
        _assert_equal(sampling, recorded)
        assert {name: value for name, value in ours.items() if "mean" in name} == {
            name: value for name, value in theirs.items() if "mean" in name
        }
        # The next iteration draws the same groups, with engines that hold the new weights.
        assert sampling.train()["learners"][DEFAULT_MODULE_ID]["staleness"] == 0.0
        recorded.train()
        _assert_equal(sampling, recorded)

        before = _parameters(recorded)
        with pytest.raises(RecordError, match="another group has the same group_id"):
            recorded.train_on([taken[0], taken[0]])
        assert all(np.array_equal(before[name], value) for name, value in _parameters(recorded).items())
        for group in taken[:4]:
            for episode in group.episodes:
                turns_of = episode.extra_model_outputs[TURN].data
                turns_of[:] = [dataclasses.replace(turn, action_logp=None) for turn in turns_of]
        result = recorded.train_on(taken[:4], behavior="unknown")
        assert result[names.GROUP_STREAM][names.NUM_TRAJECTORIES_BEHAVIOR_UNKNOWN] == 16
        assert result["learners"][DEFAULT_MODULE_ID]["logp_gap_max"] == pytest.approx(0.0, abs=1e-5)
    finally:
        sampling.stop()
        recorded.stop()


@pytest.mark.slow
def test_what_is_in_flight_goes_on_while_recorded_groups_are_trained(tiny_dense: str, ray_local: None) -> None:
    algo = _config(tiny_dense, num_env_runners=1, max_staleness=1).build_algo()
    try:
        taken = _noting(algo)
        algo.train()
        given, in_flight = taken[:4], algo._source.unfinished
        assert in_flight
        result = algo.train_on(given)
        assert result["learners"][DEFAULT_MODULE_ID]["num_trajectories"] == 16
        assert set(in_flight) <= set(algo._source.unfinished)
        taken.clear()
        for _ in range(3):
            result = algo.train()
            assert 0.0 <= result["learners"][DEFAULT_MODULE_ID]["staleness"] <= 1.0
            assert result[names.GROUP_STREAM][names.NUM_GROUPS_STALE_DROPPED] == 0
        assert set(in_flight) <= {group.group_id for group in taken}
    finally:
        algo.stop()
