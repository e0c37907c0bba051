"""Two plays of a trajectory: that they agree, or where they part and what that points to."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest

from gspo_rllib.trajectory_table import Row
from gspo_rllib.view.agreement import compare
from tests.view.rows import make_row, make_turn


def _recorded() -> Row:
    return make_row(turns=[make_turn(number, sampled=4) for number in range(3)])


def test_a_trajectory_agrees_with_itself() -> None:
    found = compare(_recorded(), _recorded())
    assert found.difference is None
    assert (found.num_turns, found.num_ids, found.gap) == (3, 12, 0.0)


def test_float_noise_is_no_difference_and_nan_rewards_are_equal() -> None:
    new = _recorded()
    for turn in new["turns"]:
        turn["logp"] = (np.float32(turn["logp"]) + np.float32(1e-5)).tolist()
    old = _recorded()
    old["turns"][0]["reward"] = new["turns"][0]["reward"] = float("nan")
    found = compare(old, new)
    assert found.difference is None and found.gap == pytest.approx(1e-5, rel=0.1)


def _change(*path: object, to: object) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        place = row
        for key in path[:-1]:
            place = place[key]  # type: ignore[index]
        place[path[-1]] = to  # type: ignore[index]

    return change


def _other_weights(row: Row) -> None:
    row["turns"][1]["sampled_ids"][2] = 99
    row["turns"][1]["logp"] = [value - 0.5 for value in row["turns"][1]["logp"]]


def _other_draw(row: Row) -> None:
    row["turns"][1]["sampled_ids"][2] = 99
    row["turns"][1]["logp"][2] = -9.0


def _environment(row: Row) -> None:
    row["turns"][1]["prompt_ids"][3] = 99
    row["turns"][1]["observation"] = "observation 7"


def _first_token(row: Row) -> None:
    row["turns"][0]["sampled_ids"][0] = 99


def _cut_reply(row: Row) -> None:
    row["turns"][0]["sampled_ids"] = [20, 21]


def _template(row: Row) -> None:
    row["turns"][1]["prompt_ids"] = [10]


def _task(row: Row) -> None:
    row["turns"][0]["prompt_ids"] = [1]
    row["task_seed"] = 8


def _shorter(row: Row) -> None:
    row["turns"] = row["turns"][:2]


def _all_logp(row: Row) -> None:
    for turn in row["turns"]:
        turn["logp"] = [value - 0.01 for value in turn["logp"]]


@pytest.mark.parametrize(
    ("change", "ids", "says"),
    [
        (_other_weights, 6, "turn 2, sampled id 2: recorded id 22, replayed id 99. .* up to 0.5 nats, so the policy"),
        (_other_draw, 6, "turn 2, sampled id 2: .* agree to 0 nats, so the policy is the same and the draw fell"),
        (_first_token, 0, "turn 1, sampled id 0: .* first that was sampled: .* a later attempt, which is drawn anew"),
        (_cut_reply, 2, "turn 1, sampled id 2: recorded id 22, replayed the end of it"),
        (_environment, 4, "turn 2, context id 3: recorded id 13, replayed id 99. It observed '1', now '7'"),
        (_template, 4, "turn 2, context id 1: .* observed is the same, so the tokenizer or the chat template"),
        (_task, 0, r"turn 1, context id 0: .* another task \(seed 7, now 8\)"),
        (_shorter, 8, "after turn 2: recorded 3 turns, replayed 2"),
        (_change("turns", 2, "reward", to=0.5), 12, "every id agrees, but the reward of turn 3 was 0 and is 0.5"),
        (_change("success", to=False), 12, "every id agrees, but success was True and is False"),
        (_change("truncated_by", to="turns"), 12, "every id agrees, but what cut it short was None and is turns"),
        (_all_logp, 12, "every id agrees, but log-probabilities differ by up to 0.01 nats"),
    ],
)  # fmt: skip
def test_the_first_difference_is_named_with_what_it_points_to(
    change: Callable[[Row], None], ids: int, says: str
) -> None:
    new = deepcopy(_recorded())
    change(new)
    found = compare(_recorded(), new)
    assert found.difference is not None
    assert re.match(says, found.difference), found.difference
    assert found.num_ids == ids


def test_without_log_probabilities_nothing_is_claimed_about_the_policy() -> None:
    old, new = _recorded(), _recorded()
    for turn in old["turns"]:
        turn["logp"] = None
    assert compare(old, new).gap is None and compare(old, new).difference is None
    new["turns"][1]["sampled_ids"][0] = 99
    assert str(compare(old, new).difference).endswith("No log-probabilities were recorded that would say why.")
