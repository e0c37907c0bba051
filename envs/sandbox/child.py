"""The interpreter loop that runs *inside* a CPython sandbox; nothing else may start it.

Its source is handed to a confined interpreter as ``python -c``, with four arguments: memory (MiB), seconds, characters
of output to keep, and the filter of system calls that it puts on, in hexadecimal. It imports nothing of this project
and only modules that are built in or small.

Request  16 bytes nonce, 4 bytes length, then the code in UTF-8
Reply    16 bytes nonce of the request it answers, 1 byte (0 ran, 1 failed, 2 timed out), 4 bytes length of the output,
         4 of the error, then both in UTF-8; the first one answers a nonce of zeros, which is never sent: it is ready

A nonce is drawn outside for every request, so no reply can be written ahead of its request. Every run begins with the
built-in functions as they were, and what it imports as ``__main__`` is its own variables, not this module.
"""

import builtins
import io
import os
import resource
import signal
import struct
import sys
import types
from typing import Any

RAN, FAILED, TIMED_OUT = range(3)
NONCE = 16
_FLOOD_CHARS = 1_000_000
_SET_SECCOMP, _FILTER, _NO_NEW_PRIVILEGES = 22, 2, 38


class Printed(io.TextIOBase):
    """Keeps the first characters that are written, and stops a program that will not stop printing.

    Example:
        >>> printed = Printed(4)
        >>> print("abcdef", file=printed)
        >>> printed.text()
        'abcd'
    """

    def __init__(self, kept_chars: int) -> None:
        self._left = kept_chars
        self._seen = 0
        self._parts: list[str] = []

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Keeps what still fits."""
        text = str(text)
        self._seen += len(text)
        if self._left > 0:
            self._parts.append(text[: self._left])
            self._left -= len(text)
        if self._seen > _FLOOD_CHARS:
            raise OverflowError(f"more than {_FLOOD_CHARS} characters printed")
        return len(text)

    def text(self) -> str:
        """What was kept."""
        return "".join(self._parts)


def describe(error: BaseException) -> str:
    """One line: the exception and the line of the program it came from.

    Example:
        >>> try:
        ...     exec(compile("a = 1\\na / 0", "<code>", "exec"), {})
        ... except ZeroDivisionError as error:
        ...     describe(error)
        'ZeroDivisionError: division by zero (line 2)'
    """
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<code>":
            line = trace.tb_lineno
        trace = trace.tb_next
    text = " ".join(f"{type(error).__name__}: {message}".split()) if message else type(error).__name__
    text = text if len(text) <= 200 else text[:199] + "…"
    return f"{text} (line {line})" if line else text


def run(code: str, variables: dict[str, Any], seconds: float, output_chars: int) -> tuple[int, str, str]:
    """Runs code among the session's variables; returns the status, the output and the error."""
    printed = Printed(output_chars)
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), printed, printed
    late = False

    def ring(signum: int, frame: Any) -> None:
        nonlocal late
        late = True
        raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        exec(compile(code, "<code>", "exec"), variables)
    except BaseException as error:  # noqa: BLE001 -- whatever the program raises is its result, SystemExit included
        signal.setitimer(signal.ITIMER_REAL, 0)
        return TIMED_OUT if late else FAILED, printed.text(), "" if late else describe(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return TIMED_OUT if late else RAN, printed.text(), ""


def _reply(channel: Any, nonce: bytes, status: int, output: str, error: str) -> None:
    parts = [text.encode("utf-8", "replace") for text in (output, error)]
    channel.write(nonce + struct.pack(">BII", status, len(parts[0]), len(parts[1])) + parts[0] + parts[1])
    channel.flush()


def confine(memory_mib: int, program: bytes) -> None:
    """Limits this process, and puts the filter on, for good."""
    # 64 MiB for the interpreter itself and its libraries.
    size = (memory_mib + 64) << 20
    limits = {resource.RLIMIT_AS: size, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NOFILE: 32, resource.RLIMIT_CORE: 0}
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))
    import ctypes

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    whole = Filter(len(program) // 8, program)
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(whole), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


def main() -> None:
    """Serves requests until standard input ends."""
    memory_mib, seconds, output_chars = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    os.closerange(3, 64)  # what it was started through
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    for descriptor in range(3):
        os.close(descriptor)
    confine(memory_mib, bytes.fromhex(sys.argv[4]))
    module, shared = types.ModuleType("__main__"), vars(builtins)
    variables, pristine = vars(module), dict(shared)
    sys.modules["__main__"] = module
    _reply(replies, bytes(NONCE), RAN, "", "")
    while len(header := requests.read(NONCE + 4)) == NONCE + 4:
        nonce, length = header[:NONCE], int.from_bytes(header[NONCE:])
        code = requests.read(length).decode("utf-8", "replace")
        # What an earlier run has put in the place of a built-in function is gone.
        shared.update(pristine)
        for name in shared.keys() - pristine.keys():
            del shared[name]
        variables["__builtins__"] = builtins
        _reply(replies, nonce, *run(code, variables, seconds, output_chars))


if __name__ == "__main__":
    main()
