"""How near a learner's update is to a bare forward and backward pass over the same tokens.

    .venv/bin/python benchmarks/learner.py
    .venv/bin/python benchmarks/learner.py --vocabularies 32768 152064 --data single_turn multi_turn
    .venv/bin/python benchmarks/learner.py --precision bfloat16

Both sides run in this process, alternately, on the same trajectories with the same float32 model and one thread, under
bfloat16 autocast where that is asked for:

- *learner*: ``LanguageLearner.update`` as training calls it (episodes to tokens, advantages, packing, forward, GSPO
  loss, backward, statistics), one minibatch, the optimiser's step left out;
- *bare*: the model's layers on every trajectory, forward and backward, and for the head ``cross_entropy`` over the
  logits of the sampled tokens, nothing else computed. Run the faster of two ways: packed rows with this project's
  attention, or one trajectory after the other with transformers' own (neither pads). Holding all logits of a row at
  once is what it pays for its speed.

``layers`` is bare without any head: what no head, however fast, can go below. CPU seconds; memory is the peak over
what the process held before the pass, gradients included.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from bare import bare, forget_gradients, stock_attention
from measure import alternate, median, peak_over_mb, ratios, record, timed
from ray.rllib.core import DEFAULT_MODULE_ID
from workload import conversations, groups_of, random_model

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.envs import UnicodeText
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.packing import pack, plan_rows
from gspo_rllib.precision import PRECISIONS

SPACES = {DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))}
BUDGET = 16384


def sides(model: str, data: str, *, precision: str = "float32") -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """What is compared, each a function without arguments; and the sizes of the work."""
    config = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(model_config={"path": model, "precision": precision})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .training(
            group_size=8, groups_per_iteration=2, num_minibatches=1, old_log_probs="engine",
            max_tokens_per_micro_batch=BUDGET,
        )
        .debugging(seed=0)
    )  # fmt: skip
    learner = config.build_learner(spaces=SPACES)
    learner._step = lambda optimizers: None
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    with stock_attention(module.model):
        played = conversations(module.model, data)
    groups = groups_of(played)
    # Not one trajectory may be left out for having no advantage.
    assert all(len({episode.get_return() for episode in group.episodes}) > 1 for group in groups)

    def update() -> None:
        forget_gradients(module.model)
        learner.update(training_data=GroupTrainingData.from_groups(groups, num_minibatches=1, seed=0), num_epochs=1)

    trajectories = [token_trajectory(e, advantage=1.0) for group in groups for e in group.episodes]
    packed, single = packed_rows(trajectories), [pack([trajectory]) for trajectory in trajectories]
    autocast = None if precision == "float32" else precision
    numbers = {
        "trajectories": len(trajectories),
        "tokens": sum(t.num_tokens for t in trajectories),
        "sampled_tokens": sum(t.num_loss_tokens for t in trajectories),
    }
    return (
        {
            "learner": update,
            "bare_packed": lambda: bare(module, packed, head=True, autocast_dtype=autocast),
            "bare_single": lambda: bare(module, single, head=True, autocast_dtype=autocast),
            "layers_packed": lambda: bare(module, packed, head=False, autocast_dtype=autocast),
            "layers_single": lambda: bare(module, single, head=False, autocast_dtype=autocast),
        },
        numbers,
    )


def packed_rows(trajectories: list[Any]) -> list[dict[str, Any]]:
    """Micro-batches of as many trajectories as fit, as the learner packs them."""
    plan = plan_rows([t.num_tokens for t in trajectories], BUDGET)
    return [pack([trajectories[i] for i in row]) for row in plan]


def _peak(function: Callable[[], Any]) -> float:
    """MB of a pass over what the model and its gradients take."""
    function()
    return peak_over_mb(function)


def measure(
    folder: pathlib.Path, size: str, vocabulary: int, data: str, repetitions: int, precision: str
) -> dict[str, Any]:
    """One row of the table."""
    functions, numbers = sides(random_model(folder, size=size, vocabulary=vocabulary), data, precision=precision)
    # The first, slower runs say which of two ways is the faster.
    first = {name: timed(function).cpu_s for name, function in functions.items()}
    best = {kind: min((f"{kind}_packed", f"{kind}_single"), key=first.__getitem__) for kind in ("bare", "layers")}
    kept = ("learner", best["bare"], best["layers"])
    timings = alternate({name: functions[name] for name in kept}, repetitions, warm_up=0)
    return {
        "size": size,
        "vocabulary": vocabulary,
        "data": data,
        "precision": precision,
        **numbers,
        "repetitions": repetitions,
        **{f"{name}_cpu_s": median(runs) for name, runs in timings.items()},
        "bare": best["bare"],
        "over_bare": ratios(timings[best["bare"]], timings["learner"]),
        "over_layers": ratios(timings[best["layers"]], timings["learner"]),
        "memory_mb": {side: _peak(functions[side]) for side in ("learner", best["bare"])},
    }


def main() -> None:
    """Measures and prints one row per model, vocabulary and data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["small"], choices=["small", "larger"])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32768])
    parser.add_argument("--data", nargs="+", default=["single_turn"], choices=["single_turn", "multi_turn"])
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--folder", type=pathlib.Path, help="where random models are kept; a temporary one without it")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    parser.add_argument("--record", action="store_true", help="merge the ratio into benchmarks/latest.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        cells = [(s, v, d) for s in args.sizes for v in args.vocabularies for d in args.data]
        rows = [measure(folder, *cell, args.repetitions, args.precision) for cell in cells]
    _print(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if args.record:
        row = rows[0]
        record(
            "learner_over_bare",
            row["over_bare"],
            command=".venv/bin/python benchmarks/learner.py",
            vocabulary=row["vocabulary"],
            tokens=row["tokens"],
            size=row["size"],
        )


def _print(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'model':>7} {'vocab':>6} {'data':>12} {'tokens':>6} {'sampled':>7} {'learner tok/s':>13} {'bare tok/s':>10} "
        f"{'÷ bare':>6} {'÷ layers':>8} {'MB':>6} {'bare MB':>7}"
    )
    for row in rows:
        bare = row[f"{row['bare']}_cpu_s"]
        memory = row["memory_mb"]
        print(
            f"{row['size']:>7} {row['vocabulary']:>6} {row['data']:>12} {row['tokens']:>6} {row['sampled_tokens']:>7} "
            f"{row['tokens'] / row['learner_cpu_s']:>13.0f} {row['tokens'] / bare:>10.0f} "
            f"{statistics.median(row['over_bare']):>6.2f} {statistics.median(row['over_layers']):>8.2f} "
            f"{memory['learner']:>6.0f} {memory[row['bare']]:>7.0f}"
        )


if __name__ == "__main__":
    main()
