"""What ASHA saves: one grid to its end, and with bad trials ended early; and what the paper's clip range costs here.

    .venv/bin/gspo-rllib warmstart gspo_rllib.envs:gspo_rllib/Calculator-v0 models/small --careless \\
        --env-config operations=2 --sizes hidden_size=64 num_layers=2 num_heads=2 num_kv_heads=1 head_dim=32
    .venv/bin/python benchmarks/sweeps.py --model models/small

Both are ``gspo-rllib sweep`` with the same trials, seeds and tasks; one trial at a time, in the order of the grid, so
that the counts do not depend on the machine. A trial's score is its latest evaluation. With ``--goals`` it fails where
ASHA spends more than 40 % of the grid's iterations, or ends more than 2 % below its best.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from gspo_rllib.cli.sweep_trials import SCORE
from gspo_rllib.run_results import flatten, read_results

MOST_ITERATIONS, LEAST_OF_BEST = 0.40, 0.98
PAPER = {"clip_low": 3e-4, "clip_high": 4e-4}


def sweep(options: list[str], folder: pathlib.Path, *more: str) -> dict[str, tuple[int, float]]:
    """Runs the trials; returns for each its iterations and its score."""
    command = [sys.executable, "-m", "gspo_rllib", "sweep", "calculator", *options, *more]
    # A process of its own: Tune knows an algorithm by its name in the session of Ray that it was registered in.
    done = subprocess.run([*command, "--storage", str(folder), "--trials-at-once", "1"], check=False)
    if done.returncode:
        raise SystemExit(f"the sweep failed ({done.returncode})")
    found = {}
    for file in sorted(folder.glob("*/*/result.json")):
        last = flatten(read_results(file.parent)[-1])
        found[file.parent.name] = (int(last["training_iteration"]), float(last.get(SCORE, float("nan"))))
    return found


def main() -> None:
    """Runs both sweeps and prints what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a policy that knows the tool and is careless")
    parser.add_argument("--iterations", type=int, default=18)
    parser.add_argument("--operations", type=int, default=2)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--lrs", default="1e-4,1e-5,1e-6")
    parser.add_argument("--lows", default="3e-4,0.03")
    parser.add_argument("--highs", default="4e-4,0.04")
    parser.add_argument("--tasks", type=int, default=256, help="of an evaluation")
    parser.add_argument("--goals", action="store_true", help="fail where a goal is missed")
    parser.add_argument("--json", type=pathlib.Path, help="write every trial's iterations and score")
    given = parser.parse_args()
    options = [
        f"training.lr={given.lrs}",
        f"training.clip_low={given.lows}",
        f"training.clip_high={given.highs}",
        f"training.groups_per_iteration={given.groups}",
        "training.num_minibatches=4",
        f"environment.env_config.operations={given.operations}",
        f"rl_module.model_config={{path: {pathlib.Path(given.model).absolute()}}}",
        "generation.engine=transformers",
        "generation.max_tokens_per_turn=12",
        "reporting.keep_trajectories=0",
        "run.success=null",
        "run.minutes=null",
        "run.checkpoint_every=null",
        f"--iterations={given.iterations}",
        f"--evaluate-every={max(1, given.iterations // 9)}",
        f"--evaluate-tasks={given.tasks}",
    ]
    found, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, more in (("grid", []), ("asha", ["--scheduler", "asha"])):
            begun = time.monotonic()
            found[name] = sweep(options, pathlib.Path(folder, name), *more)
            seconds[name] = time.monotonic() - begun
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    iterations = {name: sum(count for count, _ in trials.values()) for name, trials in found.items()}
    best = {name: max(trials.items(), key=lambda trial: trial[1][1]) for name, trials in found.items()}
    print(f"\n{'trial':<48} {'grid':>14} {'ASHA':>14}")
    for label, (count, score) in found["grid"].items():
        other, at = found["asha"][label]
        print(f"{label:<48} {count:>4}  {score:>8.1%} {other:>4}  {at:>8.1%}")
    for name in found:
        label, (_, score) = best[name]
        print(f"{name}: {iterations[name]} iterations, {seconds[name]:.0f} s; best {score:.1%} ({label})")
    (_, (_, highest)), (_, (_, found_by_asha)) = best["grid"], best["asha"]
    spent, reached = iterations["asha"] / iterations["grid"], found_by_asha / highest if highest else 1.0
    print(f"ASHA: {spent:.0%} of the grid's iterations, {reached:.1%} of its best")
    paper = [
        score
        for label, (_, score) in found["grid"].items()
        if label.endswith(f"clip_low={PAPER['clip_low']},clip_high={PAPER['clip_high']}")
    ]
    if paper:
        print(f"the paper's clip range at its best learning rate: {max(paper):.1%}")
    if given.goals and not (spent <= MOST_ITERATIONS and reached >= LEAST_OF_BEST):
        raise SystemExit("a goal is missed")


if __name__ == "__main__":
    main()
