"""The env runner's own time per environment turn: everything in a rollout that is neither engine nor environment.

    .venv/bin/python benchmarks/runner_cost.py
    .venv/bin/python benchmarks/runner_cost.py --turns 10 200 --repetitions 9 --json results/runner_cost.json
    .venv/bin/python benchmarks/runner_cost.py --turns 200 --profile

Counted: rendering, tokenising and decoding, seeds, requests, episodes, checks. CPU time of this process, so that others
on the machine do not count; what the engine's ``step`` and the environment's ``reset`` and ``step`` took is subtracted.

The engine is a stand-in that answers every request with the same ids at once. Nothing it leaves out belongs to the
number: a real engine's time would be subtracted all the same, and would only add noise. Goals: <= 0.5 ms per turn at 10
turns, <= 1 ms at 200, <= 0.4 ms at 400.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pathlib
import pstats
import statistics
import string
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np

from gspo_rllib.engines.protocol import Generation, GenerationRequest
from gspo_rllib.env_pool.pool import EnvPool
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.group_scheduler import GroupScheduler
from gspo_rllib.env_runners.rollout import Rollout
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.warmstart.models import build_model

TEXT = gym.spaces.Text(max_length=100_000, min_length=0, charset=string.printable)
GOALS_MS = {10: 0.5, 200: 1.0, 400: 0.4}


class InstantEngine:
    """Answers every request with the same ids and log-probabilities, and knows how long that took.

    Args:
        token_ids: The sampled ids of every answer.
    """

    max_model_len = 1 << 20
    weights_version: int | None = 1
    can_update_while_running = False

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids
        self._logp = np.full(len(token_ids), -1.0, dtype=np.float32)
        self._waiting: list[GenerationRequest] = []
        self.spent_s = 0.0
        self.longest_context = 0

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request."""
        self._waiting.append(request)

    def step(self) -> list[Generation]:
        """Finishes everything that waits."""
        started = time.process_time()
        waiting, self._waiting = self._waiting, []
        self.longest_context = max(self.longest_context, *(len(request.prompt_token_ids) for request in waiting))
        answers = [Generation(r.request_id, list(self._token_ids), self._logp, "stop") for r in waiting]
        self.spent_s += time.process_time() - started
        return answers

    def has_work(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forgets requests; nothing is ever unfinished here."""

    def load_weights(
        self, named_weights: Mapping[str, np.ndarray], version: int, *, keep_running: bool = False
    ) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing to free."""


class LedgerEnv(gym.Env):
    """Answers with about 60 bytes of text for a fixed number of turns, and knows how long that took.

    Args:
        turns: Length of an episode.
        spent_s: A list of one number, to which the CPU seconds of every call are added.
    """

    metadata = {"render_modes": [], "blocking": False}
    observation_space = TEXT
    action_space = TEXT

    def __init__(self, turns: int, spent_s: list[float]) -> None:
        self.turns, self._spent_s, self.turn = turns, spent_s, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts over; the seed decides the amount."""
        started = time.process_time()
        super().reset(seed=seed)
        self.turn = 0
        self._amount = int(self.np_random.integers(1000, 10000))
        answer = self._text(), {"task_id": str(self._amount), "answer": self._amount}
        self._spent_s[0] += time.process_time() - started
        return answer

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answers anything."""
        started = time.process_time()
        self.turn += 1
        info = {"valid_action": True, "obs_role": "user"}
        answer = self._text(), 0.0, self.turn == self.turns, False, info
        self._spent_s[0] += time.process_time() - started
        return answer

    def _text(self) -> str:
        return f"Turn {self.turn:3d}: the balance is {self._amount + self.turn:5d}. Book it or say no."


def measure(renderer: ChatRenderer, turns: int, trajectories: int, repetitions: int) -> dict[str, Any]:
    """One row: the median over the repetitions of CPU milliseconds per turn."""
    costs = []
    context = 0
    for repetition in range(repetitions + 1):
        cost_ms, context = _play(renderer, turns, trajectories)
        if repetition:  # the first one warms up
            costs.append(cost_ms)
    return {
        "turns": turns,
        "trajectories": trajectories,
        "context_tokens": context,
        "repetitions": repetitions,
        "ms_per_turn": statistics.median(costs),
        "lowest_ms": min(costs),
        "highest_ms": max(costs),
        "goal_ms": GOALS_MS.get(turns),
    }


def _play(renderer: ChatRenderer, turns: int, trajectories: int) -> tuple[float, int]:
    """CPU milliseconds per turn of one rollout, and the longest context in tokens."""
    engine = InstantEngine(renderer.reply("book the amount now"))
    spent_s = [0.0]
    pool = EnvPool(lambda: LedgerEnv(turns, spent_s), trajectories, blocking=False, step_timeout_s=60.0)
    scheduler: GroupScheduler[Any] = GroupScheduler(["0"], group_size=trajectories, run_seed=0, role="train")
    settings = GenerationSettings(temperature=1.0, max_tokens_per_turn=32)
    rollout = Rollout(engine, pool, lambda chat: renderer, settings, run_seed=0)
    started = time.process_time()
    stats = rollout.run(scheduler)
    total_s = time.process_time() - started
    pool.close()
    if stats.num_turns != turns * trajectories:
        raise RuntimeError(f"{stats.num_turns} turns instead of {turns} x {trajectories} were played: {stats.errors}")
    return (total_s - engine.spent_s - spent_s[0]) * 1e3 / stats.num_turns, engine.longest_context


def main() -> None:
    """Measures and prints one row per episode length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, nargs="+", default=[1, 10, 50, 100, 200, 400])
    parser.add_argument("--trajectories", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="print where the time goes at the last length instead")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        renderer = ChatRenderer(load_tokenizer(str(build_model(pathlib.Path(folder) / "model"))))
    if args.profile:
        _play(renderer, args.turns[-1], args.trajectories)
        with cProfile.Profile() as profile:
            _play(renderer, args.turns[-1], args.trajectories)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    rows = [measure(renderer, turns, args.trajectories, args.repetitions) for turns in args.turns]
    print(f"{'turns':>5} {'context':>7} {'ms/turn':>8} {'lowest':>7} {'highest':>7} {'goal':>5}")
    for row in rows:
        goal = "" if row["goal_ms"] is None else f"{row['goal_ms']:.1f}"
        print(
            f"{row['turns']:5d} {row['context_tokens']:7d} {row['ms_per_turn']:8.3f} {row['lowest_ms']:7.3f} "
            f"{row['highest_ms']:7.3f} {goal:>5}"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
