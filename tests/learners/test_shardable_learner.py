"""Learners that share one model: what they train, measure, hold and save is what one learner alone does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_rllib.algorithms.policy_gradient.memory_plan import learner_memory, model_sizes
from gspo_rllib.warmstart.models import build_model
from tests.learners.ranks import on_ranks
from tests.learners.shared_learners import (
    CASES,
    config_of,
    more_ranks,
    odd_shares,
    restored,
    saving_and_restoring,
    train,
    train_all,
)
from tests.own_memory import WIDE

pytestmark = pytest.mark.slow

Trained = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def paths(tiny_dense: str, tiny_tied: str, tiny_moe: str) -> dict[str, str]:
    return {"tiny_dense": tiny_dense, "tiny_tied": tiny_tied, "tiny_moe": tiny_moe}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def two(paths: dict[str, str], saved: Path) -> list[Trained]:
    """Every case, on two ranks."""
    return on_ranks(train_all, list(CASES), paths, str(saved / "two"))


@pytest.fixture(scope="module")
def one(paths: dict[str, str], saved: Path) -> Trained:
    """Every case, by one learner that holds everything."""
    return {name: train(None, case, paths, str(saved / "one" / name)) for name, case in CASES.items()}


def arrays(tree: Any, name: str = "") -> dict[str, np.ndarray]:
    """Every array of a state, by the path to it."""
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        return {name: np.asarray(tree)} if isinstance(tree, np.ndarray) else {}
    return {path: array for key, value in items for path, array in arrays(value, f"{name}/{key}").items()}


def distance(one: Any, other: Any) -> float:
    """Largest difference of two states with the same arrays."""
    mine, others = arrays(one), arrays(other)
    assert mine.keys() == others.keys() and mine
    return max(float(np.abs(mine[name].astype(float) - others[name]).max(initial=0.0)) for name in mine)


def tolerance(name: str) -> float:
    """A matrix's gradient is rounded to bfloat16 for each row, and ranks have other rows: alone, rows of 10,000 tokens
    in place of 80 make a difference of 5e-4 here.
    """
    if name == "bfloat16":
        return 1e-3
    return 1e-5 if CASES[name][0] == "tiny_moe" else 1e-6


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_what_one_learner_trains(name: str, one: Trained, two: list[Trained]) -> None:
    alone, first, second = one[name], two[0][name], two[1][name]
    assert distance(first["state"]["rl_module"], alone["state"]["rl_module"]) <= tolerance(name)
    assert distance(first["state"]["optimizer"], alone["state"]["optimizer"]) <= tolerance(name)
    # What is gathered is the first rank's.
    assert not arrays(second["state"]["rl_module"]) and not second["state"]["optimizer"]


@pytest.mark.parametrize("name", CASES)
def test_engines_are_sent_what_one_learner_would_send(name: str, one: Trained, two: list[Trained]) -> None:
    alone, first, second = one[name], two[0][name], two[1][name]
    assert list(first["sent"]) == list(alone["sent"]) and not second["sent"]
    assert distance(first["sent"], alone["sent"]) <= tolerance(name)


def test_a_tied_head_is_sent_once(two: list[Trained]) -> None:
    sent = two[0]["tied"]["sent"]
    assert sent["lm_head.weight"] is sent["model.embed_tokens.weight"]


@pytest.mark.parametrize("name", CASES)
def test_both_ranks_report_what_one_learner_reports(name: str, one: Trained, two: list[Trained]) -> None:
    alone = one[name]["measured"]
    for of_rank in two:
        measured = of_rank[name]["measured"]
        assert measured.keys() == alone.keys()
        exact = {"num_trajectories", "num_optimizer_steps", "num_optimizer_steps_skipped", "loss", "grad_norm"}
        for key in exact & alone.keys():
            rounding = 0.2 if name == "bfloat16" else 1e-3
            assert measured[key] == pytest.approx(alone[key], rel=rounding, abs=1e-6), key


@pytest.mark.parametrize("name", CASES)
def test_each_rank_holds_half(name: str, one: Trained, two: list[Trained]) -> None:
    for of_rank in two:
        assert of_rank[name]["bytes"] <= 0.55 * one[name]["bytes"]


@pytest.mark.parametrize("name", CASES)
def test_a_plan_says_what_each_rank_holds(name: str, one: Trained, two: list[Trained], paths: dict[str, str]) -> None:
    """Between two steps: weights, moments and a reference policy; parameters of one number do not divide."""
    for trained, num_learners in ((one, 0), (two[0], 2), (two[1], 2)):
        config = config_of(CASES[name], paths, num_learners=num_learners)
        planned = learner_memory(config, model_sizes(config, params=None))
        held = planned.weights + planned.optimiser + planned.reference
        assert trained[name]["bytes"] == pytest.approx(held, rel=0.01)


def test_training_moves_what_is_compared(one: Trained) -> None:
    """Or every comparison above would hold of learners that do nothing."""
    for name, alone in one.items():
        moments = [m for path, m in arrays(alone["state"]["optimizer"]).items() if path.endswith("exp_avg")]
        assert moments and max(float(np.abs(m).max()) for m in moments) > 1e-5, name


def test_ranks_with_other_numbers_of_micro_batches_end_and_none_trains_on_what_is_not_finite(
    paths: dict[str, str],
) -> None:
    first, second = on_ranks(odd_shares, paths)
    assert sorted([first["4 and 3"], second["4 and 3"]]) == [[False] * 4, [False, False, False, True]]
    assert sorted([first["1 and 0"], second["1 and 0"]]) == [[False], [True]]
    for rank in (first, second):
        assert rank["skipped"] == 1 and rank["taken"] == 1
    before, after = first["untouched"]
    assert distance(before, after) == 0.0
    assert distance(first["after"], after) > 1e-4
    # A save that fails on one rank fails on all, and costs nothing else.
    assert first["failed saves"] == ["no space left on device"] * 2
    assert second["failed saves"] == ["another learner that shares the model could not do its part"] * 2
    assert distance(first["still there"], first["after"]) == 0.0


def test_a_state_is_restored_by_as_many_learners_or_by_one(paths: dict[str, str], saved: Path, two: Any) -> None:
    state = two[0]["dense"]["state"]
    again, _ = on_ranks(restored, paths, str(saved / "two" / "dense"))
    assert distance(again["restored"]["rl_module"], state["rl_module"]) == 0.0
    assert distance(again["restored"]["optimizer"], state["optimizer"]) == 0.0
    alone = restored(None, paths, str(saved / "two" / "dense"))
    assert distance(alone["restored"]["rl_module"], state["rl_module"]) == 0.0
    assert distance(alone["restored"]["optimizer"], state["optimizer"]) == 0.0
    assert distance(alone["later"]["rl_module"], again["later"]["rl_module"]) <= 1e-7


def test_two_learners_go_on_from_what_one_saved(paths: dict[str, str], saved: Path, one: Trained) -> None:
    state = one["dense"]["state"]
    both, _ = on_ranks(restored, paths, str(saved / "one" / "dense"))
    assert distance(both["restored"]["rl_module"], state["rl_module"]) == 0.0
    assert distance(both["restored"]["optimizer"], state["optimizer"]) == 0.0
    alone = restored(None, paths, str(saved / "one" / "dense"))
    assert distance(alone["later"]["rl_module"], both["later"]["rl_module"]) <= 1e-7


@pytest.fixture(scope="module", params=[3, 4])
def more(request: pytest.FixtureRequest, paths: dict[str, str], saved: Path, two: list[Trained]) -> list[Any]:
    """What more ranks do. Of a minibatch's two groups one rank or two have none, and 64 rows are not three shares."""
    world: int = request.param
    return on_ranks(more_ranks, paths, str(saved / "two" / "dense"), str(saved / f"{world}"), world=world)


def test_more_ranks_train_what_one_learner_trains(more: list[Any], one: Trained) -> None:
    for name, first in more[0]["trained"].items():
        alone = one[name]
        assert distance(first["state"]["rl_module"], alone["state"]["rl_module"]) <= tolerance(name)
        assert distance(first["state"]["optimizer"], alone["state"]["optimizer"]) <= tolerance(name)
        assert distance(first["sent"], alone["sent"]) <= tolerance(name)
        # Tensors are cut along their first dimension: 4 experts, or rows of an adapter, are 2, 2 and 0 for three ranks.
        of_four = name in ("mixture of experts", "adapter")
        most = 0.55 if of_four and len(more) == 3 else 1.15 / len(more)
        assert all(rank["trained"][name]["bytes"] <= most * alone["bytes"] for rank in more)
    assert not any(arrays(of["state"]["rl_module"]) for rank in more[1:] for of in rank["trained"].values())


def test_more_ranks_make_the_same_number_of_passes(more: list[Any]) -> None:
    most, fewer, *none = sorted((rank["passes"]["4, 3 and 0"] for rank in more), key=sum)
    assert (most, fewer) == ([False] * 4, [False, False, False, True]) and all(of == [True] * 4 for of in none)
    assert sorted(rank["passes"]["1 and 0"] for rank in more) == [[False], *[[True]] * (len(more) - 1)]


def test_more_ranks_go_on_from_what_two_saved(more: list[Any], paths: dict[str, str], saved: Path, two: Any) -> None:
    state, found = two[0]["dense"]["state"], more[0]["restored"]
    assert distance(found["restored"]["rl_module"], state["rl_module"]) == 0.0
    assert distance(found["restored"]["optimizer"], state["optimizer"]) == 0.0
    alone = restored(None, paths, str(saved / "two" / "dense"))
    assert distance(found["later"]["rl_module"], alone["later"]["rl_module"]) <= 1e-7


def test_a_checkpoint_takes_one_tensor_at_a_time(tmp_path: Path) -> None:
    """76 M parameters: weights and moments are 912 MB, the largest tensor 25 MB; a share of the weights 152 MB."""
    path = str(build_model(tmp_path / "wide", **WIDE))
    for figures in on_ranks(saving_and_restoring, {"tiny_dense": path}, str(tmp_path)):
        print(figures)
        # Gathering a tensor makes copies of it.
        assert figures["saving"] < 4 * 26
        # The policy is loaded as shares beside the one that is there; moments come out of the file.
        assert figures["restoring"] < figures["held"]
