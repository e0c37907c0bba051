"""From a text in plain characters to the numbers in it, read from left to right, once."""

from __future__ import annotations

import re
from fractions import Fraction

from gspo_rllib.envs.exact_numbers import Number, decimal_number, fraction_of, power, quotient

_MOST_DEPTH = 8
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_LETTER_SCALES = {"k": 10**3, "m": 10**6, "b": 10**9, "bn": 10**9}  # only of money: 5 m are five metres
_CURRENCY_WORDS = frozenset(["usd", "eur", "gbp", "inr", "chf", "jpy", "cny", "aud", "cad", "rs", "us"])
_CURRENCY_SIGNS = "$€£¥₹"
_RELATIONS = "=≈≡:"
_PARTS_BEFORE = "+*×÷/±√"  # a number behind one of these is a part of something larger
_PARTS_AFTER = frozenset(["π", "√", "∞", "\\pi", "\\sqrt", "\\infty", "\\frac", "\\log", "\\ln", "\\sin", "\\cos"])
_OPERANDS = ("number", "word", "command")

_TOKEN = re.compile(
    r"""(?P<number>[0-9]++(?:,[0-9]++)*+(?:\.[0-9]++)*+(?:[eE][+-]?[0-9]++(?![0-9A-Za-z.]))?+
           |\.[0-9]++(?:[eE][+-]?[0-9]++(?![0-9A-Za-z.]))?+)
       |(?P<word>[^\W\d_][^\W_]*+)|(?P<command>\\[A-Za-z]++)|(?P<line>\s*\n\s*)|(?P<space>\s++)|(?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)


class NumberReader:
    """Goes through a text once and keeps what it reads as numbers."""

    def __init__(self, text: str, formula: bool) -> None:
        found = [(match.lastgroup or "", match[0]) for match in _TOKEN.finditer(text)]
        self._kinds = [kind for kind, _ in found]
        self._texts = [part for _, part in found]
        self._formula = formula
        self._found: list[tuple[int, int, Number | None]] = []  # first token, the token behind, what it is

    @property
    def last(self) -> Number | None:
        """The last number; None where what stands last is not one by itself."""
        return self._found[-1][2] if self._found else None

    @property
    def begins_with_it(self) -> bool:
        """Whether that number is the first thing in the text, so that it may have begun before."""
        return bool(self._found) and self._found[-1][0] == 0

    def read(self) -> None:
        """Finds the numbers."""
        place = 0
        while place < len(self._texts):
            kind, text = self._kinds[place], self._texts[place]
            if text in ("^", "_"):  # an exponent or subscript of something else
                place = self._behind_atom(place + 1)
            elif kind == "number" or text == "\\frac":
                place = self._take(place)
            elif kind == "command" and self._text(place + 1) in ("{", "["):
                place = self._take_command(place)
            else:
                place += 1

    def only(self) -> Number | None:
        """The number, if a formula is one and nothing else."""
        relation = max((place for place, text in enumerate(self._texts) if text in tuple(_RELATIONS)), default=-1)
        numbers = [one for one in self._found if one[0] > relation]
        if len(numbers) != 1:
            return None
        start, end, number = numbers[0]
        before = "".join(self._texts[relation + 1 : start]).strip(" \n({$-" + _CURRENCY_SIGNS)
        after = "".join(self._texts[end:]).strip(" \n)}$.")
        if re.search(r"[^\w\s.'-]", before) or re.search(r"[^\w\s./^{}°'\"€£¥₹$%·-]|^[\^!-]|,", after):
            return None
        is_variable = re.fullmatch(r"/?\s*[inxyz]", after) or len(before) == 1
        return None if is_variable else number

    def _text(self, place: int) -> str:
        return self._texts[place] if 0 <= place < len(self._texts) else ""

    def _kind(self, place: int) -> str:
        return self._kinds[place] if 0 <= place < len(self._kinds) else ""

    def _skip_space(self, place: int) -> int:
        return place + 1 if self._kind(place) == "space" else place

    def _behind_atom(self, place: int) -> int:
        place = self._skip_space(place)
        if self._text(place) not in ("{", "["):
            return place + (2 if self._text(place) in ("-", "+") else 1)
        closing, opening, depth = {"{": "}", "[": "]"}[self._text(place)], self._text(place), 0
        while place < len(self._texts):
            depth += (self._texts[place] == opening) - (self._texts[place] == closing)
            place += 1
            if depth == 0:
                break
        return place

    def _take_command(self, place: int) -> int:
        """A command with an argument: whatever number is in it is not the answer by itself."""
        end = place + 1
        while self._text(end) in ("{", "["):
            end = self._behind_atom(end)
        if "number" in self._kinds[place:end]:
            self._found.append((place, end, None))
        return end

    def _take(self, place: int) -> int:
        start, negative, alone = self._sign(place)
        number, end = self._magnitude(place)
        if number is not None and negative:
            number = Number(-number.value, number.places, number.percent)
        self._found.append((start, end, number if alone else None))
        return end

    def _sign(self, place: int) -> tuple[int, bool, bool]:
        """Where the number with its sign begins, whether that is a minus, and whether the number stands alone."""
        before = place - 1
        money = self._text(before - 1 if self._kind(before) == "space" else before)
        if money and (money in _CURRENCY_SIGNS or money.lower() in _CURRENCY_WORDS):
            before -= 2 if self._kind(before) == "space" else 1
        spaced = self._kind(before) == "space"
        mark = before - spaced
        if self._text(before) == ":" and self._kind(before - 1) == "number":  # 12:30
            return before, False, False
        if self._text(mark).lower() in ("minus", "negative"):
            return mark, True, True
        if self._text(mark) == "-":
            return (mark, True, True) if self._is_unary(mark, spaced) else (before + 1, False, not self._formula)
        if self._text(mark) in tuple(_PARTS_BEFORE):
            whole = self._text(mark) in "±√" or self._ends_operand(mark - 1)
            return before + 1, False, not whole
        return before + 1, False, True

    def _is_unary(self, minus: int, spaced: bool) -> bool:
        """Whether a minus is a sign; else it is a difference, a range, a hyphen, a dash or a bullet."""
        before = minus - 1
        if before < 0 or self._kind(before) == "line":
            return not spaced or self._formula
        if self._kind(before) == "space":
            if before == 0:
                return not spaced or self._formula
            behind = self._text(before - 1)
            if behind and behind in "=≈≡<>(,[{:":
                return True
            return not spaced and not self._ends_operand(before)
        if self._text(before) == "-" or self._kind(before) in _OPERANDS:
            return False
        return not self._ends_operand(before)

    def _ends_operand(self, place: int) -> bool:
        """Whether a number or a closed formula ends here, so that an operator behind it takes two."""
        if self._kind(place) == "space":
            place -= 1
            return self._kind(place) == "number" or (bool(self._text(place)) and self._text(place) in ")}]%°")
        if self._text(place) == "$":  # closes a formula, or opens one
            return self._kind(place - 1) in ("number", "command") or self._text(place - 1) in ("}", ")")
        return self._kind(place) in _OPERANDS or self._text(place) in tuple(")}]%°")

    def _magnitude(self, place: int) -> tuple[Number | None, int]:
        if self._text(place) == "\\frac":
            value, end = self._fraction(place, _MOST_DEPTH)
            number = None if value is None else Number(value)
        else:
            number = decimal_number(self._texts[place], formula=self._formula)
            number, end = self._extended(number, place + 1)
        number, end = self._scaled(number, end, place)
        return (number if self._stands_alone(end) else None), end

    def _extended(self, number: Number | None, end: int) -> tuple[Number | None, int]:
        """A decimal number with what may follow: an exponent, a power of ten, a denominator, a fraction."""
        if self._text(end) == "^":
            exponent, end = self._exponent(end)
            number = power(number, exponent)
        after = self._skip_space(end)
        if self._text(after) in ("×", "*") and self._text(self._skip_space(after + 1)) == "10":
            ten = self._skip_space(after + 1)
            if self._text(ten + 1) == "^":
                exponent, end = self._exponent(ten + 1)
                ten_to = power(Number(Fraction(10)), exponent)
                return (Number(number.value * ten_to.value) if number and ten_to else None), end
        if self._text(after) == "/" and self._kind(self._skip_space(after + 1)) == "number":
            below = self._skip_space(after + 1)
            denominator, end = self._power_at(below)
            if self._text(end) == "/" and self._kind(end + 1) == "number":  # 3/4/2024
                return None, self._behind_slashes(end)
            return quotient(number, denominator), end
        if number is not None and number.places == 0 and self._is_mixed(after, adjacent=after == end):
            part, end = self._magnitude_of_part(after)
            return (Number(number.value + part) if part is not None and 0 < part < 1 else None), end
        return number, end

    def _power_at(self, place: int) -> tuple[Number | None, int]:
        number, end = decimal_number(self._texts[place], formula=True), place + 1
        if self._text(end) == "^":
            exponent, end = self._exponent(end)
            number = power(number, exponent)
        return number, end

    def _behind_slashes(self, end: int) -> int:
        while self._text(end) == "/" and self._kind(end + 1) == "number":
            end += 2
        return end

    def _is_mixed(self, place: int, *, adjacent: bool) -> bool:
        if self._text(place) == "\\frac":
            return True
        parts = self._texts[place : place + 3]
        simple = not adjacent and self._kind(place) == self._kind(place + 2) == "number" and parts[1] == "/"
        return (
            simple and all(part.isdecimal() and len(part) < 9 for part in parts[::2]) and int(parts[0]) < int(parts[2])
        )

    def _magnitude_of_part(self, place: int) -> tuple[Fraction | None, int]:
        if self._text(place) == "\\frac":
            return self._fraction(place, _MOST_DEPTH)
        return Fraction(int(self._texts[place]), int(self._texts[place + 2])), place + 3

    def _exponent(self, caret: int) -> tuple[int | None, int]:
        """The exponent behind a caret; None where it is no small integer, or has an exponent itself."""
        start = self._skip_space(caret + 1)
        end = self._behind_atom(caret + 1)
        written = "".join(self._texts[start:end]).strip("{} ").replace(" ", "")
        while self._text(end) == "^":
            end, written = self._behind_atom(end + 1), ""
        is_small = re.fullmatch(r"[+-]?[0-9]{1,4}", written)
        return (int(written) if is_small else None), end

    def _fraction(self, place: int, depth: int) -> tuple[Fraction | None, int]:
        place += 1
        if self._kind(self._skip_space(place)) == "number":  # \frac34
            place = self._skip_space(place)
            digits = self._texts[place]
            if len(digits) == 2 and digits.isdecimal():
                return fraction_of(Fraction(int(digits[0])), Fraction(int(digits[1]))), place + 1
        parts: list[Fraction | None] = []
        for _ in range(2):
            place = self._skip_space(place)
            part, place = self._group(place, depth)
            parts.append(part)
        return fraction_of(*parts), place

    def _group(self, place: int, depth: int) -> tuple[Fraction | None, int]:
        """A number in braces, or one without."""
        end = self._behind_atom(place)
        if self._text(place) != "{":
            number = decimal_number(self._texts[place], formula=True) if self._kind(place) == "number" else None
            return (number.value if number else None), end
        inner = [
            (k, t) for k, t in zip(self._kinds[place + 1 : end - 1], self._texts[place + 1 : end - 1], strict=True)
        ]
        if depth == 0 or len(inner) > 200:
            return None, end
        negative = False
        while inner and (inner[0][0] == "space" or inner[0][1] in ("-", "+")):
            negative ^= inner.pop(0)[1] == "-"
        start = end - 1 - len(inner)
        if self._text(start) == "\\frac":
            value, behind = self._fraction(start, depth - 1)
        elif self._kind(start) == "number":
            number, behind = self._power_at(start)
            value = number.value if number else None
        else:
            return None, end
        if value is None or self._skip_space(behind) != end - 1:
            return None, end
        return (-value if negative else value), end

    def _scaled(self, number: Number | None, end: int, start: int) -> tuple[Number | None, int]:
        """Applies per cent, per mille, and ``million``."""
        after = self._skip_space(end)
        mark = self._text(after)
        if mark == "per" and self._text(after + 2) == "cent":
            mark, after = "percent", after + 2
        if mark in ("%", "‰") or mark.lower() in ("percent", "pct"):
            share = Fraction(1, 1000 if mark == "‰" else 100)
            return (Number(number.value * share, number.places, percent=mark != "‰") if number else None), after + 1
        scale = _SCALES.get(mark.lower())
        if scale is None and after == end and self._text(start - 1) in tuple(_CURRENCY_SIGNS):
            scale = _LETTER_SCALES.get(mark.lower())
        if scale is None:
            return number, end
        return (Number(number.value * scale) if number else None), after + 1

    def _stands_alone(self, end: int) -> bool:
        after = self._skip_space(end)
        text = self._text(after)
        if text in _PARTS_AFTER:
            return False
        if text == ":" and after == end and self._kind(end + 1) == "number":
            return False
        if self._kind(end) == "word" and re.search("[0-9]", text):  # 5a3f
            return False
        if text in ("×", "*", "/", "+", "^"):
            follower = self._skip_space(after + 1)
            return (
                text in ("*", "/") and self._kind(follower) != "number" and self._text(follower) not in ("(", "\\frac")
            )
        return True
