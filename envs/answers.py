"""Which part of a reply states its answer.

What precedes ``</think>`` never does, and a reply whose reasoning is not closed states none. Of the rest it is what is
boxed, else what follows the last mark, else all of it. A long reply is judged by its end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_REASONING = re.compile(
    r"<(?P<closed>/)?(?:seed:)?(?:think|thinking|thought|reasoning)>|\[(?P<closes>/)?THINK\]|◁(?P<shuts>/)?think▷",
    re.IGNORECASE,
)
_MARKED = re.compile(r"####|\banswer\s*+(?:is\b\s*+)?[:=](?:\*\*)?|\banswer\s++is\b", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*+(?:\{|(?P<bare>[0-9]))|\\.|[{}]", re.DOTALL)
_LONGEST = 100_000  # characters from the end that are looked at

NO_ANSWER = "the reply states no answer"
UNCLOSED = "the reply ends within its reasoning"


@dataclass(frozen=True, slots=True)
class Stated:
    """The answer of a reply.

    Attributes:
        text: What is stated; empty where nothing is.
        is_boxed: Whether it was in a ``\\boxed{}``, so that it is one formula.
        missing: Why there is no answer; None where there is one.
    """

    text: str
    is_boxed: bool = False
    missing: str | None = None


def stated_answer(reply: str) -> Stated:
    """Finds the answer of a reply.

    Example:
        >>> stated_answer("<think>5?</think> It is 6."), stated_answer("<think>5")
        (Stated(text='It is 6.', is_boxed=False, missing=None), \
Stated(text='', is_boxed=False, missing='the reply ends within its reasoning'))
    """
    answering = _answering_part(reply)
    if answering is None:
        return Stated("", missing=UNCLOSED)
    reply = answering[-_LONGEST:]
    boxed, unfinished = _boxed(reply)
    if boxed is not None:
        return Stated(boxed, is_boxed=True)
    if unfinished:
        return Stated("", missing="the reply ends within its \\boxed{}")
    marks = list(_MARKED.finditer(reply))
    text = reply[marks[-1].end() :].strip().removesuffix(".").strip() if marks else reply.strip()
    return Stated(text, missing=None if text else NO_ANSWER)


def final_answer(reply: str) -> str:
    """The part of a reply that states its answer; empty where none does.

    Example:
        >>> final_answer("6 * 7 = 42, so #### 42"), final_answer(r"so \\boxed{x^{2}}."), final_answer(" Paris ")
        ('42', 'x^{2}', 'Paris')
        >>> final_answer("The answer is: 3/4."), final_answer("<think>5 or 6?</think> 6"), final_answer("<think>6")
        ('3/4', '6', '')
    """
    return stated_answer(reply).text


def _answering_part(reply: str) -> str | None:
    """What follows the reasoning; None where that is not closed."""
    marks = list(_REASONING.finditer(reply))
    if not marks:
        return reply
    return reply[marks[-1].end() :] if any(marks[-1].groups()) else None


def _boxed(text: str) -> tuple[str | None, bool]:
    """What the last box that is closed and not empty holds, None without one; and whether one is left open."""
    if "box" not in text:
        return None, False
    opened: list[int | None] = []  # where each open brace's content starts if it is a box's, else None
    start, found = -1, None
    for match in _BOX.finditer(text):
        token = match[0]
        if match["bare"]:  # \boxed 5
            if match.start() > start:
                start, found = match.start(), match["bare"]
        elif "box" in token:
            opened.append(match.end())
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened:
            begun = opened.pop()
            if begun is not None and begun > start and text[begun : match.start()].strip():
                start, found = begun, text[begun : match.start()].strip()
    return found, any(begun is not None for begun in opened)
