"""TextArena, played for real."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator

import numpy as np
import pytest

from gspo_rllib.envs import check_language_env
from gspo_rllib.errors import EnvError, SettingError
from tests.envs.adapters.suites import HOSTILE, make, needs, play

PLAYERS = [
    "2048-v0-easy",
    "Bandit-v0",
    "Blackjack-v0",
    "Countdown-v0",
    "Crosswords-v0",
    "Cryptarithm-v0",
    "FifteenPuzzle-v0",
    "FrozenLake-v0",
    "GuessTheNumber-v0",
    "LightsOut-v0",
    "LogicPuzzle-v0",
    "Mastermind-v0",
    "Minesweeper-v0-small",
    "PegJump-v0",
    "RushHour-v0",
    "Secretary-v0",
    "Set-v0",
    "Slitherlink-v0",
    "Sokoban-v0",
    "Sudoku-v0-easy",
    "ThreeCardMonte-v0",
    "TowerOfHanoi-v0",
]
needs_textarena = needs("textarena")


@needs_textarena
@pytest.mark.parametrize("game", ["GuessTheNumber-v0", "2048-v0-easy", "Sudoku-v0-easy"])
def test_textarena_keeps_the_contract(game) -> None:
    check_language_env("gspo_rllib.envs:gspo_rllib/TextArena-v0", game=game)


@needs_textarena
@pytest.mark.parametrize("game", PLAYERS)
def test_textarena_games_replay_exactly_while_another_is_played(game, capsys) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    other = make("TextArena", game="Bandit-v0")
    episodes = []
    for disturb in (False, True):
        env = make("TextArena", game=game, max_turns=len(HOSTILE))
        left = iter(HOSTILE)

        def policy(_: str, left: Iterator[str] = left, disturb: bool = disturb) -> str:
            if disturb:
                other.reset(seed=9)
                other.step("[red]")
            return next(left)

        episodes.append(play(env, policy, seed=5))
    assert episodes[0] == episodes[1]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert capsys.readouterr().out == ""
    assert pickle.loads(pickle.dumps(env)).get_state() == env.get_state()


@needs_textarena
def test_a_player_who_halves_the_range_wins_guess_the_number() -> None:
    env = make("TextArena", game="GuessTheNumber-v0")
    for seed in range(10):
        low, high = 1, 20

        def policy(observation: str) -> str:
            nonlocal low, high
            middle = (low + high) // 2
            if "lower" in observation and "target number is" in observation:
                high = middle - 1
            elif "higher" in observation and "target number is" in observation:
                low = middle + 1
            return f"[{(low + high) // 2}]"

        total, episode = play(env, policy, seed=seed)
        assert total == 1.0
        assert episode[-1][4]["success"] is True
        assert all("target number is" not in episode[0][0] for _ in episode)


@needs_textarena
def test_invalid_moves_cost_turns_unless_the_suite_s_own_rule_is_asked_for() -> None:
    _, episode = play(make("TextArena", max_turns=7), lambda _: "?", seed=0)
    assert [step[1] for step in episode[1:]] == [0.0] * 7
    assert episode[-1][4]["truncated_by"] == "turns"
    assert not any(step[4]["valid_action"] for step in episode[1:])
    total, episode = play(make("TextArena", game="2048-v0-easy", error_allowance=1), lambda _: "?", seed=0)
    assert len(episode) - 1 == 2
    assert total < 1.0


@needs_textarena
@pytest.mark.parametrize(
    ("game", "error", "message"),
    [
        ("Wordle-v0", EnvError, "NLTK would download"),
        ("TwentyQuestions-v0", EnvError, "paid service"),
        ("Klondike-v0", EnvError, "newer Python"),
        ("Chess-v0", SettingError, "not a game for one player"),
        ("GuessTheNumbr-v0", SettingError, "Did you mean 'GuessTheNumber-v0'"),
    ],
)
def test_textarena_games_that_cannot_be_offered_are_refused(game, error, message) -> None:
    with pytest.raises(error, match=message):
        make("TextArena", game=game)
