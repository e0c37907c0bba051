"""A verifier that is named by its module, as users name theirs."""

from __future__ import annotations


def halves(reply: str, answer: str, row: dict) -> float:
    return 0.5 if str(row["question"])[0] in reply else float(reply == answer)
