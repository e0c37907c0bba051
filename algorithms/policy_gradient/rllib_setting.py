"""What may become of an attribute of RLlib's ``AlgorithmConfig``.

``used``: this package, or the part of RLlib that runs here, reads it. ``forwarded``: handed on as it is, to Ray, torch,
the environment or code of the user's. ``refused``: another value than the default would do nothing, or break training;
what to do instead is said. ``free``: any value is right, since what it asks for is done anyway or is nobody's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gspo_rllib.value_forms import Form

MOST_ACTORS = 100_000
"""More env runners or learners than any cluster has."""

Fate = Literal["used", "forwarded", "refused", "free"]


@dataclass(frozen=True, slots=True)
class RLlibSetting:
    """One attribute of ``AlgorithmConfig``.

    Attributes:
        builder: The builder that sets it; "" where none does.
        fate: What happens to it; see the module's docstring.
        note: What it changes; for a refused one, what to do instead.
        at_least: Smallest value of a number.
        at_most: Largest value of a number.
        whole: Whether a number must be a whole one.
        whole_above_1: Whether it must be so above 1: Ray gives a part of one GPU, or whole ones.
        choices: All values there are.
        form: Says what a value that is no number must be, where it is something else; see ``gspo_rllib.value_forms``.
        also: Values that are right whatever else is said here; of a refused one, they ask for what is done anyway.
        evaluates: Whether ``evaluation_config`` may set it; elsewhere it has no effect on an evaluation.
    """

    builder: str
    fate: Fate
    note: str
    at_least: float | None = None
    at_most: float | None = None
    whole: bool = False
    whole_above_1: bool = False
    choices: tuple[Any, ...] | None = None
    form: Form | None = None
    also: tuple[Any, ...] = ()
    evaluates: bool = False


def used(builder: str, note: str, **traits: Any) -> RLlibSetting:
    """Read here, or by the part of RLlib that runs here."""
    return RLlibSetting(builder, "used", note, **traits)


def forwarded(builder: str, note: str, **traits: Any) -> RLlibSetting:
    """Handed on as it is."""
    return RLlibSetting(builder, "forwarded", note, **traits)


def switch(builder: str, note: str, **traits: Any) -> RLlibSetting:
    """Used, and either True or False."""
    return RLlibSetting(builder, "used", note, choices=(True, False), **traits)


def free(builder: str, note: str) -> RLlibSetting:
    """Any value is right."""
    return RLlibSetting(builder, "free", note)


def refused(builder: str, remedy: str, *names: str, also: tuple[Any, ...] = ()) -> dict[str, RLlibSetting]:
    """The same remedy for each of these attributes."""
    return {name: RLlibSetting(builder, "refused", remedy, also=also) for name in names}
