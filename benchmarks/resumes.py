"""What killing the driver changes: nothing. Kills a run at random moments, resumes it, and counts what it trained.

    .venv/bin/python benchmarks/resumes.py --cycles 20
    .venv/bin/python benchmarks/resumes.py --cycles 20 --schedule free
    .venv/bin/python benchmarks/resumes.py --cycles 20 --schedule sync

A process trains and saves after every iteration; it is killed (SIGKILL) a random time after it was built, and another
one goes on from the newest checkpoint that is whole. At the end every group that was drawn must have been trained once
or be named in the last checkpoint. By number (``fixed_lag``) and taking turns (``sync``) a run is then made without a
kill: what was sampled, and the weights, must be equal to the bit. With ``--folder`` a command that was interrupted, or
was given few kills (``--at-most``), goes on.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

from faults import Ledger, Letters, digest_of_weights

from gspo_rllib import checkpoints
from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.errors import CheckpointError
from gspo_rllib.warmstart.models import build_model

LEDGER = "ledger.jsonl"
READY = "ready"


def config(model: str, args: argparse.Namespace) -> Any:
    """What is trained."""
    made = (
        GSPOConfig()
        .environment(Letters, env_config={})
        .rl_module(model_config={"path": model})
        .generation(engine="transformers", max_tokens_per_turn=6)
        .env_runners(num_env_runners=args.runners, num_envs_per_env_runner=8)
        .training(group_size=4, groups_per_iteration=4, num_minibatches=2, lr=1e-3)
        .debugging(seed=1)
    )
    if args.schedule != "sync":
        made.training(
            max_staleness=args.max_staleness,
            schedule=args.schedule,
            rollout_correction="truncate",
            rollout_correction_level="sequence_mean",
        )
    return made


def newest(folder: pathlib.Path) -> pathlib.Path | None:
    """The newest checkpoint that is whole."""
    for path in sorted(folder.glob("iteration_*"), reverse=True):
        try:
            return pathlib.Path(checkpoints.verify(path))
        except CheckpointError:
            continue
    return None


def train(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """The process that is killed: goes on from the newest checkpoint to the last iteration."""
    made, saved = config(str(folder.parent / "model"), args), newest(folder)
    algorithm = made.build_algo() if saved is None else GSPO.from_checkpoint(saved, config=made)
    ledger = Ledger(algorithm)

    def note(**row: Any) -> None:
        with (folder / LEDGER).open("a") as file:
            file.write(f"{json.dumps(row)}\n")
            file.flush()
            os.fsync(file.fileno())

    note(resumed_at=algorithm.iteration)
    (folder / READY).touch()
    while algorithm.iteration < args.iterations:
        before, ledger.ids = len(ledger.trained), hashlib.sha256()
        algorithm.train()
        note(
            iteration=algorithm.iteration,
            trained=[str(number) for number in ledger.trained[before:]],
            oldest=ledger.oldest,
            sampled=ledger.ids.hexdigest(),
        )
        algorithm.save_to_path(folder / f"iteration_{algorithm.iteration:06d}")
    state = algorithm.get_state(components=[])
    note(weights=digest_of_weights(algorithm), drawn=state["next_group"], unfinished=state["unfinished_groups"])
    algorithm.stop()


def starts(folder: pathlib.Path) -> int:
    """How often the run was built so far."""
    ledger = folder / LEDGER
    return ledger.read_text().count('"resumed_at"') if ledger.exists() else 0


def run(folder: pathlib.Path, args: argparse.Namespace, *, cycles: int) -> list[dict[str, Any]] | None:
    """Starts it, kills it so many times, and lets it end; goes on with what an earlier command has done of that.

    Returns:
        What its ledger says of the lineage that came to the end; None where there are kills left.
    """
    folder.mkdir(exist_ok=True)
    for cycle in range(starts(folder), cycles + 1):
        if cycle < cycles and cycle - args.begun >= args.at_most:
            print(f"{cycle} of {cycles} kills so far; the same command goes on")
            return None
        (folder / READY).unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--child", str(folder)])
        while cycle < cycles and not (folder / READY).exists() and process.poll() is None:
            time.sleep(0.1)
        if cycle < cycles:
            time.sleep(random.Random(f"{args.seed} {cycle}").uniform(0, 2 * args.pause))
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        if cycle == cycles and code:
            raise SystemExit(f"the last process ended with {code}")
    lineage: list[dict[str, Any]] = []
    for row in map(json.loads, (folder / LEDGER).read_text().splitlines()):
        if "resumed_at" in row:
            lineage = [kept for kept in lineage if kept.get("iteration", math.inf) <= row["resumed_at"]]
        else:
            lineage.append(row)
    return lineage


def main() -> None:
    """Prints what was lost or trained twice, and whether anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=20, help="kills")
    parser.add_argument("--iterations", type=int, default=60, help="of the whole run")
    parser.add_argument("--runners", type=int, default=0)
    parser.add_argument("--schedule", choices=("fixed_lag", "free", "sync"), default="fixed_lag")
    parser.add_argument("--max-staleness", type=int, default=2)
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds from a start to the kill")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--folder", type=pathlib.Path, help="keeps what was done here, and goes on with it")
    parser.add_argument("--at-most", type=int, default=1000, help="no more kills than this now")
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        train(args.child, args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        args.begun = starts(folder / "killed")
        sizes: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
        more: dict[str, Any] = {"intermediate_size": 128, "vocab_size": 320, "initializer_range": 0.3, "seed": 7}
        if not (folder / "model").exists():
            build_model(folder / "model", **sizes, **more, max_position_embeddings=512)
        killed = run(folder / "killed", args, cycles=args.cycles)
        if killed is None:
            return
        *iterations, end = killed
        trained = collections.Counter(name for row in iterations for name in row["trained"])
        lost = end["drawn"] - len({*trained, *end["unfinished"]})
        twice = sum(count - 1 for count in trained.values()) + len(trained.keys() & set(end["unfinished"]))
        print(
            f"{args.schedule}: {args.cycles} kills in {len(iterations)} iterations: {lost} groups of {end['drawn']} "
            f"lost, {twice} trained twice; oldest {max(row['oldest'] for row in iterations)}"
        )
        differs = False
        if args.schedule != "free":
            undisturbed = run(folder / "undisturbed", args, cycles=0)
            assert undisturbed is not None
            *expected, whole = undisturbed
            sampled = [row["sampled"] for row in iterations] == [row["sampled"] for row in expected]
            differs = not sampled or whole["weights"] != end["weights"]
            print(
                f"against a run without a kill: what was sampled {'is equal' if sampled else 'DIFFERS'}, weights and "
                f"optimiser {'are equal' if whole['weights'] == end['weights'] else 'DIFFER'}"
            )
        if lost or twice or differs:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
