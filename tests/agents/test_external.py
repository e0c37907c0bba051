"""Agents that somebody else runs: what is handed out is settled once, and a run loses nothing to a bad harness."""

from __future__ import annotations

import http.client
import json
import logging
import os
import pickle
import re
import socket
import stat
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gspo_rllib.agents.address import in_url
from gspo_rllib.agents.external import TOKEN_VARIABLE, ExternalDoor
from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.env_runners.agent_env_runner import AgentEnvRunner
from gspo_rllib.env_runners.agent_slots import AgentSlots
from gspo_rllib.errors import SettingError
from tests.agents.harness import Harness, post
from tests.env_runners.small_runner import runner_config

TASKS = [{"question": f"question {number}"} for number in range(9)]
Start = Callable[..., tuple[AgentEnvRunner, Harness]]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def weights(tiny_dense: str) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(tiny_dense, dtype="float32").state_dict()
    return {name: tensor.numpy().copy() for name, tensor in state.items()}


@pytest.fixture
def start(tiny_dense: str, weights: dict[str, Any], tmp_path: Path) -> Iterator[Start]:
    """Starts a runner that samples groups of two in the background; returns it with its harness."""
    runners: list[AgentEnvRunner] = []

    def begin(groups: int = 1, **changes: Any) -> tuple[AgentEnvRunner, Harness]:
        settings = {"workers": "external", "play": None, "host": "127.0.0.1", "tasks": TASKS, "history": "sampled"}
        settings |= {"trajectory_timeout_s": 60.0, "idle_timeout_s": 60.0, "addresses": str(tmp_path / "a")}
        config = runner_config(tiny_dense, None, **(settings | changes))
        runner = AgentEnvRunner(config=config, worker_index=0, num_workers=0)
        runners.append(runner)
        runner.set_weights(weights, 1)
        runner.sample_in_background([f"g/{number}" for number in range(groups)])
        assert runner._door is not None and runner._door._file is not None
        return runner, Harness(runner._door._file)

    yield begin
    for runner in runners:
        runner.stop()


def _file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "a").glob("runner-0-*.json")
    return file


def _groups(runner: AgentEnvRunner, count: int) -> list[Any]:
    groups, deadline = [], time.monotonic() + 30
    while len(groups) < count and time.monotonic() < deadline:
        groups += runner.take_finished(5.0).groups
    return groups


def _failure(runner: AgentEnvRunner) -> str:
    while not (report := runner.take_finished(5.0)).given_up:
        pass
    assert not report.groups
    return report.errors[0]


def test_a_trajectory_is_taken_once_and_settled_once(start: Start) -> None:
    runner, harness = start()
    one, other = harness.take(), harness.take()
    assert post(f"{harness.url}/sessions", harness.token, {"wait_s": 0}) == (204, None)
    assert one["id"] != other["id"] and one["task"] == other["task"] and one["task"] in TASKS
    assert one["seed"] == other["seed"] and (one["attempt"], one["name"]) == (0, "g/0/0/0/0")
    assert 50 < one["deadline"] - time.time() <= 60 and one["trajectory_timeout_s"] == one["idle_timeout_s"] == 60.0
    status, answer = harness.chat(one)
    assert status == 200 and answer["choices"][0]["message"]["role"] == "assistant"
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda reward: harness.settle(one, reward=reward), range(8)))
    assert sorted(status for status, _ in answers) == [200] + [409] * 7
    (taken,) = [reward for reward, (status, _) in enumerate(answers) if status == 200]
    late = harness.settle(one, "fail", reason="second thoughts")
    assert late[0] == 409 and late[1]["error"]["message"] == "this session was settled before; nothing was changed."
    assert harness.chat(one)[0] == 410
    harness.chat(other), harness.chat(other)
    result = {"call_rewards": [0.5, 0.25], "success": True, "reward_parts": {"form": 1}, "truncated_by": "time"}
    assert harness.settle(other, reward=2, **result)[0] == 200
    (group,) = _groups(runner, 1)
    first, second = group.episodes
    assert first.get_return() == taken and len(first) == 1
    assert second.get_rewards() == [0.5, 2.25] and second.get_infos(-1)["reward_parts"] == {"form": 1.0}
    assert second.get_infos(-1)["success"] is True and second.custom_data["truncated_by"] == "time"
    assert harness.settle(other, reward=1)[0] == 409


def test_a_result_that_is_none_is_refused_in_these_words_and_changes_nothing(start: Start) -> None:
    runner, harness = start()
    session = harness.take()
    path = f"{harness.url}/sessions/{session['id']}/finish"
    assert "not received a single reply" in harness.settle(session, reward=1.0)[1]["error"]["message"]
    harness.chat(session)
    number = "it must be a finite number."
    for body, words in [
        (b'{"reward": NaN}', f"reward is nan; {number}"),
        (b'{"reward": Infinity}', f"reward is inf; {number}"),
        (b'{"reward": 1e999}', f"reward is inf; {number}"),
        (b'{"reward": 1%s}' % (b"0" * 400), f"reward is 1{'0' * 99}… (int); {number}"),
        ({"reward": None}, f"reward is None; {number}"),
        ({"reward": True}, f"reward is True; {number}"),
        ({"reward": "1"}, f"reward is '1'; {number}"),
        ({"reward": [1]}, f"reward is [1]; {number}"),
        ({}, f"reward is missing; {number}"),
        ({"reward": 1, "call_rewards": [1, 2]}, "call_rewards has 2 rewards for 1 calls; give one for each."),
        ({"reward": 1, "call_rewards": 0}, "call_rewards is 0; it must be a list of finite numbers."),
        ({"reward": 1, "success": 1}, "success is 1; it must be True, False or None."),
        ({"reward": 1, "reward_parts": [1]}, "reward_parts is [1]; it must be a mapping of names to finite numbers."),
        ({"reward": 1, "truncated_by": {}}, "truncated_by is {}; allowed: 'turns', 'context', 'tokens', 'time', 'env', "
         "or None."),
        ({"reward": 1, "sucess": True}, "'sucess' is unknown. Did you mean 'success'?"),
        (b"[1]", "the body is [1]; it must be a JSON object."),
        (b"", "the body is not JSON: JSONDecodeError: Expecting value: line 1 column 1 (char 0)."),
    ]:  # fmt: skip
        status, answer = post(path, harness.token, body)
        assert (status, answer["error"]["message"]) == (400, words)
    assert harness.settle(session, "fail")[1]["error"]["message"].startswith("reason is None; it must be a text")
    assert harness.settle({"id": "0"}, reward=1)[0] == 404
    for wait_s, shown in [(-1, "-1"), (301, "301"), (True, "True"), ("1", "'1'")]:
        status, answer = post(f"{harness.url}/sessions", harness.token, {"wait_s": wait_s})
        words = f"wait_s is {shown}; it must be a number of seconds from 0 to 300."
        assert (status, answer["error"]["message"]) == (400, words)
    assert harness.settle(session, reward=0.25)[0] == 200
    harness.play()
    assert [episode.get_return() for episode in _groups(runner, 1)[0].episodes] == [0.25, 1.0]


def test_only_the_admin_token_opens_the_lobby(start: Start) -> None:
    _, harness = start()
    session = harness.take()
    for key in ("", "x", session["api_key"], f"{harness.token}x", "\xe9"):
        for path in ("sessions", f"sessions/{session['id']}/finish", f"sessions/{session['id']}/fail"):
            assert post(f"{harness.url}/{path}", key, {"reward": 1})[0] == 401
    assert harness.chat(session | {"api_key": harness.token})[0] == 401


@pytest.mark.parametrize(
    ("limits", "takes", "words"),
    [
        ({"trajectory_timeout_s": 0.3}, False, "nobody took the session within trajectory_timeout_s=0.3 seconds."),
        ({"trajectory_timeout_s": 0.3}, True, "the agent did not return within trajectory_timeout_s=0.3 seconds."),
        (
            {"trajectory_timeout_s": 0.6, "idle_timeout_s": 0.3},
            True,
            "the agent neither called nor returned for idle_timeout_s=0.3 seconds.",
        ),
    ],
)
def test_what_takes_too_long_has_failed_and_cannot_be_settled(
    start: Start, limits: dict[str, float], takes: bool, words: str
) -> None:
    runner, harness = start(trajectory_retries=0, **limits)
    session = harness.take() if takes else None
    assert _failure(runner) == words
    if session is not None:
        assert harness.settle(session, reward=1)[0] == harness.chat(session)[0] == 410


def test_a_failed_trajectory_is_handed_out_again_then_its_group_is_begun_anew(start: Start) -> None:
    runner, harness = start()
    first, sibling = harness.take(), harness.take()
    assert harness.settle(first, "fail", reason="no disk")[0] == 200
    again = harness.take()
    assert (again["task"], again["attempt"], again["name"]) == (first["task"], 1, "g/0/0/0/1")
    assert again["id"] != first["id"] and again["api_key"] != first["api_key"]
    assert harness.settle(first, reward=1)[0] == 409
    harness.chat(sibling)
    assert harness.settle(again, "fail", reason="no disk")[0] == 200
    others = [harness.play(), harness.play()]
    assert [other["name"] for other in others] == ["g/0/1/0/0", "g/0/1/1/0"]
    assert harness.settle(sibling, reward=1)[0] == harness.chat(sibling)[0] == 410
    (group,) = _groups(runner, 1)
    assert len(group.episodes) == 2
    assert runner.last_errors() == ["the harness gave up: no disk"]


def test_who_waits_is_served_and_who_went_away_takes_nothing_along(start: Start) -> None:
    runner, harness = start()
    harness.play(), harness.play()
    assert len(_groups(runner, 1)) == 1
    gone = http.client.HTTPConnection(urlsplit(harness.url).netloc)
    gone.request("POST", "/v1/sessions", b"", {"authorization": f"Bearer {harness.token}"})
    time.sleep(0.2)  # until it is first in the line
    assert gone.sock is not None
    gone.sock.shutdown(2)
    gone.close()
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(harness.play) for _ in range(2)]
        time.sleep(0.2)
        runner.sample_in_background(["late"])
        names = {future.result(30)["name"] for future in waiting}
    assert names == {"late/0/0/0", "late/0/1/0"}
    assert len(_groups(runner, 1)) == 1


def test_few_who_play_are_waited_for_as_long_as_the_line_moves(start: Start) -> None:
    runner, harness = start(groups=4, trajectory_timeout_s=1.0)
    for _ in range(8):
        harness.play()
        time.sleep(0.3)
    assert len(_groups(runner, 4)) == 4


def test_a_stop_that_comes_as_a_step_begins_is_not_slept_through(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody plays, so nothing else would wake the thread before a time-out."""
    begun, told = threading.Event(), threading.Event()
    run_posted, wake = AgentSlots.run_posted, AgentSlots.wake

    def run_posted_once_told(slots: AgentSlots, timeout_s: float) -> bool:
        begun.set()
        assert told.wait(30)
        return run_posted(slots, timeout_s)

    def wake_and_tell(slots: AgentSlots) -> None:
        wake(slots)
        if begun.is_set():
            told.set()

    monkeypatch.setattr(AgentSlots, "run_posted", run_posted_once_told)
    monkeypatch.setattr(AgentSlots, "wake", wake_and_tell)
    runner, _ = start()
    assert begun.wait(30)
    started = time.monotonic()
    assert runner.stop_sampling() == ["g/0"]
    assert time.monotonic() - started < 20


def test_the_token_is_in_no_log_no_config_and_in_no_file_that_others_read(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.DEBUG):
        runner, harness = start()
    file = _file(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    assert f"Agents are awaited at {harness.url} (runner-0)" in caplog.text and harness.token not in caplog.text
    assert harness.token.encode() not in pickle.dumps(runner.config) + json.dumps(runner.get_state()).encode()
    assert runner._door is not None and harness.token not in repr(runner._door._outside)
    runner.stop()
    assert not file.exists()
    secret = "0123456789abcdef0123456789abcdef"
    monkeypatch.setenv(TOKEN_VARIABLE, secret)
    start()
    address = json.loads(_file(tmp_path).read_text())
    assert list(address) == ["url"] and secret not in address["url"]
    assert post(f"{address['url']}/sessions", secret, {"wait_s": 20})[0] == 200


def test_a_door_is_open_to_others_only_where_that_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def door(**settings: Any) -> ExternalDoor:
        return ExternalDoor(AgentSettings(workers="external", **settings), name="runner-1")

    with pytest.raises(SettingError, match=r"nobody could learn the admin token\. Name a folder for the addresses"):
        door()
    with pytest.raises(
        SettingError, match=r"agent\.host='0\.0\.0\.0' can be reached from other machines, which needs an"
    ):
        door(host="0.0.0.0", addresses=str(tmp_path))
    with pytest.raises(SettingError, match=r"agent\.host='localhost' is no IP address"):
        door(host="localhost", addresses=str(tmp_path))
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(SettingError, match=f"{TOKEN_VARIABLE} holds 5 characters; it must hold at least 22") as error:
        door(host="0.0.0.0")
    assert "short" not in str(error.value).replace("shortest", "")
    monkeypatch.setenv(TOKEN_VARIABLE, "0123456789abcdef0123456789abcdef")
    with pytest.raises(SettingError, match=r"agents cannot be served on 203\.0\.113\.1"):
        door(host="203.0.113.1").open()
    (tmp_path / "file").write_text("")
    for addresses in ("", str(tmp_path / "file")):
        with pytest.raises(SettingError, match=r"agent\.addresses='.*' is no folder; name one, for example 'agents'\."):
            door(addresses=addresses)
    blocked = door(addresses=str(tmp_path / "file" / "within"))
    with pytest.raises(SettingError, match=r"runner-1-.*\.json cannot be written"):
        blocked.open()
    blocked.close()
    anywhere = door(host="0.0.0.0")
    anywhere.open()
    try:
        assert anywhere.url is not None and "0.0.0.0" not in anywhere.url
        assert anywhere.url.startswith(f"http://{in_url('0.0.0.0')}:")
        assert post(f"{anywhere.url}/sessions", "wrong")[0] == 401
    finally:
        anywhere.close()


def test_addresses_of_runners_that_were_killed_are_cleared_away(start: Start, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with socket.socket() as once:
        once.bind(("127.0.0.1", 0))
        dead = {"url": f"http://127.0.0.1:{once.getsockname()[1]}/v1"}
    for name, content in {"runner-0-x": json.dumps(dead), "notes": json.dumps(dead), "runner-1-broken": "{"}.items():
        (tmp_path / "a" / f"{name}.json").write_text(content)
    start()
    found = {file.name.rpartition("-")[0] or file.name for file in (tmp_path / "a").iterdir()}
    assert found == {"runner-0", "notes.json", "runner-1"} and not (tmp_path / "a" / "runner-0-x.json").exists()
    other = ExternalDoor(AgentSettings(workers="external", addresses=str(tmp_path / "a")), name="runner-0")
    other.open()
    assert len(list((tmp_path / "a").glob("runner-0-*.json"))) == 2
    other.close()
    assert len(list((tmp_path / "a").glob("runner-0-*.json"))) == 1


def test_a_server_that_ends_answers_who_still_waits(start: Start) -> None:
    runner, harness = start()
    harness.play(), harness.play()
    _groups(runner, 1)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(post, f"{harness.url}/sessions", harness.token, {"wait_s": 60})
        time.sleep(0.2)
        runner.stop()
        assert waiting.result(10) == (204, None)


PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
(CURL,) = [block for block in re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.M | re.S) if "curl" in block]


def test_an_address_is_gone_when_its_process_ends_without_having_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = AgentSettings(workers="external", addresses=str(tmp_path))
    door = ExternalDoor(agent, name="runner-0")
    door.open()
    ending = door._taken_back
    assert isinstance(ending, weakref.finalize) and ending.atexit
    _, take_back, arguments, _ = ending.peek() or pytest.fail("it was taken back at once")
    with monkeypatch.context() as copy:
        copy.setattr(os, "getpid", lambda: 0)
        take_back(*arguments)
    assert len(list(tmp_path.iterdir())) == 1
    ending()
    assert not list(tmp_path.iterdir())
    door.close()


def test_the_page_shows_how_to_play_by_hand(start: Start, tmp_path: Path) -> None:
    runner, harness = start()
    (tmp_path / "agents").symlink_to(tmp_path / "a")
    done = subprocess.run(["bash", "-euc", CURL], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and '"choices"' in done.stdout and done.stdout.endswith('{"settled": true}'), done
    harness.play()
    assert [episode.get_return() for episode in _groups(runner, 1)[0].episodes] == [1.0, 1.0]
