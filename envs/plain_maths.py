"""The same mathematics in fewer characters: one minus, one fraction, no typography, no LaTeX spacing.

Every rule is one pass over the text, so the cost grows with its length.
"""

from __future__ import annotations

import re
import unicodedata

MINUSES = "\u2212\u2012\u2013\ufe63\uff0d\u2010\u2011"
"""Characters that are written for a minus: the sign itself, dashes as wide as a digit, and hyphens."""

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad"))
_SIGNS = {ord(minus): "-" for minus in MINUSES} | {ord("∶"): ":", ord("⋅"): "×", ord("·"): "×", ord("∙"): "×"}
_RAISED = {"⁰": "0", "¹": "1", "²": "2", "³": "3", "⁴": "4", "⁵": "5", "⁶": "6", "⁷": "7", "⁸": "8", "⁹": "9", "⁻": "-"}
_RAISED_RUN = re.compile(f"[{''.join(_RAISED)}]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")
_GROUP_SPACE = re.compile(r"(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")

_COMMANDS = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\times": "×", "\\cdot": "×", "\\ast": "×",
    "\\div": "÷", "\\pm": "±", "\\mp": "±", "\\approx": "≈", "\\simeq": "≈", "\\equiv": "≡", "\\left": "",
    "\\right": "",
    "\\degree": "°", "\\quad": " ", "\\qquad": " ", "\\displaystyle": " ", "\\textstyle": " ", "\\pounds": "£",
    "\\euro": "€", "\\bf": " ", "\\rm": " ",
}  # fmt: skip
_COMMAND = re.compile(r"\\[A-Za-z]++")
_WRITTEN_TEXT = re.compile(
    r"\\(?:text[a-z]*+|math(?:rm|bf|it|sf|tt|bb|cal)|mbox|operatorname|boldsymbol|bm|boxed)\s*+\{"
)
_RULES = [
    (re.compile(r"\{,\}(?=[0-9]{3}(?![0-9]))|(?<=[0-9])(?:\\[,;: !]|~)(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"(?<=[0-9])_(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"(?<=[0-9])\{,\}(?=[0-9])"), "."),
    (re.compile(r"(?<![A-Za-z])(USD?|EUR|GBP|INR|CHF|JPY|CNY|AUD|CAD|Rs\.?)(?=[0-9])"), r"\1 "),
    (re.compile(r"\^\s?\{\s?\\circ\s?\}|\^\s?\\circ(?![A-Za-z])"), "°"),
    (re.compile(r"\\[,;:! ()\[\]]|~|\$\$"), " "),
    (re.compile(r"\\([%$#&_{}])"), r"\1"),
    (re.compile(r"(?<=[0-9])\*\*(?=[0-9])"), "^"),
    (re.compile(r"\*\*|__|`"), " "),
]


_SPACED_GROUPS = re.compile(r"(?<![0-9.,])([1-9][0-9]{0,2})((?: [0-9]{3})++)(?![0-9])")


def plain_maths(text: str) -> str:
    r"""A text whose numbers are written in one way each.

    Example:
        >>> plain_maths("−1½ · 10⁵ \\text{ kg}"), plain_maths(r"\dfrac34"), plain_maths(r"1{,}234\,567")
        ('-1\\frac{1}{2} × 10^{5}   kg ', '\\frac34', '1,234,567')
    """
    if not text.isascii():
        text = _GROUP_SPACE.sub(",", text.translate(_INVISIBLE))
        text = _RAISED_RUN.sub(lambda run: "^{" + "".join(_RAISED[raised] for raised in run[0]) + "}", text)
        text = _VULGAR.sub(_written_out, text)
        text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)
        text = "".join(str(unicodedata.decimal(one)) if one.isdecimal() and one > "9" else one for one in text)
    for pattern, instead in _RULES[:6]:
        text = pattern.sub(instead, text)
    text = _COMMAND.sub(lambda command: _COMMANDS.get(command[0], command[0]), _without_text_commands(text))
    for pattern, instead in _RULES[6:]:
        text = pattern.sub(instead, text)
    return _SPACED_GROUPS.sub(_joined, text)


def _written_out(vulgar: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", vulgar[0]).partition("\u2044")
    return f"\\frac{{{above}}}{{{below}}}" if below else vulgar[0]


def _joined(groups: re.Match[str]) -> str:
    """``10 000`` as ``10,000``; ``100 200`` are two numbers."""
    is_one = len(groups[1]) < 3 or " 0" in groups[2]
    return groups[0].replace(" ", ",") if is_one else groups[0]


def _without_text_commands(text: str) -> str:
    """``\\text{ kg}`` as `` kg ``: the command and its own braces go, what is between them stays."""
    if not _WRITTEN_TEXT.search(text):
        return text
    kept: list[str] = []
    open_braces: list[bool] = []  # whether each open brace belongs to such a command
    place = 0
    while place < len(text):
        command = _WRITTEN_TEXT.match(text, place) if text[place] == "\\" else None
        if command:
            open_braces.append(True)
            kept.append(" ")
            place = command.end()
            continue
        if text[place] == "\\" and place + 1 < len(text):
            kept.append(text[place : place + 2])
            place += 2
            continue
        mine = False
        if text[place] == "{":
            open_braces.append(False)
        elif text[place] == "}" and open_braces:
            mine = open_braces.pop()
        kept.append(" " if mine else text[place])
        place += 1
    return "".join(kept)
