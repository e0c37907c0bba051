"""How much of raw offline vLLM's speed is left when it plays environments: tokens/s of the env runner over raw vLLM.

    .venv/bin/python benchmarks/rollout.py

Both sides run in this process on the same engine, alternately. The env runner plays groups of multi-turn trajectories,
everything included: rendering, tokenising, environment steps, episodes. The raw side is then given the very same turns
as independent requests, all at once: same prompts, same number of sampled tokens, same concurrency, same sampling
options, and its outputs are thrown away. The prefix cache starts empty on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import string
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.engines.protocol import GenerationRequest
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.types import turns
from gspo_rllib.warmstart.models import build_model

TEXT = gym.spaces.Text(max_length=100_000, min_length=0, charset=string.printable)


class TalkEnv(gym.Env):
    """Answers every action with a line of text for a fixed number of turns."""

    metadata = {"render_modes": [], "blocking": False}
    observation_space = TEXT
    action_space = TEXT

    def __init__(self, turns: int, observation_chars: int) -> None:
        self.turns, self.observation_chars, self.turn = turns, observation_chars, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict]:
        """Starts over; the seed decides the text."""
        super().reset(seed=seed)
        self.turn = 0
        return self._text(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        """Answers anything with text."""
        self.turn += 1
        return self._text(), 0.0, self.turn == self.turns, False, {}

    def _text(self) -> str:
        return "".join(self.np_random.choice(list("abcdefghij "), self.observation_chars))


def main() -> None:
    """Measures and prints one row per concurrency."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--tokens-per-turn", type=int, default=16)
    parser.add_argument("--observation-chars", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        model = build_model(pathlib.Path(folder) / "model", max_position_embeddings=4096, initializer_range=0.1)
        rows = [measure(str(model), concurrency, args) for concurrency in args.concurrency]
    print(f"{'concurrency':>11} {'turns':>5} {'tokens':>7} {'runner tok/s':>12} {'raw vLLM tok/s':>14} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['concurrency']:11d} {row['turns']:5d} {row['tokens']:7d} {row['runner_tokens_per_s']:12.0f} "
            f"{row['raw_tokens_per_s']:14.0f} {row['ratio']:6.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def measure(model: str, concurrency: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row: medians over the repetitions, and the median of the ratios of neighbouring pairs."""
    config = (
        GSPOConfig()
        .environment(TalkEnv, env_config={"turns": args.turns, "observation_chars": args.observation_chars})
        .rl_module(model_config={"path": model})
        .generation(engine="vllm", max_tokens_per_turn=args.tokens_per_turn)
        .env_runners(num_envs_per_env_runner=concurrency)
        .training(group_size=8)
        .debugging(seed=0)
    )
    runner = LanguageEnvRunner(config=config, worker_index=0)
    weights = _weights(model)
    runner.set_weights(weights, 1)
    engine = runner._engine
    pairs, tokens = [], 0
    for repetition in range(args.repetitions + 1):
        engine.load_weights(weights, 1)
        group_ids = [f"{repetition}/{i}" for i in range(max(1, concurrency // 4))]
        started = time.perf_counter()
        episodes = runner.sample(group_ids=group_ids)
        runner_s = time.perf_counter() - started
        requests = _same_turns(episodes)
        tokens = sum(r.max_tokens for r in requests)
        engine.load_weights(weights, 1)
        raw_s = _raw(engine, requests)
        if repetition:  # the first pair warms up
            pairs.append((runner_s, raw_s))
    runner.stop()
    return {
        "concurrency": concurrency,
        "turns": args.turns,
        "tokens": tokens,
        "repetitions": len(pairs),
        "runner_tokens_per_s": tokens / statistics.median(a for a, _ in pairs),
        "raw_tokens_per_s": tokens / statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def _same_turns(episodes: list[Any]) -> list[GenerationRequest]:
    requests = []
    for number, episode in enumerate(episodes):
        context: list[int] = []
        for i, turn in enumerate(turns(episode)):
            context += turn.prompt_token_ids.tolist()
            requests.append(
                (i, GenerationRequest(f"{number}/{i}", context.copy(), len(turn.action_token_ids), 1.0, seed=number))
            )
            context += turn.action_token_ids.tolist()
    # First turns first: a later turn then finds its history in the prefix cache, as it does in play.
    return [request for _, request in sorted(requests, key=lambda pair: pair[0])]


def _raw(engine: Any, requests: list[GenerationRequest]) -> float:
    """Seconds of vLLM's own offline loop for the same requests."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    vllm = engine._engine
    started = time.perf_counter()
    with engine._eager():
        for request in requests:
            options = SamplingParams(
                max_tokens=request.max_tokens, temperature=1.0, seed=request.seed, ignore_eos=True, logprobs=0,
                flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
            )  # fmt: skip
            prompt = {"prompt_token_ids": request.prompt_token_ids}
            vllm.add_request(request_id=request.request_id, prompt=prompt, params=options)
        while vllm.has_unfinished_requests():
            vllm.step()
    return time.perf_counter() - started


def _weights(model: str) -> dict[str, np.ndarray]:
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(model, dtype="float32").state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


if __name__ == "__main__":
    main()
