"""What is a secret, by its name or by its form, and texts without it: for run.json, checkpoints and messages.

This module imports nothing of the project.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MASK = "***"
"""What stands in the place of a secret."""

_SECRET_WORDS = {"key", "apikey", "token", "secret", "password", "passwd", "credential", "credentials", "auth"}
_SECRET_WORDS |= {"authorization", "bearer", "cookie"}
# Of services that models, data and judges come from, and passwords within addresses.
_SECRET_TEXTS = re.compile(
    r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA|eyJ)[\w.-]{8,}|(?<=://)[^/@\s]+(?=@)"
)


def without_secrets(value: Any, *, is_secret: bool = False) -> Any:
    """A value as JSON has it, with what looks like a secret replaced, at any depth.

    Secret is a text whose key says so, that has the form of a well-known token, or that an environment variable with
    such a name holds.

    Args:
        value: Anything; what is no plain value is named instead.
        is_secret: Whether the value is one, whatever it looks like.

    Example:
        >>> without_secrets({"api_key": "abc", "operations": 6, "url": "https://me:pw@host/x"})
        {'api_key': '***', 'operations': 6, 'url': 'https://***@host/x'}
    """
    if isinstance(value, Mapping):
        return {
            str(key): without_secrets(item, is_secret=is_secret or names_secret(str(key)))
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [without_secrets(item, is_secret=is_secret) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if is_secret:
        return MASK
    text = str(value) if isinstance(value, (str, Path)) else str(getattr(value, "__qualname__", type(value).__name__))
    return masked(text)


def masked(text: str) -> str:
    """A text with what looks like a secret replaced.

    Example:
        >>> masked("cannot reach https://me:pw@host/x with sk-0123456789")
        'cannot reach https://***@host/x with ***'
    """
    for name, held in os.environ.items():
        if len(held) >= 8 and held in text and names_secret(name):
            text = text.replace(held, MASK)
    return _SECRET_TEXTS.sub(MASK, text)


def names_secret(key: str) -> bool:
    """Whether what is kept under a name is a secret.

    Example:
        >>> names_secret("OPENAI_API_KEY"), names_secret("max_tokens")
        (True, False)
    """
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower())
    return not _SECRET_WORDS.isdisjoint(words) or "environ" in words or ("env" in words and "vars" in words)
