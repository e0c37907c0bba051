"""OpenEnv, against a real server in a thread."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator

import pytest

from gspo_rllib.errors import EnvError, SettingError
from tests.envs.adapters.guessing_server import running
from tests.envs.adapters.suites import HOSTILE, make, needs, play

needs_websockets = needs("websockets")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("websockets")
    with running() as url:
        yield url


def halving() -> Callable[[str], str]:
    low, high, guess = 0, 99, -1

    def policy(observation: str) -> str:
        nonlocal low, high, guess
        low, high = (guess + 1, high) if observation == "too low" else (low, high)
        low, high = (low, guess - 1) if observation == "too high" else (low, high)
        guess = (low + high) // 2
        return str(guess)

    return policy


@needs_websockets
def test_an_openenv_server_is_played_through_its_websocket(server) -> None:
    env, other = (make("OpenEnv", url=server, observation_field="text") for _ in range(2))
    for seed in range(5):
        total, episode = play(env, halving(), seed=seed)
        assert total == 1.0
        assert episode[0][0] == "guess 0 to 99"
        assert episode[-1][4]["success"] is True
        assert play(other, halving(), options={"task_id": episode[0][1]["task_id"]})[1] == episode
    env.close()
    env.close()
    assert env.reset(seed=0)[0] == "guess 0 to 99", "a closed environment connects again"
    env.close()
    other.close()


@needs_websockets
def test_hostile_text_reaches_an_openenv_server_and_comes_back(server) -> None:
    env = make("OpenEnv", url=server, observation_field="text", max_turns=len(HOSTILE))
    left = iter(HOSTILE)
    total, episode = play(env, lambda _: next(left), seed=0)
    assert total == 0.0
    assert {step[0] for step in episode[1:]} == {"not a number"}
    assert episode[-1][4]["truncated_by"] == "turns"
    with pytest.raises(EnvError, match="cannot be pickled"):
        pickle.dumps(env)
    env.close()


@needs_websockets
def test_what_an_openenv_server_refuses_is_an_error_that_quotes_it(server) -> None:
    env = make("OpenEnv", url=server, action_field="bogus")
    assert '"text": "guess 0 to 99"' in env.reset(seed=0)[0], "without a field, all of the observation is shown"
    with pytest.raises(EnvError, match="Invalid message"):
        env.step("1")
    env.close()
    env = make("OpenEnv", url=server, observation_field="texd")
    with pytest.raises(EnvError, match=r"'texd'.*'text'"):
        env.reset(seed=0)
    env.close()
    with pytest.raises(EnvError, match="Is the server running"):
        make("OpenEnv", url="ws://127.0.0.1:1/ws").reset(seed=0)
    with pytest.raises(SettingError, match="must begin with ws://"):
        make("OpenEnv", url="http://localhost:8000")
    with pytest.raises(SettingError, match="seconds above 0"):
        make("OpenEnv", url=server, timeout_s=0)
