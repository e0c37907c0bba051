"""What every sandbox is: it takes code, and gives back what the code printed and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gspo_rllib.errors import SettingError

MEBIBYTE = 1 << 20
FLOOD_CHARS = 1_000_000
"""Printing more than this ends the run: what is dropped beyond ``output_chars`` still costs time to carry."""

ERROR_CHARS = 200
"""An error message is cut here, because it quotes names and values of the model's choosing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """How much a single ``run`` may use.

    Args:
        seconds: Wall time, 0.05 to 600.
        memory_mib: Memory of the interpreted program in MiB, 16 to 65536.
        output_chars: Printed characters that are kept, 1 to 100,000; more are dropped.
        code_chars: Longest code that is run at all, 1 to 100,000 characters.

    Raises:
        SettingError: A limit is out of its range.

    Example:
        >>> SandboxLimits(seconds=0.5).output_chars
        2000
        >>> SandboxLimits(seconds=0)
        Traceback (most recent call last):
        gspo_rllib.errors.SettingError: seconds=0: must be a number from 0.05 to 600.
    """

    seconds: float = 2.0
    memory_mib: int = 128
    output_chars: int = 2_000
    code_chars: int = 20_000

    def __post_init__(self) -> None:
        if (
            isinstance(self.seconds, bool)
            or not isinstance(self.seconds, int | float)
            or not 0.05 <= self.seconds <= 600
        ):
            raise SettingError(f"seconds={self.seconds!r}: must be a number from 0.05 to 600.")
        for name, low, high in (("memory_mib", 16, 65_536), ("output_chars", 1, 100_000), ("code_chars", 1, 100_000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise SettingError(f"{name}={value!r}: must be an integer from {low} to {high}.")


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How a run ended.

    Attributes:
        output: What the code printed, at most ``output_chars`` characters.
        error: None if the code ran to its end, else a line such as ``"ZeroDivisionError: division by zero (line 2)"``.
        timed_out: Whether the code was stopped because its time was up.
        state_lost: Whether the session's variables are gone; the next run starts in a fresh interpreter.
    """

    output: str
    error: str | None = None
    timed_out: bool = False
    state_lost: bool = False


class Sandbox(Protocol):
    """A Python session that can neither read nor change anything outside itself.

    Variables live from one run to the next, until a run is stopped by its time limit or takes its interpreter down.
    """

    backend: str

    def run(self, code: str) -> SandboxResult:
        """Runs code; whatever the code is or does, this returns, and within the limits."""
        ...

    def close(self) -> None:
        """Ends the session and frees what it holds; a second call is harmless."""
        ...


def refusal(code: str, limits: SandboxLimits) -> SandboxResult | None:
    """The result for code that is not even tried, or None for code to run.

    Example:
        >>> refusal("print(1)", SandboxLimits()) is None
        True
        >>> refusal("x" * 30, SandboxLimits(code_chars=20)).error
        'the code has 30 characters, at most 20 are run'
        >>> refusal(chr(0xD800), SandboxLimits()).error
        'SyntaxError: the code holds half of a character (a lone surrogate)'
    """
    if len(code) > limits.code_chars:
        return SandboxResult("", f"the code has {len(code)} characters, at most {limits.code_chars} are run")
    if any("\ud800" <= character <= "\udfff" for character in code):
        return SandboxResult("", "SyntaxError: the code holds half of a character (a lone surrogate)")
    return None


def error_line(kind: str, message: str, line: int | None = None) -> str:
    """One short line for an exception.

    Example:
        >>> error_line("NameError", "name 'x' is not defined", 3)
        "NameError: name 'x' is not defined (line 3)"
        >>> error_line("SystemExit", "")
        'SystemExit'
        >>> len(error_line("NameError", "x" * 10_000, 3))
        209
    """
    text = " ".join(f"{kind}: {message}".split()) if message else kind
    text = text if len(text) <= ERROR_CHARS else f"{text[: ERROR_CHARS - 1]}…"
    return f"{text} (line {line})" if line else text
