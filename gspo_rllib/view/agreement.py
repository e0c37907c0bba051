"""Whether a trajectory that was played again is the recorded one, and if not, from where on and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gspo_rllib.errors import shown
from gspo_rllib.trajectory_table import Row

NOISE = 2e-3
"""Nats by which log-probabilities of one id may differ and still be the same policy's: what float32 sums in another
order come to. A bfloat16 engine has about ten times as much."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a comparison came to.

    Attributes:
        num_turns: Turns of which every id agrees.
        num_ids: Sampled ids that agree, up to the first that does not.
        gap: Largest difference of the log-probabilities (nats) of those; None where none were recorded.
        difference: The first difference and what it points to, in a sentence or two; None where there is none.
    """

    num_turns: int
    num_ids: int
    gap: float | None
    difference: str | None


def compare(recorded: Row, replayed: Row) -> Agreement:
    """Compares two plays of one trajectory, id by id.

    Args:
        recorded: What was kept of the first.
        replayed: The second.
    """
    num_ids, gaps = 0, [0.0]
    known = False
    pairs = list(zip(recorded["turns"], replayed["turns"], strict=False))
    for number, (old, new) in enumerate(pairs):
        prompt = _first(old["prompt_ids"], new["prompt_ids"])
        if prompt is not None:
            return Agreement(
                number, num_ids, max(gaps) if known else None, _prompt(number, prompt, old, new, recorded, replayed)
            )
        place = _first(old["sampled_ids"], new["sampled_ids"])
        agreed = len(old["sampled_ids"]) if place is None else place
        if old["logp"] is not None and agreed:
            known = True
            gaps.append(float(np.abs(np.subtract(old["logp"][:agreed], new["logp"][:agreed])).max()))
        num_ids += agreed
        gap = max(gaps) if known else None
        if place is not None:
            return Agreement(number, num_ids, gap, _sampled(number, place, old, new, gap, num_ids))
    gap = max(gaps) if known else None
    return Agreement(len(pairs), num_ids, gap, _end(recorded, replayed, gap))


def _first(old: Sequence[object], new: Sequence[object]) -> int | None:
    """Where two lists differ first; None for nowhere."""
    for place, (one, other) in enumerate(zip(old, new, strict=False)):
        if one != other:
            return place
    return None if len(old) == len(new) else min(len(old), len(new))


def _id(ids: Sequence[int], place: int) -> str:
    return f"id {ids[place]}" if place < len(ids) else "the end of it"


def _prompt(number: int, place: int, old: Row, new: Row, recorded: Row, replayed: Row) -> str:
    text = (
        f"turn {number + 1}, context id {place}: recorded {_id(old['prompt_ids'], place)}, replayed "
        f"{_id(new['prompt_ids'], place)}."
    )
    if number == 0 and recorded["task_seed"] != replayed["task_seed"]:
        return (
            f"{text} It is another task (seed {recorded['task_seed']}, now {replayed['task_seed']}): the run's was "
            "given in place of one that its environment failed at, or its seed was another."
        )
    if old["observation"] == new["observation"]:
        return (
            f"{text} What was observed is the same, so the tokenizer or the chat template is another, or its settings."
        )
    at = _first(old["observation"], new["observation"]) or 0
    then, now = (shown(turn["observation"][at : at + 60]) for turn in (old, new))
    said = f"It observed {then}, now {now}, from character {at} on"
    if number == 0:
        return (
            f"{text} {said}: the environment's first observation is no function of its seed, or its settings changed."
        )
    return f"{text} {said}: the environment answered the same actions otherwise, so it is no function of its seed."


def _sampled(number: int, place: int, old: Row, new: Row, gap: float | None, num_ids: int) -> str:
    text = (
        f"turn {number + 1}, sampled id {place}: recorded {_id(old['sampled_ids'], place)}, replayed "
        f"{_id(new['sampled_ids'], place)}."
    )
    if gap is None and old["logp"] is None:
        return f"{text} No log-probabilities were recorded that would say why."
    if gap is not None and gap > NOISE:
        return (
            f"{text} Log-probabilities of the ids before it differ by up to {gap:.2g} nats, so the policy is another: "
            "other weights, another temperature, or an engine of another precision."
        )
    if num_ids == 0:
        return (
            f"{text} It is the first that was sampled: the run had another seed, the policy is another, or the run's "
            "environment failed and this was a later attempt, which is drawn anew."
        )
    return (
        f"{text} Log-probabilities of the {num_ids} ids before it agree to {gap:.2g} nats, so the policy is the same "
        "and the draw fell otherwise: rounding decides a close one, on other hardware or with other library versions."
    )


def _end(recorded: Row, replayed: Row, gap: float | None) -> str | None:
    """What differs although every id of the turns that both have agrees."""
    turns = len(recorded["turns"]), len(replayed["turns"])
    if turns[0] != turns[1]:
        return (
            f"after turn {min(turns)}: recorded {turns[0]} turns, replayed {turns[1]}. All ids before agree, so the "
            "environment ended the same game elsewhere, or a limit of turns or tokens is another."
        )
    for number, (old, new) in enumerate(zip(recorded["turns"], replayed["turns"], strict=True)):
        if not _same(old["reward"], new["reward"]):
            return (
                f"every id agrees, but the reward of turn {number + 1} was {old['reward']:g} and is {new['reward']:g}: "
                "the environment judges the same actions otherwise."
            )
    for name, words in (("success", "success"), ("truncated_by", "what cut it short")):
        if recorded[name] != replayed[name]:
            return f"every id agrees, but {words} was {recorded[name]} and is {replayed[name]}."
    if gap is not None and gap > NOISE:
        return (
            f"every id agrees, but log-probabilities differ by up to {gap:.2g} nats: the weights are not quite the "
            "same, or the engine is one of another precision."
        )
    return None


def _same(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))
