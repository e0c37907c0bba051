"""What a turn and a token cost in long trajectories: the same env runner at 10 and at 75 turns, and what binds.

    .venv/bin/python benchmarks/turns.py
    .venv/bin/python benchmarks/turns.py --engines transformers --turns 10 75 150 --tokens 5

Every row plays as many turns in all, at the same concurrency, with replies of a fixed length; the engine, the model and
the env runner's settings are the same. The rows of an engine run alternately in one process, each from an empty cache,
in CPU seconds of it. Parts are timed from within, each without the parts it calls; what is left is the env runner's
own. *hits* is the share of all turns' prompt tokens that the prefix cache served (goal: 0.97 at 400 turns). The two
lengths of reply give what a turn and what a token cost: (time of a turn with more tokens - with fewer) / (tokens more),
and the rest. ``--window`` plays the longest trajectories once more in contexts of so many tokens, on the
transformers engine: if they are then as fast as short ones, the length of the context binds, not the number of turns.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import measure
from workload import TalkEnv

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.types import TURN, Turn
from gspo_rllib.warmstart.models import build_model

GOAL = 0.9
OBSERVATION_CHARS = 16
GROUP_SIZE = 8
PARTS = ("attention", "rest of the model", "sampling", "rest of the engine", "environments", "env runner")
"""Where the time goes; ``sampling`` of vLLM is its scheduler's and its sampler's."""


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        turns: How many every trajectory has.
        tokens: Sampled in every turn.
        window: Context in tokens over which a window slides; None where a trajectory fits.
    """

    turns: int
    tokens: int
    window: int | None = None


class Stopwatch:
    """CPU seconds by part; a part does not count the parts that are called within it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def wrapped(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._open.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        return timed

    def _switch(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class Sampler:
    """An env runner of one case.

    Args:
        engine: ``"transformers"`` or ``"vllm"``.
        model: Folder of the model.
        case: What is played.
        concurrency: Trajectories at a time.
        turns: How many are played in all, about.
    """

    def __init__(self, engine: str, model: str, case: Case, concurrency: int, turns: int) -> None:
        from safetensors.numpy import load_file

        # As many waves of trajectories as come closest: a last one that is not full would be dearer than the others.
        self._groups = max(1, round(turns / (case.turns * concurrency))) * max(1, concurrency // GROUP_SIZE)
        self.turns = self._groups * GROUP_SIZE * case.turns
        config = (
            GSPOConfig()
            .environment(TalkEnv, env_config={"turns": case.turns, "observation_chars": OBSERVATION_CHARS})
            .rl_module(model_config={"path": model})
            .generation(engine=engine, max_tokens_per_turn=case.tokens)
            .env_runners(num_envs_per_env_runner=concurrency)
            .training(group_size=GROUP_SIZE)
            .debugging(seed=0)
        )
        if case.window:
            config.generation(max_model_len=case.window, context_overflow="sliding_window")
        if engine == "vllm":
            config.generation(engine_options={"kv_cache_memory_bytes": 512 << 20})
        self.runner = LanguageEnvRunner(config=config, worker_index=0)
        self._weights = load_file(pathlib.Path(model) / "model.safetensors")
        self.runner.set_weights(self._weights, 1)
        self.engine: Any = self.runner._engine
        # No reply ends before it is as long as it may be.
        self.engine._stop_token_ids, self.engine._stop = [], frozenset()
        self.context = 0
        self._played = 0

    def empty_cache(self) -> None:
        """Drops all keys and values."""
        self.engine.load_weights(self._weights, 1)

    def play(self) -> None:
        """Plays new trajectories."""
        groups = range(self._played, self._played + self._groups)
        self._played = groups.stop
        episodes = self.runner.sample(group_ids=[str(number) for number in groups])
        if sum(map(len, episodes)) != self.turns:
            raise RuntimeError(f"{sum(map(len, episodes))} turns were played: {self.runner.last_errors()}")
        self.context = round(
            statistics.fmean(sum(map(_num_tokens, episode.get_extra_model_outputs(TURN))) for episode in episodes)
        )


def _num_tokens(turn: Turn) -> int:
    """Tokens that a turn adds to the context."""
    return len(turn.prompt_token_ids) + len(turn.action_token_ids)


class PromptCounter:
    """Counts the prompt tokens that an engine is given, and those of them whose keys and values it reuses."""

    def __init__(self, engine: Any) -> None:
        self._submit, self._step = engine.submit, engine.step
        self._prompted = self._cached = 0

    def submit(self, request: Any) -> None:
        """The engine's, counted."""
        self._prompted += len(request.prompt_token_ids)
        self._submit(request)

    def step(self) -> Any:
        """The engine's, counted."""
        done = self._step()
        self._cached += sum(generation.num_cached_tokens for generation in done)
        return done

    @property
    def hits(self) -> float:
        """Share of all prompt tokens that was reused."""
        return self._cached / self._prompted


def timed_parts(sampler: Sampler, engine: str) -> tuple[dict[str, float], float]:
    """Plays once; returns the share of the CPU time that went into each of ``PARTS``, and the prefix cache's hits."""
    watch = Stopwatch()
    own = sampler.engine
    counter = PromptCounter(own)
    places: list[tuple[Any, str, str]] = [
        (own, "step", "rest of the engine"),
        (own, "submit", "rest of the engine"),
        (TalkEnv, "step", "environments"),
        (TalkEnv, "reset", "environments"),
    ]
    if engine == "transformers":
        from transformers.models.qwen3 import modeling_qwen3

        places += [(own, "_logits", "rest of the model"), (own, "_sample", "sampling")]
        functions = modeling_qwen3.ALL_ATTENTION_FUNCTIONS
        from gspo_rllib.engines.slot_attention import ATTENTION_NAME, slot_attention

        functions.register(ATTENTION_NAME, watch.wrapped("attention", slot_attention))
    else:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

        core = own._engine.engine_core.engine_core
        places += [
            (CPUAttentionBackendImpl, "forward", "attention"),
            (core.model_executor, "execute_model", "rest of the model"),
            (core.model_executor, "sample_tokens", "sampling"),
            (core.scheduler, "schedule", "sampling"),
            (core.scheduler, "update_from_output", "sampling"),
        ]
    kept = [(place, name, place.__dict__.get(name)) for place, name, _ in places]
    own.submit, own.step = counter.submit, counter.step
    for place, name, part in places:
        setattr(place, name, watch.wrapped(part, getattr(place, name)))
    sampler.empty_cache()
    try:
        total_s = measure.timed(sampler.play).cpu_s
    finally:
        for place, name, before in kept:
            if before is None:
                delattr(place, name)
            else:
                setattr(place, name, before)
        if engine == "transformers":
            functions.register(ATTENTION_NAME, slot_attention)
    watch.seconds["env runner"] = total_s - sum(watch.seconds.values())
    return {part: watch.seconds[part] / total_s for part in PARTS}, counter.hits


def measured(engine: str, model: str, cases: list[Case], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per case, in the order of ``cases``."""
    samplers = [Sampler(engine, model, case, args.concurrency, args.total) for case in cases]
    timings: list[list[measure.Timing]] = [[] for _ in cases]
    for repetition in range(args.repetitions + 1):
        for sampler, timing in zip(samplers, timings, strict=True):
            sampler.empty_cache()
            played = measure.timed(sampler.play)
            if repetition:  # the first one warms up
                timing.append(played)
    last = [timed_parts(sampler, engine) for sampler in samplers]
    rows = [
        {
            "engine": engine,
            **asdict(case),
            "context": sampler.context,
            "ms_per_turn": 1e3 * measure.median(timing) / sampler.turns,
            "tokens_per_s": case.tokens * sampler.turns / measure.median(timing),
            "cpu_s": [played.cpu_s for played in timing],
            "all_turns": sampler.turns,
            "parts": parts,
            "prefix_hits": hits,
        }
        for case, sampler, timing, (parts, hits) in zip(cases, samplers, timings, last, strict=True)
    ]
    for sampler in samplers:
        sampler.runner.stop()
    return rows


def print_rows(rows: list[dict[str, Any]], turns: list[int], tokens: list[int]) -> None:
    """The rows of an engine, what a turn and a token cost, and the ratios."""
    parts = " ".join(f"{part:>19}" for part in PARTS)
    print(
        f"{'engine':>12} {'turns':>5} {'tokens':>6} {'context':>7} {'window':>6} {'hits':>6} {'ms/turn':>8} "
        f"{'tokens/s':>8}  " + parts
    )
    at = {(row["turns"], row["tokens"]): row for row in rows if not row["window"]}
    for row in rows:
        spent = " ".join(f"{share * row['ms_per_turn']:11.3f} ms {share:4.0%}" for share in row["parts"].values())
        print(
            f"{row['engine']:>12} {row['turns']:5d} {row['tokens']:6d} {row['context']:7d} "
            f"{row['window'] or 'none':>6} {row['prefix_hits']:6.3f} {row['ms_per_turn']:8.2f} "
            f"{row['tokens_per_s']:8.0f}  {spent}"
        )
    for count in turns if len(tokens) > 1 else []:
        few, many = at[count, tokens[0]], at[count, tokens[-1]]
        token = (many["ms_per_turn"] - few["ms_per_turn"]) / (tokens[-1] - tokens[0])
        print(
            f"{count} turns: {token:.2f} ms a token, {few['ms_per_turn'] - tokens[0] * token:.2f} ms a turn beside them"
        )
    for row in rows:
        if row["turns"] != turns[0]:
            ratio = row["tokens_per_s"] / at[turns[0], row["tokens"]]["tokens_per_s"]
            window = f" in contexts of {row['window']}" if row["window"] else ""
            print(
                f"{row['turns']} turns{window} over {turns[0]}, replies of {row['tokens']}: {ratio:.2f}, goal {GOAL}: "
                + ("met" if ratio >= GOAL else "NOT met"),
                flush=True,
            )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=["transformers", "vllm"], default=["transformers", "vllm"])
    parser.add_argument("--turns", type=int, nargs="+", default=[10, 75])
    parser.add_argument("--tokens", type=int, nargs="+", default=[5, 15], help="length of a reply")
    parser.add_argument("--window", type=int, default=512, help="context of the rows with a window; 0: none of them")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--total", type=int, default=2400, help="turns of a row, about")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()
    rows = []
    # A chat frame, an observation and a reply, of which a turn consists, take at most so much.
    context = max(max(args.turns) * (2 * OBSERVATION_CHARS + max(args.tokens)) + 256, args.window)
    with tempfile.TemporaryDirectory() as folder:
        model = str(
            build_model(
                pathlib.Path(folder) / "model", max_position_embeddings=context, num_layers=args.layers,
                initializer_range=0.1,
            )
        )  # fmt: skip
        for engine in args.engines:
            cases = [Case(turns, tokens) for tokens in args.tokens for turns in args.turns]
            if args.window and engine == "transformers":
                cases += [Case(args.turns[-1], tokens, args.window) for tokens in args.tokens]
            rows += (found := measured(engine, model, cases, args))
            print_rows(found, args.turns, args.tokens)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
