"""The sampled success rate of a policy: it really plays, turn by turn, through a generation engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import gymnasium

from gspo_rllib.engines.protocol import Engine, Generation, GenerationRequest
from gspo_rllib.env_runners.chat import ChatRenderer

MAX_TOKENS_PER_TURN = 32


@dataclass(frozen=True, slots=True)
class PlayReport:
    """How a policy did on a set of tasks.

    Attributes:
        success: Fraction of tasks solved.
        mean_return: Mean sum of rewards.
        mean_turns: Mean number of turns.
        mean_tokens: Mean length of the whole context, in tokens.
        max_tokens: The longest context, in tokens.
    """

    success: float
    mean_return: float
    mean_turns: float
    mean_tokens: float
    max_tokens: int


@dataclass(slots=True)
class _Game:
    env: gymnasium.Env[str, str]
    context: list[int]
    seed: int
    turns: int = 0
    total: float = 0.0
    success: bool = False
    over: bool = field(default=False)


def play_tasks(
    engine: Engine,
    renderer: ChatRenderer,
    make_env: Callable[[], gymnasium.Env[str, str]],
    seeds: Sequence[int],
    *,
    temperature: float,
) -> PlayReport:
    """Plays one trajectory per task, all of them at once.

    Args:
        engine: Samples the turns; holds the weights to judge.
        renderer: Renders the conversation.
        make_env: Makes one environment; called once per task.
        seeds: ``reset`` seeds of the tasks.
        temperature: Sampling temperature of every turn.

    Returns:
        The report. A task whose context no longer fits the engine is over and counts as it stands. An environment
        that says nothing about ``success`` succeeded where its return is positive.
    """
    games: list[_Game] = []
    for index, seed in enumerate(seeds):
        env = make_env()
        observation, _ = env.reset(seed=seed)
        games.append(_Game(env, renderer.first_prompt(observation), seed))
        _submit(engine, renderer, games[-1], index, temperature)
    while engine.has_work():
        for generation in engine.step():
            index = int(generation.request_id)
            if not _advance(games[index], generation, renderer):
                _submit(engine, renderer, games[index], index, temperature)
    for game in games:
        game.env.close()
    number = len(games)
    return PlayReport(
        success=sum(game.success for game in games) / number,
        mean_return=sum(game.total for game in games) / number,
        mean_turns=sum(game.turns for game in games) / number,
        mean_tokens=sum(len(game.context) for game in games) / number,
        max_tokens=max(len(game.context) for game in games),
    )


def _submit(engine: Engine, renderer: ChatRenderer, game: _Game, index: int, temperature: float) -> None:
    room = engine.max_model_len - len(game.context)
    if room < 1:
        return
    # Distinct per game and turn, and the same in every evaluation: two evaluations then differ by their weights only.
    seed = (game.seed * 1_000 + game.turns) % 2**31
    engine.submit(
        GenerationRequest(
            str(index), list(game.context), min(MAX_TOKENS_PER_TURN, room), temperature, seed, renderer.own_stop
        )
    )


def _advance(game: _Game, generation: Generation, renderer: ChatRenderer) -> bool:
    """Plays one sampled turn; whether the game is over."""
    game.context += generation.token_ids
    observation, reward, terminated, truncated, info = game.env.step(renderer.decode(generation.token_ids))
    game.turns += 1
    game.total += float(reward)
    if terminated or truncated:
        game.success = bool(info.get("success", game.total > 0))
        return True
    game.context += renderer.prompt_after(generation.token_ids, observation, role=info.get("obs_role", "user"))
    return False
