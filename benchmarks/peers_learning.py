"""Does what is set up alike learn alike? Return against sampled tokens, here and in TRL, on a task of one turn.

    .venv-peers/bin/python benchmarks/peers_learning.py --record        # as `make bench-peers`

Arithmetic, two operands of two digits, from a policy warm-started on it; 16 groups of 8 per iteration, the same tasks
in the same order, 4 optimiser steps, GSPO's ratio and the same range, learning rate, AdamW, temperature and chat frame;
float32, full fine-tuning. Each side is a process in an environment of its own, as in peers_multi_turn.py, whose head
says how TRL is set up. Replies are drawn by each side's own sampler, so two runs differ as two seeds do: learners that
are equally right learn equally well within that noise.

Printed per iteration: tokens sampled so far and each side's return, the median over seeds and the lowest and highest;
then the difference of the mean return over all iterations but the first, paired by seed, with its 95 % bootstrap
interval. *Within noise* is an interval that holds 0. Of the first iteration, which is the start policy's, sides differ
by sampling alone; it is printed as the measure of that.

What is unlike: minibatches are whole groups here and mixed in TRL; the ratio's denominator is the engine's log-probs
here, which differ from the learner's by 1e-6, and the trainer's own in TRL.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile

import machine
import measure
import numpy as np
import peers_job
import peers_multi_turn
from peers_multi_turn import ROOT, Steps

from gspo_rllib.study.statistics import Estimate, estimate

JOB = "one_turn"
SIDES = ("ours, transformers", "TRL, generate")
NEVER = 2.0
"""A success that ends no side early."""


def mean_return(taken: list[dict[str, float]]) -> float:
    """Of all iterations but the first, which nobody has learnt before.

    Example:
        >>> mean_return([{"return": 0.0}, {"return": 0.5}, {"return": 1.0}])
        0.75
    """
    return statistics.fmean(step["return"] for step in taken[1:])


def difference(runs: list[Steps]) -> Estimate:
    """Ours minus TRL's mean return, over seeds."""
    ours, theirs = SIDES
    return estimate([mean_return(run[ours]) - mean_return(run[theirs]) for run in runs], np.mean)


def print_table(runs: list[Steps]) -> None:
    """Return against sampled tokens, in Markdown, and the difference."""
    print(f"\n| iteration | {' | '.join(f'{name}: tokens, return' for name in SIDES)} |")
    print("|---|" + "---|" * len(SIDES))
    for number in range(len(runs[0][SIDES[0]])):
        cells = []
        for name in SIDES:
            tokens = statistics.median(sum(step["sampled"] for step in run[name][: number + 1]) for run in runs)
            returns = [run[name][number]["return"] for run in runs]
            cells.append(f"{tokens:,.0f}, {statistics.median(returns):.2f} ({min(returns):.2f}–{max(returns):.2f})")
        print(f"| {number + 1} | {' | '.join(cells)} |")
    found = difference(runs)
    if len(runs) == 1:
        verdict = "one seed tells nothing"
    else:
        verdict = "NOT within noise" if found.excludes_zero else "within noise"
    print(
        f"\nmean return, ours - TRL's: {found.value:+.3f} (95 % from {found.low:+.3f} to {found.high:+.3f}, "
        f"{len(runs)} seeds): {verdict}\nmeasured on {machine.sentence()}"
    )


def main() -> None:
    """Runs both sides, prints the table, and records what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--iterations", type=int, default=peers_job.JOBS[JOB].iterations)
    parser.add_argument("--model", default=str(ROOT / peers_job.JOBS[JOB].model), help="start policy")
    parser.add_argument("--kept", type=pathlib.Path, help="report on what --json wrote earlier, run nothing")
    parser.add_argument("--json", type=pathlib.Path, help="also write every iteration here")
    parser.add_argument("--record", action="store_true", help="merge the ratio of returns into latest.json")
    args = parser.parse_args()
    if args.kept:
        runs: list[Steps] = json.loads(args.kept.read_text())["runs"]
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = peers_multi_turn.longer_context(args.model, peers_job.JOBS[JOB].context, folder)
            runs = [
                peers_multi_turn.compare(JOB, model, seed, list(SIDES), args.iterations, target=NEVER)
                for seed in args.seeds
            ]
    print_table(runs)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine.facts(), "runs": runs}, indent=1))
    if args.record:
        ours, theirs = SIDES
        found = difference(runs)
        measure.record(
            "learning_over_trl",
            [mean_return(run[ours]) / mean_return(run[theirs]) for run in runs],
            command=".venv-peers/bin/python benchmarks/peers_learning.py --record",
            seeds=len(runs),
            difference=[round(value, 4) for value in (found.value, found.low, found.high)],
        )


if __name__ == "__main__":
    main()
