"""Which slot of the transformers engine a prompt gets, and what it finds there."""

from __future__ import annotations

import numpy as np

from gspo_rllib.engines.slot_table import SlotChoice, SlotTable


def ids(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.int32)


def answer(table: SlotTable, prompt: np.ndarray, sampled: list[int]) -> int:
    """Runs one request to its end; its last sample is never computed, as in the engine."""
    choice = table.choose(prompt)
    assert choice is not None
    table.take(choice, prompt)
    for token in sampled[:-1]:
        table.append(choice.slot, token)
    table.advance(choice.slot, len(prompt) + len(sampled) - 1)
    table.release(choice.slot)
    return choice.slot


def test_the_next_turn_continues_in_its_own_slot() -> None:
    table = SlotTable(3, 200)
    slot = answer(table, ids(0, 50), [90, 91, 92])
    answer(table, ids(100, 140), [7])

    later = np.concatenate([ids(0, 50), [90, 91, 92], ids(60, 70)]).astype(np.int32)

    assert table.choose(later) == SlotChoice(slot, cached=52)


def test_the_last_prompt_token_is_always_computed() -> None:
    table = SlotTable(2, 200)
    answer(table, ids(0, 50), [1, 2, 3])

    choice = table.choose(ids(0, 50))

    assert choice is not None and choice.cached == 49


def test_a_shared_opening_is_copied_and_the_finished_trajectory_survives() -> None:
    table = SlotTable(2, 200)
    first = answer(table, ids(0, 50), [90, 91, 92])

    choice = table.choose(np.concatenate([ids(0, 50), ids(150, 160)]).astype(np.int32))

    assert choice is not None
    assert (choice.cached, choice.copy_from) == (50, first)
    assert choice.slot != first


def test_a_request_waits_for_a_group_mate_that_computes_the_same_prompt() -> None:
    table = SlotTable(3, 200)
    first = table.choose(ids(0, 50))
    assert first is not None
    table.take(first, ids(0, 50))

    assert table.choose(ids(0, 50)) is None
    assert table.choose(ids(100, 150)) is not None
    table.advance(first.slot, 50)
    assert table.choose(ids(0, 50)) == SlotChoice(slot=1, cached=49, copy_from=first.slot)


def test_short_coincidences_are_computed_rather_than_copied() -> None:
    table = SlotTable(2, 200)
    answer(table, ids(0, 50), [1])

    choice = table.choose(np.concatenate([ids(0, 5), ids(90, 120)]).astype(np.int32))

    assert choice == SlotChoice(slot=1, cached=0)


def test_the_slot_unused_for_longest_is_given_up_first() -> None:
    table = SlotTable(2, 200)
    old = answer(table, ids(0, 30), [1])
    answer(table, ids(40, 70), [1])

    choice = table.choose(ids(100, 130))

    assert choice == SlotChoice(old, cached=0)


def test_when_only_the_source_itself_is_free_it_is_cut_back() -> None:
    table = SlotTable(1, 200)
    answer(table, ids(0, 50), [90, 91, 92])

    assert table.choose(np.concatenate([ids(0, 40), ids(100, 120)]).astype(np.int32)) == SlotChoice(0, cached=40)


def test_forgetting_leaves_nothing_to_reuse() -> None:
    table = SlotTable(2, 200)
    answer(table, ids(0, 50), [1])

    table.forget()

    assert table.choose(ids(0, 50)) == SlotChoice(slot=0, cached=0)
