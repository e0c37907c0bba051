"""Exact numbers, how they were written, and when two of them mean the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_TOLERANCE = Fraction(1, 10**6)
_MOST_DIGITS = 1000
_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}")


@dataclass(frozen=True, slots=True)
class Number:
    """A number and how it was written.

    Attributes:
        value: The number.
        places: Digits behind its decimal point; None where it was written as a fraction or a power.
        percent: Whether it is one of per cent; ``value`` is a hundredth of what was written.
    """

    value: Fraction
    places: int | None = None
    percent: bool = False

    def equals(self, gold: Number) -> bool:
        """Whether both mean the same.

        Integers, and decimals with as many digits behind the point, must be equal exactly. Anything else may be
        rounded: to six digits, and where one is an integer, to a millionth. Where one alone is a percentage, the
        other may mean per cent too, unless it is at most 1.

        Example:
            >>> third, rounded = Number(Fraction(1, 3)), Number(Fraction("0.333333"), places=6)
            >>> rounded.equals(third), Number(Fraction(12345679), 0).equals(Number(Fraction(12345678), 0))
            (True, False)
        """
        if _close(self, gold):
            return True
        if self.percent == gold.percent:
            return False
        marked, bare = (self, gold) if self.percent else (gold, self)
        return abs(bare.value) > 1 and _close(Number(marked.value * 100, marked.places), bare)


def decimal_number(text: str, *, formula: bool) -> Number | None:
    """Reads ``1,234.50e-3``; None where it is written in no known way, or has too many digits.

    Args:
        text: Digits, commas, points, perhaps an exponent.
        formula: Whether a comma may only group digits; else ``1,2`` is a list, whose last number is read.

    Example:
        >>> decimal_number("1,234.50", formula=True), decimal_number("1,2", formula=True)
        (Number(value=Fraction(2469, 2), places=2, percent=False), None)
    """
    digits, has_exponent, exponent = text.lower().partition("e")
    whole, _, rest = digits.partition(".")
    if "," in whole and not _GROUPED.fullmatch(whole):
        if formula:
            return None
        whole = whole.rpartition(",")[2]  # a list without spaces
    whole = whole.replace(",", "")
    if (
        "." in rest
        or len(whole) + len(rest) > _MOST_DIGITS
        or len(exponent) > 5
        or abs(int(exponent or 0)) > _MOST_DIGITS
    ):
        return None
    value = Fraction(int(whole + rest or "0"), 10 ** len(rest)) * Fraction(10) ** int(exponent or 0)
    return Number(value, None if has_exponent else len(rest))


def power(base: Number | None, exponent: int | None) -> Number | None:
    """A power with an integer exponent; None where there is none, or it has too many digits."""
    if base is None or exponent is None or (base.value == 0 and exponent <= 0):
        return None
    size = max(base.value.numerator.bit_length(), base.value.denominator.bit_length())
    return Number(base.value**exponent) if size * abs(exponent) <= 4 * _MOST_DIGITS else None


def quotient(above: Number | None, below: Number | None) -> Number | None:
    """One number by another; None where there is no quotient."""
    if above is None or below is None or not below.value:
        return None
    return Number(above.value / below.value)


def fraction_of(above: Fraction | None, below: Fraction | None) -> Fraction | None:
    """One fraction by another; None where there is no quotient."""
    return above / below if above is not None and below else None


def _close(number: Number, gold: Number) -> bool:
    if number.value == gold.value:
        return True
    is_exact = number.value.denominator == gold.value.denominator == 1
    if is_exact or (number.places is not None and number.places == gold.places):
        return False
    size = abs(gold.value)
    if 1 in (number.value.denominator, gold.value.denominator):
        size = min(Fraction(1), size)
    return abs(number.value - gold.value) <= _TOLERANCE * size
