"""TextArena: its single-player games, such as 2048, Minesweeper, Sudoku, Mastermind and Towers of Hanoi.

Observation  str, the game's rules and board at first, then what its referee says; the player's own words are
             not repeated
Action       str in the game's format, mostly in square brackets, e.g. "[up]" or "[1 2 3 4]"; see the rules
Reward       0.0 until the end, then what the game gives: 1.0 for a win, for some games part of it for coming close,
             less than 1.0 for a loss
Ends         terminated by the game; truncated after `max_turns` turns
Info         {"task_id": str} from reset; from step {"valid_action": bool, "obs_role": "user"}, and at the end
             {"success": bool}, with {"truncated_by": "turns"} when truncated
Settings     game: an id of the suite, e.g. "GuessTheNumber-v0"; max_turns: 1 to 10,000; error_allowance: invalid moves
             in a row that the game forgives, None: all of them, each costs a turn; 1: the suite's own rule, after which
             the second one ends the game at -1.0
Expert       none: the suite has none
Cannot       run without downloads or a paid service: Hangman, WordLadder, Wordle, WordSearch (word lists), GuessWho,
             TwentyQuestions (a hosted model) are refused, and Klondike and UltimateTexasHoldem, which are no valid
             Python 3.11. Pickle: a copy plays the actions again. Draw from a generator of its own: while the suite runs
             it holds Python's and NumPy's global ones, one game of the process at a time
Not offered  games for two and more players: who sees what and when is the suite's own protocol, and an adapter to
             RLlib's MultiAgentEnv would be larger than this file
Versions     v0, for textarena 0.7
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from gspo_rllib.envs.adapters.randomness import OwnRandomness
from gspo_rllib.envs.adapters.suite import Outcome, SuiteEnv, load_suite
from gspo_rllib.envs.tasks import checked_integer, numbered_task
from gspo_rllib.errors import EnvError, SettingError, did_you_mean

OFFERED = frozenset(
    [
        "Bandit",
        "Blackjack",
        "Countdown",
        "Crosswords",
        "Cryptarithm",
        "FifteenPuzzle",
        "FrozenLake",
        "Game2048",
        "GuessTheNumber",
        "LightsOut",
        "LogicPuzzle",
        "Mastermind",
        "Minesweeper",
        "PegJump",
        "RushHour",
        "Secretary",
        "Set",
        "Slitherlink",
        "Sokoban",
        "Sudoku",
        "ThreeCardMonte",
        "TowerOfHanoi",
    ]
)
"""The suite's modules whose games are offered; all of them are played in the tests."""

_WORDS = "a word list that NLTK would download"
_SERVICE = "a language model at a paid service"
_PYTHON = "a newer Python than 3.11"
REFUSED = {
    **dict.fromkeys(("Hangman", "WordLadder", "Wordle", "WordSearch"), _WORDS),
    **dict.fromkeys(("GuessWho", "TwentyQuestions"), _SERVICE),
    **dict.fromkeys(("Klondike", "UltimateTexasHoldem"), _PYTHON),
}
"""What single-player games that are not offered need."""

# Longer numbers than Python converts make some games raise.
_LONGEST_ACTION = 1000


class TextArenaEnv(SuiteEnv):
    """See the card at the top of this file.

    Args:
        game: The game's id.
        max_turns: Turns until truncation.
        error_allowance: Invalid moves in a row that the game forgives; None: all.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: There is no such game, it needs more than one player, or a number is out of range.
        EnvError: textarena is missing, or the game needs what cannot be had.
    """

    not_pickled: ClassVar[tuple[str, ...]] = ("_game",)

    def __init__(
        self,
        game: str = "GuessTheNumber-v0",
        max_turns: int = 100,
        error_allowance: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(max_turns, render_mode)
        # Importing it draws from the global generators.
        with OwnRandomness(0).active():
            load_suite("textarena", "textarena")
        if error_allowance is not None:
            checked_integer("error_allowance", error_allowance, 0, 10_000)
        self.game = game
        self.error_allowance = error_allowance
        self._random = OwnRandomness(0)
        self._game: Any = None
        self._check_game()

    def _check_game(self) -> None:
        games = load_suite("textarena.envs.registration", "textarena").ENV_REGISTRY
        if f"{self.game}-raw" not in games:
            known = [name.removesuffix("-raw") for name in games if name.endswith("-raw")]
            raise SettingError(f"game={self.game!r}: no such game. {did_you_mean(str(self.game), known)}")
        kind = games[f"{self.game}-raw"].entry_point.split(".")[2]
        if kind in REFUSED:
            raise EnvError(f"game={self.game!r} needs {REFUSED[kind]}, so it is not offered. Take another game.")
        if kind not in OFFERED:
            raise SettingError(f"game={self.game!r}: not a game for one player. Modules offered: {sorted(OFFERED)}.")

    def _start(self, seed: int) -> None:
        # A new game per task: one that is reset goes on showing its history.
        suite = load_suite("textarena", "textarena")
        self._random = OwnRandomness(seed)
        with self._random.active():
            self._game = suite.make(f"{self.game}-raw")
            # Some games print as they go.
            vars(sys.modules[type(self._game).__module__])["print"] = lambda *_, **__: None
            self._game.reset(num_players=1, seed=seed)
        allowance = self.max_turns if self.error_allowance is None else self.error_allowance
        self._game.state.error_allowance = allowance

    def _begin(self, task_id: str) -> tuple[str, dict[str, Any]]:
        self._start(numbered_task({"task_id": task_id}, self.np_random))
        return self._news(), {}

    def _play(self, action: str) -> Outcome:
        if len(action) > _LONGEST_ACTION:
            return Outcome(f"longer than {_LONGEST_ACTION} characters", valid=False)
        try:
            with self._random.active():
                over, _ = self._game.step(action)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            # Games read what the policy writes, and not all of them check it first.
            return Outcome("the game cannot read that", valid=False)
        state = self._game.state
        if not over:
            return Outcome(self._news(), valid=state.error_count == 0)
        rewards, facts = self._game.close()
        reward = float(rewards[0])
        return Outcome(
            self._news(),
            reward,
            valid=not facts[0]["invalid_move"],
            over=True,
            success=reward >= 1.0,
        )

    def _news(self) -> str:
        said = self._game.get_observation()[1]
        # Three of the games report the player's action with the arguments mixed up, so that its kind is a string.
        told = [text.strip() for _, text, kind in said if getattr(kind, "name", "PLAYER_ACTION") != "PLAYER_ACTION"]
        return "\n".join(told) or "ok"
