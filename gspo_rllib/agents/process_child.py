"""What the process of an agent runs: the user's function, one trajectory after the other, as it is told on a pipe.

Lines of JSON come in and go out; nothing is pickled. The function has a thread, as in the env runner's own process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import sys
from typing import Any

from gspo_rllib.agents.agent_thread import AgentThread, Outcome
from gspo_rllib.agents.function import Play, find_play
from gspo_rllib.agents.http_session import HttpSession
from gspo_rllib.agents.result import AgentResult, checked_fields, checked_result
from gspo_rllib.env_pool.calls import EnvFailure
from gspo_rllib.errors import EnvError, SettingError


def main(name: str, answers_fd: int) -> None:
    """Plays until its standard input ends.

    Args:
        name: ``"module:name"`` of the function.
        answers_fd: Descriptor of the pipe that answers are written to.
    """
    os.set_inheritable(answers_fd, False)
    # What the agent reads and writes is its own business: it must not take away what is told here.
    told = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    with os.fdopen(answers_fd, "wb", buffering=0) as answers:
        play: Play | EnvFailure
        try:
            play = find_play(name)
        except SettingError as error:
            play = EnvFailure("raised", f"in its own process, {error}")
        for line in told:
            job = json.loads(line)
            _say(answers, {"began": True})
            _say(answers, _plain(Outcome(failure=play) if isinstance(play, EnvFailure) else _played(play, job)))


def _played(play: Play, job: dict[str, Any]) -> Outcome:
    session = HttpSession(job["base_url"], key=job["key"], seed=job["seed"], name=job["name"])
    ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    AgentThread(lambda: play(job["task"], session), ended.put, name="gspo-agent")
    return ended.get()


def _plain(outcome: Outcome) -> dict[str, Any]:
    """What became of it, as JSON."""
    failure, returned = outcome.failure, outcome.returned
    if failure is None:
        try:
            known = checked_fields(returned, num_calls=None) if isinstance(returned, AgentResult) else None
            return {"result": dataclasses.asdict(known or checked_result(returned, num_calls=1))}
        except EnvError as error:
            failure = EnvFailure("invalid", str(error))
    return {"failure": [failure.kind, failure.message]}


def _say(answers: Any, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
