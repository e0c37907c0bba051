"""A light client in a process of its own, as agents are: no SDK, and one connection for each of its threads.

python agent_client.py ADDRESSES REPLIES AT_A_TIME, the first being ``agent.addresses``, plays whatever trajectories
there are, each a conversation of so many replies, until it is ended.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def main(addresses: str, replies: str, at_a_time: str) -> None:
    """Waits for the address of an env runner, and plays there."""
    while not (files := list(Path(addresses).glob("*.json"))):
        time.sleep(0.05)
    address = json.loads(files[0].read_text())
    for _ in range(int(at_a_time)):
        threading.Thread(target=play, args=(address["url"], address["token"], int(replies))).start()


def play(url: str, token: str, replies: int) -> None:
    """Plays one trajectory after the other."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc)

    def post(path: str, key: str, body: Any) -> Any:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        connection.request("POST", f"{address.path}/{path}", json.dumps(body), headers)
        return json.loads(connection.getresponse().read() or "null")

    while True:
        session = post("sessions", token, {"wait_s": 300})
        if session is None:
            continue
        messages = [{"role": "user", "content": "3+4*2-5+1+6*1"}]
        for _ in range(replies):
            answer = post("chat/completions", session["api_key"], {"model": "policy", "messages": messages})
            messages += [answer["choices"][0]["message"], {"role": "tool", "content": "7*2-5+1+6*1"}]
        post(f"sessions/{session['id']}/finish", token, {"reward": 1.0})


if __name__ == "__main__":
    main(*sys.argv[1:])
