"""What may become of an attribute of RLlib's ``AlgorithmConfig``.

``used``: this package, or the part of RLlib that runs here, reads it. ``forwarded``: handed on as it is, to Ray, torch,
the environment or code of the user's. ``refused``: another value than the default would do nothing, or break training;
what to do instead is said. ``free``: any value is right, since what it asks for is done anyway or is nobody's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Fate = Literal["used", "forwarded", "refused", "free"]


@dataclass(frozen=True, slots=True)
class RLlibSetting:
    """One attribute of ``AlgorithmConfig``.

    Attributes:
        builder: The builder that sets it; "" where none does.
        fate: What happens to it; see the module's docstring.
        note: What it changes; for a refused one, what to do instead.
        at_least: Smallest value of a number.
        whole: Whether a number must be a whole one.
        choices: All values there are.
        also: Values other than the default that a refused one may have: they ask for what is done anyway.
        evaluates: Whether ``evaluation_config`` may set it; elsewhere it has no effect on an evaluation.
    """

    builder: str
    fate: Fate
    note: str
    at_least: float | None = None
    whole: bool = False
    choices: tuple[Any, ...] | None = None
    also: tuple[Any, ...] = ()
    evaluates: bool = False


def used(builder: str, note: str, **traits: Any) -> RLlibSetting:
    """Read here, or by the part of RLlib that runs here."""
    return RLlibSetting(builder, "used", note, **traits)


def forwarded(builder: str, note: str, **traits: Any) -> RLlibSetting:
    """Handed on as it is."""
    return RLlibSetting(builder, "forwarded", note, **traits)


def free(builder: str, note: str) -> RLlibSetting:
    """Any value is right."""
    return RLlibSetting(builder, "free", note)


def refused(builder: str, remedy: str, *names: str, also: tuple[Any, ...] = ()) -> dict[str, RLlibSetting]:
    """The same remedy for each of these attributes."""
    return {name: RLlibSetting(builder, "refused", remedy, also=also) for name in names}
