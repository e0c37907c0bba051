"""Any tree of calls becomes segments that the engine saw, with each sampled id trained once, under one ratio."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch

from gspo_rllib import columns
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.agents.session import Call, ChatRequest
from gspo_rllib.agents.stitching import episode_of, in_segments
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.ops import policy_loss, sequence_log_ratio
from gspo_rllib.packing import TokenTable, pack
from gspo_rllib.types import TRUNCATED_BY, GroupMember, TokenTrajectory, turns
from tests.agents.made_up_policy import MadeUpPolicy, user

NUM_TREES = 500


def _tree(renderer: MessageRenderer, seed: int, most_steps: int = 12) -> MadeUpPolicy:
    """An agent that begins anew, says what was never sampled, goes on from any earlier reply, or cancels a call."""
    policy, random = MadeUpPolicy(renderer, seed), np.random.default_rng([seed, 1])
    asked: list[tuple[list, Call]] = []
    for number in range(int(random.integers(1, most_steps + 1))):
        heard = [(messages, call) for messages, call in asked if call.delivered]
        messages = [user(f"task {number}")]
        if random.random() < 0.1:
            messages += [{"role": "assistant", "content": f"never sampled {number}"}, user("and?")]
        elif heard and random.random() < 0.9:
            history, parent = heard[int(random.integers(len(heard))) if random.random() < 0.5 else -1]
            messages = [*history, _written_back(parent, spaced=random.random() < 0.5), user(f"next {number}")]
        request = ChatRequest(messages, choices=int(random.choice([1, 1, 1, 2, 3])))
        asked += [(messages, call) for call in policy.ask(request, delivered=random.random() < 0.8)]
    return policy


def _written_back(call: Call, *, spaced: bool) -> dict:
    content = call.reply.content
    return {"role": "assistant", "content": f"  {content}\n" if spaced else content}


def _trajectory(policy: MadeUpPolicy, index: int = 0) -> TokenTrajectory:
    calls = policy.session.trained_calls()
    episode = episode_of(calls, AgentResult(1.0), GroupMember("g", index, 0))
    return token_trajectory(episode, advantage=1.0)


def _new_logp(context: list[int], token: int) -> float:
    """A made-up policy after an update: any function of all that precedes a token."""
    return -zlib.crc32(np.array([*context, token], dtype=np.int32).tobytes()) / 2**32


def test_any_tree_of_calls_is_trained_as_it_was_sampled(renderer: MessageRenderer) -> None:
    num_segments = num_branched = num_dropped = 0
    for seed in range(NUM_TREES):
        policy = _tree(renderer, seed)
        calls = policy.session.trained_calls()
        if calls:
            _check_training(policy, calls)
            leaves = [call for call in calls if not call.children]
            num_segments += len(leaves)
        num_branched += any(len(call.children) > 1 for call in calls)
        num_dropped += len(policy.session.calls) - len(calls)
    assert num_segments > 2 * NUM_TREES and num_branched > 100 and num_dropped > 100, "the trees became too plain"


def _check_training(policy: MadeUpPolicy, calls: list[Call]) -> None:
    trajectory = _trajectory(policy)
    asked = [(*policy.seen[call.number], call) for call in calls]

    # Every segment is what the engine saw last of it, and every path to a leaf is a segment.
    leaves = [prompt + sampled for prompt, sampled, call in asked if not set(call.children) & set(calls)]
    assert sorted(segment.tolist() for segment in trajectory.segments) == sorted(leaves)

    # Every sampled id has loss once, after exactly the ids it was sampled after.
    trained = []
    for ids, mask in zip(trajectory.segments, trajectory.loss_masks, strict=True):
        trained += [(tuple(ids[:place].tolist()), int(ids[place])) for place in np.flatnonzero(mask)]
    assert sorted(trained) == sorted(
        (tuple(prompt + sampled[:place]), sampled[place])
        for prompt, sampled, _ in asked
        for place in range(len(sampled))
    )

    # One ratio: the mean over all sampled tokens, however many contexts they were sampled in.
    row = pack([trajectory])
    new_logp = torch.tensor([_new_logp(list(context), token) for context, token in trained], dtype=torch.float32)
    table = TokenTable(row)
    log_ratio = sequence_log_ratio(table(new_logp), table(row[columns.OLD_LOGP]), table.mask_BT)
    differences = [
        _new_logp(prompt + sampled[:place], sampled[place]) - float(call.sampled.generation.logp[place])
        for prompt, sampled, call in asked
        for place in range(len(sampled))
    ]
    assert math.isclose(float(log_ratio[0]), math.fsum(differences) / len(differences), abs_tol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_trajectory_weighs_the_same_in_one_context_as_in_many(renderer: MessageRenderer, seed: int) -> None:
    branched, plain = _tree(renderer, seed), _tree(renderer, seed + 100, most_steps=1)
    for policy in (branched, plain):
        policy.ask(ChatRequest([user("one that is heard")]))
    row = pack([_trajectory(branched, 0), _trajectory(plain, 1)])
    table = TokenTable(row)
    old = row[columns.OLD_LOGP]
    logp = old.clone().requires_grad_()
    loss, _ = policy_loss(table(logp), table(old), torch.tensor([1.0, 1.0]), table.mask_BT)
    (gradient,) = torch.autograd.grad(loss, logp)
    weight = torch.zeros(2).index_add(0, row[columns.TRAJECTORY_INDEX], gradient)
    torch.testing.assert_close(weight, torch.tensor([-0.5, -0.5]))


def test_the_outcome_is_on_the_last_turn_and_rewards_of_calls_are_on_their_own(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer)
    (first,) = policy.ask(ChatRequest([user("a")]))
    policy.ask(ChatRequest([user("other")]))
    again = [user("a"), first.reply.message, user("b")]
    policy.ask(ChatRequest(again))
    result = AgentResult(1.0, (0.25, 0.5, 0.0), success=True, reward_parts={"form": 1.0}, truncated_by="time")
    events: list[str] = []
    calls = policy.session.trained_calls()
    member = GroupMember("g", 3, 11)
    episode = episode_of(calls, result, member, observe=lambda event, episode: events.append(event))
    # The first conversation is two turns, of the calls 0 and 2; the other is the call in between.
    assert episode.get_rewards() == [0.25, 0.0, 1.5]
    assert episode.get_return() == 1.75
    assert episode.get_infos(-1) == {"success": True, "reward_parts": {"form": 1.0}}
    assert episode.is_truncated and not episode.is_terminated
    assert episode.custom_data[TRUNCATED_BY] == "time"
    assert episode.get_observations() == ["a", "b", "other", ""]
    assert [turn.starts_segment for turn in turns(episode)] == [False, False, True]
    assert events == ["on_episode_created", "on_episode_start", *["on_episode_step"] * 3, "on_episode_end"]


def test_a_conversation_may_be_longer_than_the_stack(renderer: MessageRenderer) -> None:
    (call,) = MadeUpPolicy(renderer).ask(ChatRequest([user(".")]))
    chain = [call]
    for number in range(1, 3000):
        chain.append(dataclasses.replace(call, number=number, parent=chain[-1], children=[]))
        chain[-2].children.append(chain[-1])
    assert [(call.number, starts) for call, starts in in_segments(chain)] == [(n, n == 0) for n in range(3000)]


def test_sessions_load_no_framework() -> None:
    code = (
        "import sys, gspo_rllib.agents.stitching;"
        "print({'torch', 'ray', 'transformers', 'starlette', 'uvicorn', 'openai'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
