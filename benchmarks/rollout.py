"""How much of raw offline vLLM's speed is left when it plays environments, and what not waiting for stragglers gains.

    .venv/bin/python benchmarks/rollout.py
    .venv/bin/python benchmarks/rollout.py --goals
    .venv/bin/python benchmarks/rollout.py --full
    .venv/bin/python benchmarks/rollout.py --profile

*Over raw vLLM*: the env runner plays multi-turn trajectories with everything a rollout needs: rendering, tokenising,
environment steps, episodes. Raw vLLM is then given the very requests the env runner made (same prompts, lengths, seeds
and sampling options, at most as many running at a time), all at once, and its outputs are thrown away.

*Continuous over lock-step*: 64 trajectories with log-normal turn lengths. Lock-step is what a trainer does that steps
its environments together: all trajectories' k-th requests, and not one of the next turn before the last of them is
finished. It is given the env runner's requests, and spends nothing on environments or text.

Both sides run in this process on the same engine, alternately, each from an empty prefix cache. CPU seconds of this
process, which does all of the work.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import dataclasses
import itertools
import json
import os
import pathlib
import pstats
import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import measure
import numpy as np
from workload import TalkEnv

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.engines.protocol import GenerationRequest
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.warmstart.models import build_model

COMMAND = ".venv/bin/python benchmarks/rollout.py"
MAX_CONCURRENCY = 128
ENGINE_OPTIONS = {"kv_cache_memory_bytes": 512 << 20}

# Concurrency, turns, tokens sampled per turn, characters per observation; short ones before long ones.
RECORDED = (32, 10, 16, 24)
SHORT = [(1, 4, 16, 24), (8, 4, 16, 24), RECORDED, (128, 2, 16, 24), (32, 1, 16, 24), (32, 50, 4, 4)]
FULL = [*SHORT, (128, 10, 16, 24), (32, 50, 16, 24), (32, 200, 4, 4)]

LOCKSTEP_TRAJECTORIES, LOCKSTEP_TURNS = 64, 8
TURN_LENGTHS = {"median": 8, "sigma": 1.0, "longest": 128}  # tokens; log-normal, cut off


class BackgroundSampler:
    """An env runner and its engine, which answers every request with as many tokens as it may.

    Args:
        model: Folder of the model.
        turns: Length of every trajectory.
        tokens_per_turn: Tokens sampled in each turn.
        observation_chars: Length of every observation.
        group_size: Trajectories per task.
    """

    def __init__(
        self, model: str, turns: int, tokens_per_turn: int, observation_chars: int = 24, group_size: int = 1
    ) -> None:
        self.turns = turns
        config = (
            GSPOConfig()
            .environment(TalkEnv, env_config={"turns": turns, "observation_chars": observation_chars})
            .rl_module(model_config={"path": model})
            .generation(engine="vllm", max_tokens_per_turn=tokens_per_turn, engine_options=ENGINE_OPTIONS)
            .env_runners(num_envs_per_env_runner=MAX_CONCURRENCY)
            .training(group_size=group_size)
            .debugging(seed=0)
        )
        self.runner = LanguageEnvRunner(config=config, worker_index=0)
        self._weights = _weights(model)
        self.runner.set_weights(self._weights, 1)
        self.engine: Any = self.runner._engine
        self.engine._stop_token_ids = []
        self.group_size = group_size
        self.requests: list[GenerationRequest] = []
        self._played = 0

    def clear_cache(self) -> None:
        """Empties the engine's prefix cache."""
        self.engine.load_weights(self._weights, 1)

    def play(self, trajectories: int) -> None:
        """Plays new trajectories, all at a time."""
        groups = range(self._played, self._played + trajectories // self.group_size)
        self._played = groups.stop
        episodes = self.runner.sample(group_ids=[str(number) for number in groups])
        if sum(map(len, episodes)) != trajectories * self.turns:
            raise RuntimeError(f"{sum(map(len, episodes))} turns were played: {self.runner.last_errors()}")

    @contextlib.contextmanager
    def listening(self, length_of: Callable[[], int] | None = None) -> Iterator[None]:
        """Notes every request in ``requests``, and may say how many tokens it gets."""
        with noted_requests(self.engine, length_of) as self.requests:
            yield

    def raw(self, concurrency: int) -> None:
        """vLLM's own offline loop for the noted requests."""
        raw_vllm(self.engine, self.requests, concurrency)

    def lockstep(self) -> None:
        """The noted requests turn by turn, each turn awaited before the next."""
        turn_of = [int(request.request_id.rsplit("/", 1)[1]) for request in self.requests]
        for turn in range(self.turns):
            for request, its_turn in zip(self.requests, turn_of, strict=True):
                if its_turn == turn:
                    self.engine.submit(request)
            while self.engine.has_work():
                self.engine.step()


@contextlib.contextmanager
def noted_requests(engine: Any, length_of: Callable[[], int] | None = None) -> Iterator[list[GenerationRequest]]:
    """The requests an engine is given while the block lasts; may say how many tokens each gets."""
    submit = engine.submit
    requests: list[GenerationRequest] = []

    def noted(request: GenerationRequest) -> None:
        if length_of is not None:
            request = dataclasses.replace(request, max_tokens=length_of())
        requests.append(request)
        submit(request)

    engine.submit = noted
    try:
        yield requests
    finally:
        del engine.submit


def raw_vllm(engine: Any, requests: list[GenerationRequest], concurrency: int) -> None:
    """vLLM's own offline loop for some requests, at most ``concurrency`` of them at a time.

    First turns come first, as they were made: a later one finds its history in the prefix cache, as it did in play.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    vllm = engine._engine
    waiting, running = iter(requests), 0
    with engine._eager():
        while True:
            for request in itertools.islice(waiting, concurrency - running):
                options = SamplingParams(
                    max_tokens=request.max_tokens, temperature=1.0, seed=request.seed, ignore_eos=True, logprobs=0,
                    flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
                )  # fmt: skip
                prompt = {"prompt_token_ids": request.prompt_token_ids}
                vllm.add_request(request_id=request.request_id, prompt=prompt, params=options)
                running += 1
            if not running:
                return
            running -= sum(output.finished for output in vllm.step())


def over_raw(model: str, case: tuple[int, int, int, int], repetitions: int) -> dict[str, Any]:
    """One row: the env runner against raw vLLM."""
    concurrency, turns, tokens_per_turn, observation_chars = case
    player = BackgroundSampler(model, turns, tokens_per_turn, observation_chars, group_size=min(8, concurrency))
    runner, raw = [], []
    for repetition in range(repetitions + 1):
        player.clear_cache()
        with player.listening():
            played = measure.timed(lambda: player.play(concurrency))
        player.clear_cache()
        answered = measure.timed(lambda: player.raw(concurrency))
        if repetition:  # the first pair warms up
            runner.append(played)
            raw.append(answered)
    player.runner.stop()
    tokens = concurrency * turns * tokens_per_turn
    return {
        "concurrency": concurrency,
        "turns": turns,
        "tokens": tokens,
        "context": len(player.requests[-1].prompt_token_ids) + tokens_per_turn,
        "runner_tokens_per_s": tokens / measure.median(runner),
        "raw_tokens_per_s": tokens / measure.median(raw),
        "ratios": measure.ratios(raw, runner),
    }


def over_lockstep(model: str, repetitions: int) -> dict[str, Any]:
    """Continuous against lock-step at log-normal turn lengths."""
    longest = TURN_LENGTHS["longest"]
    player = BackgroundSampler(model, LOCKSTEP_TURNS, int(longest), group_size=8)
    continuous, lockstep, tokens, steps = [], [], 0, []
    for repetition in range(repetitions + 1):
        rng = np.random.default_rng(repetition)

        def length_of(rng: np.random.Generator = rng) -> int:
            drawn = rng.lognormal(np.log(TURN_LENGTHS["median"]), TURN_LENGTHS["sigma"])
            return int(np.clip(np.ceil(drawn), 1, longest))

        player.clear_cache()
        with player.listening(length_of):
            played = measure.timed(lambda: player.play(LOCKSTEP_TRAJECTORIES))
        player.clear_cache()
        waited = measure.timed(player.lockstep)
        if repetition:
            continuous.append(played)
            lockstep.append(waited)
            tokens = sum(request.max_tokens for request in player.requests)
            steps.append(_forward_passes(player.requests))
    player.runner.stop()
    return {
        "trajectories": LOCKSTEP_TRAJECTORIES,
        "turns": LOCKSTEP_TURNS,
        "turn_lengths": TURN_LENGTHS,
        "tokens": tokens,
        "continuous_s": measure.median(continuous),
        "lockstep_s": measure.median(lockstep),
        "forward_passes": statistics.median(a for a, _ in steps),
        "lockstep_forward_passes": statistics.median(b for _, b in steps),
        "ratios": measure.ratios(lockstep, continuous),
    }


def _forward_passes(requests: list[GenerationRequest]) -> tuple[int, int]:
    """The fewest that continuous play and lock-step need: the longest trajectory, and the longest turns together."""
    trajectories: dict[str, int] = {}
    turns: dict[str, int] = {}
    for request in requests:
        trajectory, turn = request.request_id.rsplit("/", 1)
        trajectories[trajectory] = trajectories.get(trajectory, 0) + request.max_tokens
        turns[turn] = max(turns.get(turn, 0), request.max_tokens)
    return max(trajectories.values()), sum(turns.values())


def _weights(model: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(pathlib.Path(model) / "model.safetensors")


def _profile(model: str) -> None:
    concurrency, turns, tokens_per_turn, observation_chars = RECORDED
    player = BackgroundSampler(model, turns, tokens_per_turn, observation_chars, group_size=8)
    player.play(concurrency)
    player.clear_cache()
    with cProfile.Profile() as profile:
        player.play(concurrency)
    player.runner.stop()
    pstats.Stats(profile).sort_stats("cumtime").print_stats(r"gspo_rllib|ray|tokenizers", 40)


def _print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['concurrency']:11d} {row['turns']:5d} {row['context']:7d} {row['tokens']:7d} "
        f"{row['runner_tokens_per_s']:7.0f} {row['raw_tokens_per_s']:7.0f} {statistics.median(row['ratios']):6.2f}",
        flush=True,
    )


def _print_lockstep(row: dict[str, Any]) -> None:
    print(
        f"continuous {row['continuous_s']:.2f} s, lock-step {row['lockstep_s']:.2f} s for {row['tokens']} tokens in "
        f"{row['trajectories']} x {row['turns']} turns; at least {row['forward_passes']:.0f} and "
        f"{row['lockstep_forward_passes']:.0f} forward passes; ratio {statistics.median(row['ratios']):.2f}"
    )


def main() -> None:
    """Measures, prints the tables, and records the two ratios if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also 200 turns, and longer rollouts; 15 minutes")
    parser.add_argument("--goals", action="store_true", help="only the two rows that have a goal; 1 minute")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the env runner's time goes instead")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    parser.add_argument("--record", action="store_true", help="merge the ratios into benchmarks/latest.json")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        model = str(build_model(pathlib.Path(folder) / "model", max_position_embeddings=4608, initializer_range=0.1))
        if args.profile:
            _profile(model)
            return
        # One vLLM for all rows: a runner with an equal engine spec shares it while this runner lives.
        holder = BackgroundSampler(model, 1, 16)
        rows = []
        print("env runner over raw vLLM, tokens per CPU second")
        print(f"{'concurrency':>11} {'turns':>5} {'context':>7} {'tokens':>7} {'runner':>7} {'raw':>7} {'ratio':>6}")
        for case in [RECORDED] if args.goals else FULL if args.full else SHORT:
            rows.append(over_raw(model, case, args.repetitions if case == RECORDED else -(-args.repetitions // 2)))
            _print_row(rows[-1])
            if args.record and case == RECORDED:
                measure.record("rollout_over_vllm", rows[-1]["ratios"], command=COMMAND, tokens=rows[-1]["tokens"])
        lockstep = over_lockstep(model, args.repetitions)
        _print_lockstep(lockstep)
        holder.runner.stop()
    if args.record:
        measure.record("continuous_over_lockstep", lockstep["ratios"], command=COMMAND, tokens=lockstep["tokens"])
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"over_raw": rows, "over_lockstep": lockstep}, indent=1))


if __name__ == "__main__":
    main()
