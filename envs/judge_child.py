"""The process that judges formulas for ``judge``; nothing else may start it.

Its source is handed to a fresh interpreter as ``python -c``, so it imports nothing of this project. The first process
only waits: it imports math-verify once, and forks. The fork judges, and is the one that may never return: the kernel
kills it when it has used up its processor time, the waiting process kills it when its wall time is over, and a new fork
takes its place within milliseconds. Both end when what started them does.

Request  4 bytes length, then JSON: {"gold": str, "reply": str, "cpu_s": float, "wall_s": float}
Reply    4 bytes length, then JSON: {"right": bool} or {"why": str}; the first one answers no request: {"ready": true},
         or {"why": str} when math-verify cannot be imported
"""

import importlib
import json
import os
import resource
import select
import signal
import struct
import sys
from typing import Any, NoReturn

LATE = "it takes too long to judge"


def _read(descriptor: int) -> Any:
    """The next message; None at the end."""
    header = _exactly(descriptor, 4)
    body = header and _exactly(descriptor, struct.unpack(">I", header)[0])
    return json.loads(body) if body else None


def _exactly(descriptor: int, size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 16))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(descriptor: int, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    view = memoryview(struct.pack(">I", len(body)) + body)
    while view:
        view = view[os.write(descriptor, view) :]


def _judge_forever(requests: int, replies: int, memory: int) -> NoReturn:
    """What the fork does."""
    math_verify = importlib.import_module("math_verify")
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # kills, whatever the interpreter is doing
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    allowed = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
    while request := _read(requests):
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
        try:
            gold, stated = (math_verify.parse(request[side], parsing_timeout=None) for side in ("gold", "reply"))
            answer: dict[str, Any] = {"right": bool(math_verify.verify(gold, stated, timeout_seconds=None))}
        except BaseException as error:  # noqa: BLE001, whatever untrusted maths raises is the outcome
            answer = {"why": f"it cannot be judged ({type(error).__name__})"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(replies, answer)
    os._exit(0)


class _Fork:
    """The fork that judges, seen from the process that waits."""

    def __init__(self, memory: int, channel: int) -> None:
        theirs, self.requests = os.pipe()
        self.replies, ours = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for descriptor in (self.requests, self.replies, channel):
                    os.close(descriptor)
                null = os.open(os.devnull, os.O_RDWR)
                for descriptor in range(3):  # so that it keeps no pipe of its starter open
                    os.dup2(null, descriptor)
                _judge_forever(theirs, ours, memory)
            finally:
                os._exit(1)
        os.close(theirs)
        os.close(ours)

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None where there is none in time. EOFError: nobody waits for it any more."""
        try:
            _write(self.requests, request)
            ready, _, _ = select.select([self.replies, 0], [], [], request["wall_s"])
            if 0 in ready:  # the next request comes after this answer, so this is the end
                raise EOFError
            answer: dict[str, Any] | None = _read(self.replies) if ready else None
        except OSError:
            return None
        return answer

    def end(self) -> str:
        """Ends the fork; returns why it gave no answer."""
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.requests)
        os.close(self.replies)
        is_late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGPROF)
        return LATE if is_late else "it takes down the process that judges it"


def main() -> None:
    """Serves requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.path[:] = json.loads(sys.argv[1])
    memory = int(sys.argv[2])
    channel = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no reply
    try:
        importlib.import_module("math_verify")
    except Exception as error:  # noqa: BLE001, said where it is known what to do
        _write(channel, {"why": f"{type(error).__name__}: {str(error)[:300]}"})
        return
    fork = _Fork(memory, channel)
    try:
        # The first formula takes longer than any other, and shows that judging works here.
        probe = fork.ask({"gold": "$1$", "reply": "$1$", "cpu_s": 60.0, "wall_s": 100.0})
        _write(channel, {"ready": True} if probe == {"right": True} else {"why": f"1 = 1 is judged {probe}"})
        while request := _read(0):
            answer = fork.ask(request)
            if answer is None:
                why = fork.end()
                fork = _Fork(memory, channel)
                answer = {"why": why}
            _write(channel, answer)
    except (BrokenPipeError, EOFError):
        pass  # nobody waits for an answer any more
    finally:
        fork.end()


if __name__ == "__main__":
    main()
