"""What a change costs the whole synchronous loop: ``loop.py`` of two checkouts, in turn, in one run.

    git worktree add ../before COMMIT
    .venv/bin/python benchmarks/before_after.py ../before

Each round starts the other checkout first. What is compared is the loop's CPU seconds over those of the work it cannot
avoid, which each process measures beside it: so a machine that is slower for a while is slower for both.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).resolve().parents[1]


def measure(checkout: pathlib.Path, more: list[str]) -> list[dict[str, Any]]:
    """The rows of one run of ``loop.py``."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "benchmarks/loop.py", "--json", file.name, *more]
        subprocess.run(command, cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, check=True)
        rows: list[dict[str, Any]] = json.loads(pathlib.Path(file.name).read_text())
        return rows


def main() -> None:
    """Prints the ratio of each round, and all of them together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=pathlib.Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=2)
    args, more = parser.parse_known_args()
    trees = {"before": args.before.resolve(), "after": HERE}
    costs: dict[str, list[float]] = {name: [] for name in trees}
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    for number in range(args.rounds):
        for name in sorted(trees, reverse=bool(number % 2)):
            rows = measure(trees[name], more)
            costs[name] += [row["loop_cpu_s"] / (row["raw_vllm_cpu_s"] + row["bare_cpu_s"]) for row in rows]
            seconds[name] += [row["loop_cpu_s"] for row in rows]
    for name in trees:
        low, high = min(costs[name]), max(costs[name])
        print(
            f"{name}: {statistics.median(costs[name]):.3f} times the work that cannot be avoided ({low:.3f} to "
            f"{high:.3f}, {len(costs[name])} iterations), {statistics.median(seconds[name]):.2f} CPU s an iteration"
        )
    print(
        f"after over before: {statistics.median(costs['after']) / statistics.median(costs['before']):.3f}, in seconds "
        f"{statistics.median(seconds['after']) / statistics.median(seconds['before']):.3f}"
    )


if __name__ == "__main__":
    main()
