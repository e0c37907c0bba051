"""bfloat16 against float32: the learner's and the rollout's CPU time, and how far log-probs are apart.

    .venv/bin/python benchmarks/precision.py
    .venv/bin/python benchmarks/precision.py --parts noise --model models/seed

*Learner*: ``benchmarks/learner.py``'s update (episodes to gradient), one learner in turn in either precision.
*Rollout*: the same env runner plays the same number of multi-turn trajectories with replies of a fixed length, each
time from an empty cache, on an engine of one precision and then on one of the other.
*Noise*: trajectories of the calculator, sampled by ``--model``, and |log ratio| at the same weights for each ratio's
scope: a token, the mean over a turn, the mean over a trajectory. Between engine and learner, and between two passes of
one learner that pack the trajectories otherwise, which is what is left where old log-probs are the learner's own.

CPU seconds of this process, one thread. ``machine.py``'s line says what the processor can do with bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import machine
import measure
import numpy as np
import torch
from learner import SPACES, sides
from workload import SIZES, TalkEnv, random_model

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.precision import PRECISIONS
from gspo_rllib.types import turns

PARTS = ("learner", "rollout", "noise")
ENGINE_OPTIONS: dict[str, dict[str, Any]] = {"vllm": {"kv_cache_memory_bytes": 512 << 20}, "transformers": {}}


def learner_times(model: str, repetitions: int) -> dict[str, Any]:
    """CPU seconds of an update in either precision, and the ratio of neighbouring runs."""
    functions: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    for precision in PRECISIONS:
        compared, numbers = sides(model, "single_turn", precision=precision)
        functions[precision] = compared["learner"]
    return {"part": "learner", **numbers, **_compared(measure.alternate(functions, repetitions))}


def rollout_times(model: str, engine: str, args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of a rollout in either precision, and the ratio of neighbouring runs."""
    timings: dict[str, Any] = {}
    for precision in PRECISIONS:  # one after the other: a process has one engine of vLLM's at a time
        sampler = Sampler(model, engine, precision, args)
        timings |= measure.alternate({precision: sampler.play}, args.repetitions)
        sampler.runner.stop()
    sizes = {"engine": engine, "turns": args.turns, "tokens_per_turn": args.tokens, "trajectories": args.trajectories}
    return {"part": "rollout", **sizes, **_compared(timings)}


def _compared(timings: dict[str, list[measure.Timing]]) -> dict[str, Any]:
    return {
        **{f"{precision}_cpu_s": measure.median(runs) for precision, runs in timings.items()},
        "float32_over_bfloat16": measure.ratios(timings["float32"], timings["bfloat16"]),
    }


class Sampler:
    """An env runner with an engine of one precision, which answers every request with as many tokens as it may.

    Args:
        model: Folder of the model.
        engine: ``"transformers"`` or ``"vllm"``.
        precision: One of ``PRECISIONS``.
        args: Sizes.
    """

    def __init__(self, model: str, engine: str, precision: str, args: argparse.Namespace) -> None:
        from safetensors.numpy import load_file

        config = (
            GSPOConfig()
            .environment(TalkEnv, env_config={"turns": args.turns, "observation_chars": 24})
            .rl_module(model_config={"path": model, "precision": precision})
            .generation(engine=engine, max_tokens_per_turn=args.tokens, engine_options=ENGINE_OPTIONS[engine])
            .env_runners(num_envs_per_env_runner=args.trajectories)
            .training(group_size=args.trajectories)
            .debugging(seed=0)
        )
        self.runner = LanguageEnvRunner(config=config, worker_index=0)
        self._weights = load_file(pathlib.Path(model) / "model.safetensors")
        self.runner.set_weights(self._weights, 1)
        engine_: Any = self.runner._engine
        engine_._stop_token_ids, engine_._stop = [], frozenset()
        self._turns = args.turns * args.trajectories

    def play(self) -> None:
        """Plays one group from an empty cache."""
        self.runner.set_weights(self._weights, 1, force=True)
        episodes = self.runner.sample(group_ids=["0"])
        if sum(map(len, episodes)) != self._turns:
            raise RuntimeError(f"{sum(map(len, episodes))} turns were played: {self.runner.last_errors()}")


def noise(model: str, engine: str, groups: int) -> Iterator[dict[str, Any]]:
    """One row per pair of passes over the same trajectories, with the same weights."""
    for precision in PRECISIONS:
        config = _calculator(model, engine, precision)
        runner = LanguageEnvRunner(config=config, worker_index=0)
        from safetensors.numpy import load_file

        runner.set_weights(load_file(pathlib.Path(model) / "model.safetensors"), 1)
        episodes = runner.sample(group_ids=[str(number) for number in range(groups)])
        lengths = [[len(turn.action_token_ids) for turn in turns(episode)] for episode in episodes]
        sampled = [token_trajectory(episode, advantage=1.0) for episode in episodes]
        scored = {}
        for learner in (precision, "float32") if precision != "float32" else (precision,):
            for packing, name in ((None, "packed"), (False, "a row each")):
                built = _calculator(model, engine, learner, packing=packing).build_learner(spaces=SPACES)
                scored[learner, name] = built.score(sampled, [1.0] * len(sampled))
        engines = [trajectory.behavior_logp for trajectory in sampled]
        pairs = {f"engine {precision}, learner {to}": (engines, scored[to, "packed"]) for to, _ in scored}
        same = f"learner {precision}, packed otherwise"
        pairs[same] = (scored[precision, "packed"], scored[precision, "a row each"])
        for name, (left, right) in pairs.items():
            difference = [a - b for a, b in zip(left, right, strict=True)]
            yield {
                "part": "noise",
                "between": name,
                "tokens": sum(map(len, difference)),
                **_by_scope(difference, lengths),
            }


def _by_scope(difference: list[np.ndarray], lengths: list[list[int]]) -> dict[str, Any]:
    """Mean and largest |log ratio| of each scope, in nats."""
    of_turns = [np.split(row, np.cumsum(of_row)[:-1]) for row, of_row in zip(difference, lengths, strict=True)]
    scopes = {
        "token": np.concatenate(difference),
        "turn": np.array([part.mean() for row in of_turns for part in row]),
        "sequence": np.array([row.mean() for row in difference]),
    }
    return {
        name: {"mean": float(np.abs(values).mean()), "largest": float(np.abs(values).max())}
        for name, values in scopes.items()
    }


def _calculator(model: str, engine: str, precision: str, packing: bool | None = None) -> GSPOConfig:
    config: GSPOConfig = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 6})
        .rl_module(model_config={"path": model, "precision": precision, "packing": packing})
        .generation(engine=engine, max_tokens_per_turn=16, engine_options=ENGINE_OPTIONS[engine])
        .env_runners(num_envs_per_env_runner=32)
        .training(group_size=8, max_tokens_per_micro_batch=4096)
        .debugging(seed=0)
    )
    return config


def main() -> None:
    """Prints one row per part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS[:2]), choices=PARTS)
    parser.add_argument("--size", default="larger", choices=list(SIZES))
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--engines", nargs="+", default=["vllm", "transformers"], choices=["vllm", "transformers"])
    parser.add_argument("--trajectories", type=int, default=32, help="played at a time")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16, help="of every reply")
    parser.add_argument("--groups", type=int, default=16, help="of 8 trajectories, for the noise")
    parser.add_argument("--model", help="a policy that plays the calculator, for the noise")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()
    if "noise" in args.parts and args.model is None:
        parser.error("--parts noise needs --model: a random model is sure of nothing, and its noise is another")
    torch.set_num_threads(1)
    print(machine.sentence())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts:
            if part == "noise":
                measured = noise(args.model, args.engines[-1], args.groups)
            else:
                model = random_model(pathlib.Path(folder), size=args.size, vocabulary=args.vocabulary)
                measured = iter(
                    [learner_times(model, args.repetitions)]
                    if part == "learner"
                    else [rollout_times(model, engine, args) for engine in args.engines]
                )
            for row in measured:
                rows.append(row)
                print(json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine.facts(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
