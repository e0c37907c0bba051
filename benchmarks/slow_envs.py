"""What slow environments cost the others: engine utilisation with some trajectories that sleep in every step.

    .venv/bin/python benchmarks/slow_envs.py
    .venv/bin/python benchmarks/slow_envs.py --engine transformers --repetitions 5 --json results/slow_envs.json

64 trajectories, 8 of which sleep 2 s per step, against the other 56 alone; alternately, after one pair to warm up.

window          from the start until the last of the fast trajectories is done
utilisation     seconds inside the engine's step over seconds of wall time, within that window
tokens/s        all tokens sampled within it, those of the slow trajectories included

The ratios are medians of the pairs. Goal: utilisation >= 80 % of the run without the slow ones.
With ``--inline`` the environments run in the loop itself: what it would cost if they were not given threads.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import string
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import Engine, EngineSpec, Generation
from gspo_rllib.env_pool.pool import EnvPool
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.group_scheduler import GroupScheduler
from gspo_rllib.env_runners.rollout import Rollout
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.seeds import derive_seed
from gspo_rllib.warmstart.models import build_model

TEXT = gym.spaces.Text(max_length=100_000, min_length=0, charset=string.printable)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is played: ``fast`` + ``slow`` trajectories; ``sleep_s`` seconds per step of a slow one."""

    fast: int
    slow: int
    sleep_s: float
    turns: int
    tokens_per_turn: int


@dataclass(frozen=True, kw_only=True)
class Window:
    """What happened until the fast trajectories were done; seconds."""

    wall_s: float
    engine_s: float
    tokens: int
    slow_steps: int

    @property
    def utilisation(self) -> float:
        """Share of the wall time spent inside the engine."""
        return self.engine_s / self.wall_s

    @property
    def tokens_per_s(self) -> float:
        """Sampled tokens per second of wall time."""
        return self.tokens / self.wall_s


class _Clock:
    """Notes the window: an observer of the rollout, and the engine's stand-in that times every step of it."""

    def __init__(self, engine: Engine, fast: int) -> None:
        self._engine = engine
        self._fast = fast
        self._engine_s, self._tokens, self._slow_steps = 0.0, 0, 0
        self.fast_done = threading.Event()
        self.window: Window | None = None
        self._started = time.perf_counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> list[Generation]:
        started = time.perf_counter()
        generations = self._engine.step()
        self._engine_s += time.perf_counter() - started
        self._tokens += sum(len(generation.token_ids) for generation in generations)
        return generations

    def __call__(self, event: str, episode: Any, slot: int) -> None:
        is_fast = not episode.id_.startswith("slow")
        self._slow_steps += event == "on_episode_step" and not is_fast and self.window is None
        self._fast -= event == "on_episode_end" and is_fast
        if not self._fast and self.window is None:
            wall_s = time.perf_counter() - self._started
            self.window = Window(
                wall_s=wall_s, engine_s=self._engine_s, tokens=self._tokens, slow_steps=self._slow_steps
            )
            self.fast_done.set()


class TalkEnv(gym.Env):
    """Answers every action with a line of text for a fixed number of turns; slow on some tasks.

    Args:
        turns: Length of an episode.
        slow_seeds: The tasks on which every step sleeps.
        sleep: Sleeps; returns True once there is no need to go on.
    """

    metadata: dict[str, Any] = {"render_modes": []}
    observation_space = TEXT
    action_space = TEXT

    def __init__(self, turns: int, slow_seeds: frozenset[int], sleep: Callable[[], bool]) -> None:
        self.turns, self._slow_seeds, self._sleep = turns, slow_seeds, sleep
        self.turn, self.is_slow = 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts over; the seed decides whether this episode is slow."""
        super().reset(seed=seed)
        self.turn, self.is_slow = 0, seed in self._slow_seeds
        return "Say something.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answers anything, at once or after a while."""
        enough = self.is_slow and self._sleep()
        self.turn += 1
        return f"Line {self.turn}.", 0.0, enough or self.turn == self.turns, False, {}


def play(engine: Engine, renderer: ChatRenderer, load: Load, *, inline: bool = False) -> Window:
    """Plays one rollout; its slow trajectories end early once the fast ones are done."""
    clock = _Clock(engine, load.fast)
    names = [f"fast/{n}" for n in range(load.fast)] + [f"slow/{n}" for n in range(load.slow)]
    slow_seeds = frozenset(derive_seed(0, "train", name, 0, bits=31) for name in names if name.startswith("slow"))
    pool = EnvPool(
        lambda: TalkEnv(load.turns, slow_seeds, lambda: clock.fast_done.wait(load.sleep_s)),
        len(names),
        blocking=not inline,
        step_timeout_s=60.0 + load.sleep_s,
    )
    scheduler: GroupScheduler[Any] = GroupScheduler(names, group_size=1, run_seed=0, role="train")
    settings = GenerationSettings(temperature=1.0, max_tokens_per_turn=load.tokens_per_turn)
    stats = Rollout(clock, pool, lambda chat: renderer, settings, run_seed=0, observer=clock).run(scheduler)
    pool.close()
    if len(stats.groups) != len(names) or clock.window is None:
        raise RuntimeError(f"only {len(stats.groups)} of {len(names)} trajectories were played: {stats.errors}")
    return clock.window


def measure(engine: Engine, renderer: ChatRenderer, load: Load, repetitions: int, *, inline: bool) -> dict[str, Any]:
    """Alternating runs without and with the slow trajectories, and what they come to."""
    alone_load = Load(**asdict(load) | {"slow": 0})
    pairs = []
    for repetition in range(repetitions + 1):
        alone = play(engine, renderer, alone_load, inline=inline)
        beside = play(engine, renderer, load, inline=inline)
        if repetition:  # the first pair warms up
            pairs.append((alone, beside))
    return {
        **asdict(load),
        "inline": inline,
        "alone": [asdict(alone) | {"utilisation": alone.utilisation} for alone, _ in pairs],
        "beside": [asdict(beside) | {"utilisation": beside.utilisation} for _, beside in pairs],
        "utilisation_alone": statistics.median(alone.utilisation for alone, _ in pairs),
        "utilisation_beside": statistics.median(beside.utilisation for _, beside in pairs),
        "utilisation_ratio": statistics.median(beside.utilisation / alone.utilisation for alone, beside in pairs),
        "tokens_per_s_alone": statistics.median(alone.tokens_per_s for alone, _ in pairs),
        "tokens_per_s_beside": statistics.median(beside.tokens_per_s for _, beside in pairs),
        "tokens_per_s_ratio": statistics.median(beside.tokens_per_s / alone.tokens_per_s for alone, beside in pairs),
    }


def open_engine(name: str, model: str, max_model_len: int, max_num_seqs: int) -> tuple[Engine, ChatRenderer]:
    """A loaded engine and the renderer of its model; give the engine back with ``registry.release``."""
    from transformers import AutoModelForCausalLM

    renderer = ChatRenderer(load_tokenizer(model))
    engine = registry.acquire(EngineSpec(name, model, "float32", max_model_len, max_num_seqs, renderer.stop_token_ids))
    state = AutoModelForCausalLM.from_pretrained(model, dtype="float32").state_dict()
    engine.load_weights({key: tensor.numpy() for key, tensor in state.items()}, 1)
    return engine, renderer


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default=registry.default_engine(), help="default: vllm where it is installed")
    parser.add_argument("--fast", type=int, default=56)
    parser.add_argument("--slow", type=int, default=8)
    parser.add_argument("--sleep-s", type=float, default=2.0)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--tokens-per-turn", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--inline", action="store_true", help="run the environments in the loop, to see what that does")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    load = Load(
        fast=args.fast,
        slow=args.slow,
        sleep_s=args.sleep_s,
        turns=args.turns,
        tokens_per_turn=args.tokens_per_turn,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(pathlib.Path(folder) / "model", initializer_range=0.1)
        engine, renderer = open_engine(args.engine, str(model), 1024, args.fast + args.slow)
        result = {"engine": args.engine} | measure(engine, renderer, load, args.repetitions, inline=args.inline)
        registry.release(engine)
    print(f"{args.engine}: {args.fast} trajectories alone, and with {args.slow} that sleep {args.sleep_s:g} s per step")
    for name, form in (("utilisation", ".3f"), ("tokens_per_s", ".0f")):
        alone, beside, ratio = (result[f"{name}_{kind}"] for kind in ("alone", "beside", "ratio"))
        print(f"{name:12} alone {alone:{form}}   with the slow ones {beside:{form}}   ratio {ratio:.3f}")
    print(f"window {[round(run['wall_s'], 1) for run in result['beside']]} s", end=", ")
    print(f"slow steps in it {[run['slow_steps'] for run in result['beside']]}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
