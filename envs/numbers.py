"""Numbers as a mathematician reads them: the last one of a text, exactly, or none.

    1,234.50   1{,}234   -$7   −7   3/4   1 3/4   \\frac34   10^5   2.5 \\times 10^{-3}   1e5   50%   5 million   6 km/h

The unit behind a number is not looked at, and neither are exponents of units (``cm^2``), subscripts, and digits within
words (``H2O``). A number that is only a part of something unevaluated (``2 + 3``, ``\\sqrt{2}``, ``2\\pi``, ``±5``,
``12:30``) is not read. What no one would write down (more than a thousand digits) is not read either, so the cost is
bounded whatever the text is.
"""

from __future__ import annotations

from fractions import Fraction

from gspo_rllib.envs.exact_numbers import Number
from gspo_rllib.envs.number_reader import NumberReader
from gspo_rllib.envs.plain_maths import plain_maths

_LONGEST_FORMULA = 2000
_BEFORE, _AFTER = 4000, 400  # characters around the last digit: enough for any number that is read, and its unit


def last_number(text: str) -> Fraction | None:
    """The last number of a text; None where there is none, or where what stands last is not a number by itself.

    Example:
        >>> last_number("from 1 to 2,500"), last_number("-3/4"), last_number("none"), last_number("2 + 3")
        (Fraction(2500, 1), Fraction(-3, 4), None, None)
    """
    number = read_number(text)
    return None if number is None else number.value


def read_number(text: str, *, formula: bool = False) -> Number | None:
    """The last number of a text, and how it was written.

    Args:
        text: Any text.
        formula: Whether the text is one formula, such as what is boxed. It then has to be a number with its unit, after
            ``x =`` perhaps, and nothing else: of the list ``1, 2`` the 2 is not the answer.
    """
    # Digits, raised ones and fractions of one character; the numerals of Chinese are letters.
    numeric = (place for place in range(len(text) - 1, -1, -1) if text[place].isnumeric() and not text[place].isalpha())
    last = next(numeric, -1)
    if last < 0 or (formula and len(text) > _LONGEST_FORMULA):
        return None
    start = max(0, last - _BEFORE)
    reader = NumberReader(plain_maths(text[start : last + _AFTER]), formula)
    reader.read()
    if formula:
        return reader.only()
    if start and reader.begins_with_it:
        return None
    return reader.last
