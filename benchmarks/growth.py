"""How cost grows with size: the exponent of CPU seconds in tokens, trajectories, turns, vocabulary, runners, learners.

    .venv/bin/python benchmarks/growth.py
    .venv/bin/python benchmarks/growth.py --only "rollout"

Each row doubles one size a few times and fits a line to log(cost) against log(size); its slope is the exponent, 1 for a
cost in proportion. Goal: at most 1.1. Attention alone may grow faster, so the learner against the length of a
trajectory stands apart, without a goal. A rollout's cost is the env runner's own: what the engine (a stand-in, see
``runner_cost.py``) and the environments take is subtracted. With runners and learners in Ray actors it is what the
driver's process spends, one thread that serves them all; what it does with the reports of up to 256 runners is measured
on copies of one report, without runners.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import pickle
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import measure
import numpy as np
import ray
import runner_cost
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from workload import Conversation, groups_of

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.connectors.episodes_to_tokens import EpisodesToTokens
from gspo_rllib.connectors.group_advantages import GroupAdvantages
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.envs import UnicodeText
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.warmstart.models import build_model
from gspo_rllib.weight_sync import Weights

GOAL = 1.1
SPACES = {DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))}
MODEL: dict[str, Any] = {
    "hidden_size": 64, "num_layers": 2, "head_dim": 32, "intermediate_size": 128, "max_position_embeddings": 8192,
}  # fmt: skip

Costs = Callable[[int], float]
"""CPU seconds at a size."""


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Slope of the least-squares line through (log size, log cost)."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def groups(trajectories: int, turns: int = 4, shown: int = 12, sampled: int = 20) -> list[Any]:
    """Groups of 8 trajectories of equal lengths, of random tokens."""
    rng = np.random.default_rng(0)
    played = []
    for index in range(trajectories):
        parts = [(rng.integers(3, 300, shown), rng.integers(3, 300, sampled)) for _ in range(turns)]
        ids = [(a.astype(np.int32), b.astype(np.int32)) for a, b in parts]
        logp = np.full(turns * sampled, -5.7, dtype=np.float32)
        played.append(Conversation(ids, logp, reward=float(index % 3 == 0)))
    return groups_of(played)


def config(model: str, *, num_env_runners: int = 0, num_learners: int = 0) -> GSPOConfig:
    """A job whose learner sees each trajectory once."""
    job: GSPOConfig = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Arithmetic-v0")
        .rl_module(model_config={"path": model})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=4)
        .learners(num_learners=num_learners)
        .training(max_tokens_per_micro_batch=4096)
        .debugging(seed=0)
    )
    return job


class Bench:
    """The costs that are measured, each a function of one size.

    Args:
        folder: Where models go.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.model = str(build_model(folder / "model", **MODEL))
        self.renderer = ChatRenderer(load_tokenizer(self.model))
        self._learners: dict[int, Any] = {}

    def rollout(self, turns: int, trajectories: int) -> float:
        """The env runner's own cost."""
        ms_per_turn, _ = runner_cost._play(self.renderer, turns, trajectories)
        return ms_per_turn * turns * trajectories / 1e3

    def learner(self, data: list[Any], vocabulary: int = 0) -> float:
        """One update; the learner is kept."""
        if vocabulary not in self._learners:
            model = self._with_vocabulary(vocabulary) if vocabulary else self.model
            self._learners[vocabulary] = config(model).build_learner(spaces=SPACES)
        learner = self._learners[vocabulary]
        training_data = GroupTrainingData.from_groups(data, num_minibatches=1, seed=0)
        return measure.timed(lambda: learner.update(training_data=training_data, num_epochs=1)).cpu_s

    def preparation(self, trajectories: int) -> float:
        """Groups to minibatches, to shards, to token trajectories with advantages."""
        data = groups(trajectories)

        def prepare() -> None:
            training_data = GroupTrainingData.from_groups(data, num_minibatches=4, seed=0)
            for shard, _ in training_data.shard(2):
                batch: dict[str, Any] = {}
                for piece in (EpisodesToTokens(), GroupAdvantages()):
                    batch = piece(rl_module=None, batch=batch, episodes=shard.episodes, shared_data={}, metrics=None)

        return measure.timed(prepare).cpu_s

    def _with_vocabulary(self, vocabulary: int) -> str:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = build_model(self.folder / str(vocabulary), **MODEL)
        enlarged = AutoConfig.from_pretrained(folder)
        enlarged.vocab_size = vocabulary
        AutoModelForCausalLM.from_config(enlarged, dtype=torch.float32).save_pretrained(folder)
        return str(folder)


def row(
    cost: str, against: str, sizes: Sequence[int], function: Costs, repetitions: int, *, goal: float | None = GOAL
) -> dict[str, Any]:
    """Measures all sizes in turn, ``1 + repetitions`` rounds, the first of which warms up."""
    rounds = [[function(size) for size in sizes] for _ in range(repetitions + 1)][1:]
    costs = [statistics.median(column) for column in zip(*rounds, strict=True)]
    slope = exponent(sizes, costs)
    return {"cost": cost, "against": against, "sizes": list(sizes), "cpu_s": costs, "exponent": slope, "goal": goal}


def local_rows(folder: pathlib.Path, repetitions: int, only: str) -> Iterator[dict[str, Any]]:
    """Everything that needs no other process."""
    bench = Bench(folder)

    def longer(tokens: int) -> float:
        return bench.learner(groups(8, turns=tokens // 64, shown=24, sampled=40))

    cases: list[tuple[str, str, list[int], Costs, float | None]] = [
        ("rollout", "trajectories", [16, 32, 64, 128, 256], lambda n: bench.rollout(10, n), GOAL),
        ("rollout", "turns", [25, 50, 100, 200], lambda n: bench.rollout(n, 8), GOAL),
        ("preparation", "trajectories", [256, 512, 1024, 2048], bench.preparation, GOAL),
        ("learner", "trajectories of 128 tokens", [16, 32, 64, 128], lambda n: bench.learner(groups(n)), GOAL),
        ("learner", "vocabulary", [4096, 8192, 16384, 32768], lambda n: bench.learner(groups(16), n), GOAL),
        ("learner, attention", "tokens of 8 trajectories", [512, 1024, 2048, 4096], longer, None),
    ]  # fmt: skip
    for cost, against, sizes, function, goal in cases:
        if only in f"{cost} {against}":
            yield row(cost, against, sizes, function, repetitions, goal=goal)


class Reports:
    """What an iteration costs the driver itself: reports are read, put together, and dealt out to 8 learners.

    Args:
        model: A folder; one group is played with it for the measurements that a runner's report brings along.
    """

    def __init__(self, model: str) -> None:
        _start_ray()
        algo = config(model).build_algo()
        _, (self._measured,) = algo._source.take(1)
        algo.stop()
        self._packed: dict[int, list[bytes]] = {}

    def cost(self, runners: int, turns: int = 4) -> float:
        """Of so many runners with a group of 8 trajectories each, 32 tokens a turn."""
        if len(self._packed.get(turns, ())) < runners:
            played = groups(8 * runners, turns=turns)
            self._packed[turns] = [
                pickle.dumps(SampleReport(groups=[group], metrics=self._measured)) for group in played
            ]
        packed = self._packed[turns][:runners]

        def work() -> None:
            reports = [pickle.loads(report) for report in packed]
            MetricsLogger(root=True).aggregate([report.metrics for report in reports], key="env_runners")
            taken = [group for report in reports for group in report.groups]
            for shard, _ in GroupTrainingData.from_groups(taken, num_minibatches=4, seed=0).shard(8):
                pickle.dumps(shard)

        return measure.timed(work).cpu_s


def report_rows(model: str, repetitions: int, only: str) -> Iterator[dict[str, Any]]:
    """What the driver does with reports, as they come out of Ray's object store: simulated, there are no runners."""
    if only not in "reports runners reports tokens":
        return
    reports = Reports(model)
    yield row("reports", "runners", [16, 32, 64, 128, 256], reports.cost, repetitions)
    one = row("reports", "tokens of 64 runners", [4, 16, 64], lambda turns: reports.cost(64, turns), repetitions)
    tokens = [64 * 8 * 32 * turns for turns in one["sizes"]]
    slope, _ = np.polyfit(tokens, one["cpu_s"], 1)
    yield {**one, "sizes": tokens, "exponent": exponent(tokens, one["cpu_s"]), "us_per_token": 1e6 * float(slope)}


def _start_ray() -> None:
    if not ray.is_initialized():
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def driver_rows(model: str, repetitions: int, only: str) -> Iterator[dict[str, Any]]:
    """What actors cost the driver: weights to 1, 2 and 3 runners, trajectories to 1 and 2 learners."""
    if only in "weights runners update learners":
        _start_ray()
    if only in "weights runners":
        algo = config(model, num_env_runners=1).build_algo()

        def sync(count: int) -> float:
            missing = count - algo.env_runner_group.num_remote_env_runners()
            if missing > 0:
                algo.env_runner_group.add_workers(missing)
            return measure.timed(lambda: Weights(algo.learner_group).push(algo.env_runner_group, force=True)).cpu_s

        # One size after the other: there is no taking runners away.
        costs = [statistics.median([sync(count) for _ in range(4 * repetitions)][1:]) for count in (1, 2, 3)]
        yield {"cost": "weights", "against": "runners", "sizes": [1, 2, 3], "cpu_s": costs, "goal": GOAL} | {
            "exponent": exponent([1, 2, 3], costs)
        }
        algo.stop()
    if only in "update learners":
        learners = {count: config(model, num_learners=count).build_learner_group(spaces=SPACES) for count in (1, 2)}
        data = groups(64)

        def update(count: int) -> float:
            training_data = GroupTrainingData.from_groups(data, num_minibatches=1, seed=0)
            return measure.timed(lambda: learners[count].update(training_data=training_data, num_epochs=1)).cpu_s

        yield row("update", "learners", [1, 2], update, 2 * repetitions)
        for group in learners.values():
            group.shutdown()


def main() -> None:
    """Measures and prints one row per cost and size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", default="", help='rows whose "cost size" holds this text')
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()

    rows = []
    print(f"{'cost':>19} {'against':>26} {'CPU ms at each size':>52} {'exponent':>8} {'goal':>5}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        local = local_rows(folder, args.repetitions, args.only)
        asked = str(folder / "model"), args.repetitions, args.only
        for one in itertools.chain(local, report_rows(*asked), driver_rows(*asked)):
            rows.append(one)
            costs = "  ".join(f"{s}: {c * 1e3:.1f}" for s, c in zip(one["sizes"], one["cpu_s"], strict=True))
            goal = "" if one["goal"] is None else f"{one['goal']:.1f}"
            print(f"{one['cost']:>19} {one['against']:>26} {costs:>52} {one['exponent']:8.2f} {goal:>5}", flush=True)
            if one["against"] == "runners" and one["cost"] == "reports":
                print(f"{'':>46} {1e3 * one['cpu_s'][-1] / one['sizes'][-1]:.2f} ms per runner")
            elif "us_per_token" in one:
                print(f"{'':>46} {one['us_per_token']:.2f} us per token")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
