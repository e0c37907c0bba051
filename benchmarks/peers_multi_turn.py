"""What does an iteration of many-turn training cost here, in TRL and in AgileRL, and how soon is the task learnt?

    .venv-peers/bin/python benchmarks/peers_multi_turn.py --record                       # as `make bench-peers`
    .venv-peers/bin/python benchmarks/peers_multi_turn.py --jobs many_turns --seeds 0    # one seed of the short task

Two jobs. *many_turns*: Calculator with 6 operations, 7 to 14 turns, 16 groups of 8, from the careless policy of half a
million parameters that ``make train`` starts from. *long_turns*: Recall, 140 turns and 2,200 tokens of context, 4
groups of 8, from a policy warm-started on 60 turns. One environment, wrapped for each side (``peers_job.Played``), one
start model, one chat frame, temperature 1, 4 optimiser steps per iteration, float32, one compute thread per process.
Each side is a process in an environment of its own, with pinned versions; they take turns, iteration by iteration, so
that one works while the others wait. A side stops at its first iteration with 90 % success, but not before the fifth;
of *long_turns*, where a peer's takes minutes, also with the iteration in which it has used 300 CPU seconds.

CPU seconds are of the process and all its children (Ray's among ours), what other programs on the machine disturb
least; wall clock is worth something only where nothing else runs. The first of several iterations warms up and
is left out of the medians, but not out of what it takes to 90 %, which counts from the start of the process.

Ours: ``GSPOConfig`` as in configs/calculator.yaml with every trajectory of an iteration in play at once, everything in
the driver, full fine-tuning; engine ``transformers`` or ``vllm``.

TRL 1.16: ``GRPOTrainer`` with a ``rollout_func``, full fine-tuning, set up for GSPO as its paper index says
(``importance_sampling_level="sequence"``, ``loss_type="grpo"``, ``beta=0``, no gradient accumulation, 4 steps per
generation), same clip range, learning rate (constant) and AdamW. The rollout function is ours, since TRL has none for a
text game, and does as little as it can: tokens in, tokens out, nothing is tokenised twice, chat frames are found once,
texts of a round are tokenised together, and only trajectories that go on are generated for, by the trainer's own
``_generate_single_turn``. No gradient checkpointing, no bfloat16, no correction between engines: all to TRL's
advantage. With vLLM it needs what ``peers_trl.fit_vllm_to_cpu`` does: as it is, TRL's vLLM does not run on a CPU.

AgileRL 2.58: ``GSPO`` with its ``RolloutHarness`` and ``RolloutCollector``, in the loop of its own rollout training. It
trains adapters only: LoRA of rank 128, which for this model is as large as the matrices themselves. Its defaults are
not GSPO; set are the paper's advantage and norm, no masks, no KL, the clip range and learning rate of the others,
trajectories without an advantage left out, no gradient checkpointing, a minibatch per pass. Its harness repeats the
system prompt behind the first observation; it is kept from that, because the start model has never seen it. Its vLLM
is pinned to a build for CUDA, so on a CPU it samples with Hugging Face generate, which it calls for one trajectory at a
time.

What is unlike: to our advantage, the peers play in step, turn by turn, because their interfaces do; that is what is
compared. TRL trains on trajectories without an advantage as well (*trained tokens* counts those of ours and AgileRL's
that took part; ours from the share of trajectories). To the peers' advantage: neither writes a checkpoint, a log or a
curve, and neither restarts what fails; our iterations are those of ``Algorithm.train()`` with Ray around them.
Minibatches are whole groups here and mixed in TRL. TRL is given our tasks in our order, AgileRL draws others of their
kind. The first start of a fresh environment also compiles its modules.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import machine
import measure
import peers_job
from side import ALIKE, Child

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIDES: dict[str, tuple[str, list[str]]] = {
    "ours, transformers": (".venv", ["peers_ours.py", "transformers"]),
    "ours, vLLM": (".venv", ["peers_ours.py", "vllm"]),
    "TRL, generate": (".venv-peers", ["peers_trl.py", "generate"]),
    "TRL, vLLM": (".venv-peers", ["peers_trl.py", "vllm"]),
    "AgileRL": (".venv-agilerl", ["peers_agilerl.py"]),
}
"""Each side's environment, its script and what that is told besides job, model and seed."""

ENVIRONMENT = {
    **ALIKE,
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONDONTWRITEBYTECODE": "",
}
COMPARED = ("many_turns", "long_turns")
"""Jobs that are given to all sides."""
FEWEST, TARGET = 5, 0.9
COMMAND = ".venv-peers/bin/python benchmarks/peers_multi_turn.py"

Steps = dict[str, list[dict[str, float]]]
"""Side to what each of its iterations cost and achieved."""


def compare(job: str, model: str, seed: int, sides: list[str], iterations: int, *, target: float = TARGET) -> Steps:
    """Has every side do its iterations, in turn, until it reaches the target or has had its share of time."""
    steps: Steps = {name: [] for name in sides}
    children: dict[str, Child] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            # One after the other: a side that starts while another is measured would disturb it.
            for name in sides:
                place, (script, *told) = SIDES[name]
                python, program = ROOT / place / "bin" / "python", pathlib.Path(__file__).parent / script
                command = [str(python), str(program), job, model, str(seed), *told]
                children[name] = Child(name, command, pathlib.Path(folder, f"{name}.log"), ENVIRONMENT)
                steps[name].append(children[name].step())
                _tell(job, seed, name, steps[name])
            while children:
                for name in [*children]:
                    taken = steps[name]
                    learnt = max(step["success"] for step in taken) >= target and len(taken) >= FEWEST
                    spent = sum(step["cpu_s"] for step in taken)
                    if learnt or len(taken) >= iterations or spent >= peers_job.JOBS[job].most_cpu_s:
                        children.pop(name).stop()
                    else:
                        taken.append(children[name].step())
                        _tell(job, seed, name, taken)
        finally:
            for child in children.values():
                child.stop()
    return steps


def _tell(job: str, seed: int, name: str, taken: list[dict[str, float]]) -> None:
    last = taken[-1]
    print(
        f"{job} seed {seed} {name:>18} iteration {len(taken):2d}: success {last['success']:4.0%}, return "
        f"{last['return']:.2f}, {last['cpu_s']:6.2f} CPU s, {last['wall_s']:6.2f} s",
        flush=True,
    )


def until_target(taken: list[dict[str, float]], clock: str) -> float | None:
    """Seconds on one clock from the start of the process to the end of the first iteration with ``TARGET`` success.

    Example:
        >>> taken = [{"success": s, "wall_s": 2.0, "ready_wall_s": 7.0} for s in (0.5, 0.9, 0.8)]
        >>> until_target(taken, "wall_s"), until_target(taken[:1], "wall_s")
        (11.0, None)
    """
    total = taken[0][f"ready_{clock}"]
    for step in taken:
        total += step[clock]
        if step["success"] >= TARGET:
            return total
    return None


def measured(taken: list[dict[str, float]]) -> list[dict[str, float]]:
    """The iterations that count: all but the first, where there are more."""
    return taken[1:] or taken


def summary(runs: list[Steps]) -> dict[str, dict[str, Any]]:
    """The table's rows: medians over iterations and seeds."""
    rows: dict[str, dict[str, Any]] = {}
    for name in runs[0]:
        steps = [step for run in runs for step in measured(run[name])]
        row: dict[str, Any] = {
            "cpu_s": statistics.median(step["cpu_s"] for step in steps),
            "sampled_per_cpu_s": statistics.median(step["sampled"] / step["cpu_s"] for step in steps),
            "trained_per_cpu_s": statistics.median(step["trained"] / step["cpu_s"] for step in steps),
            "turns": statistics.median(step["turns"] for step in steps),
            "sampled": statistics.median(step["sampled"] for step in steps),
            "ready_wall_s": statistics.median(run[name][0]["ready_wall_s"] for run in runs),
            "ready_cpu_s": statistics.median(run[name][0]["ready_cpu_s"] for run in runs),
            "peak_mb": max(run[name][-1]["peak_mb"] for run in runs),
        }
        for clock in ("wall_s", "cpu_s"):
            row[f"target_{clock}"] = [until_target(run[name], clock) for run in runs]
        rows[name] = row
    return rows


def print_table(job: str, rows: dict[str, dict[str, Any]]) -> None:
    """One row per quantity, one column per side, in Markdown."""

    def seconds(values: list[float | None]) -> str:
        return " / ".join("not reached" if value is None else f"{value:.0f}" for value in values)

    lines: dict[str, Callable[[dict[str, Any]], str]] = {
        "CPU s per iteration": lambda row: f"{row['cpu_s']:.2f}",
        "sampled tokens per CPU s": lambda row: f"{row['sampled_per_cpu_s']:,.0f}",
        "trained tokens per CPU s": lambda row: f"{row['trained_per_cpu_s']:,.0f}",
        "start to first iteration, wall s": lambda row: f"{row['ready_wall_s']:.1f}",
        "start to first iteration, CPU s": lambda row: f"{row['ready_cpu_s']:.1f}",
        "peak MB with children": lambda row: f"{row['peak_mb']:,.0f}",
        "first ≥ 90 %, wall s with start": lambda row: seconds(row["target_wall_s"]),
        "first ≥ 90 %, CPU s with start": lambda row: seconds(row["target_cpu_s"]),
    }
    first = next(iter(rows.values()))
    heading = f"{job}: {first['turns']:,.0f} turns, {first['sampled']:,.0f} sampled tokens per iteration"
    print(f"\n| {heading} | {' | '.join(rows)} |")
    print("|---|" + "---|" * len(rows))
    for label, cell in lines.items():
        print(f"| {label} | " + " | ".join(cell(row) for row in rows.values()) + " |")
    print(f"\nmeasured on {machine.sentence()}")


def record(job: str, runs: list[Steps], rows: dict[str, dict[str, Any]]) -> None:
    """Merges the ratios to the cheapest of each library's sides into latest.json."""

    def cheapest(library: str) -> str | None:
        return min((name for name in rows if name.startswith(library)), key=lambda n: rows[n]["cpu_s"], default=None)

    ours = cheapest("ours")
    kept = ("cpu_s", "peak_mb", "target_wall_s", "target_cpu_s")
    table = {name: {key: _rounded(row[key]) for key in kept} for name, row in rows.items()}
    for library in ("TRL", "AgileRL"):
        peer = cheapest(library)
        if ours is None or peer is None:
            continue
        pairs = [pair for run in runs for pair in zip(measured(run[peer]), measured(run[ours]), strict=False)]
        measure.record(
            f"{job}_over_{library.lower()}",
            [theirs["cpu_s"] / mine["cpu_s"] for theirs, mine in pairs],
            command=f"{COMMAND} --jobs {job} --record",
            seeds=len(runs),
            beside=peer,
            ours=ours,
            sides=table,
        )
        if (job, library) == ("many_turns", "TRL"):
            measure.record(
                "start_up_over_trl",
                [run[peer][0]["ready_wall_s"] / run[ours][0]["ready_wall_s"] for run in runs],
                command=f"{COMMAND} --jobs {job} --record",
                beside=peer,
                ours=ours,
                cpu=round(rows[peer]["ready_cpu_s"] / rows[ours]["ready_cpu_s"], 3),
                wall_s={name: _rounded(row["ready_wall_s"]) for name, row in rows.items()},
            )


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return None if value is None else round(value, 2)


def draw(runs: list[Steps], path: pathlib.Path, title: str) -> None:
    """Success against CPU seconds since the start of the process; dotted, the last iteration of each side and seed.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for position, name in enumerate(runs[0]):
        for number, run in enumerate(runs):
            cpu_s = [run[name][0]["ready_cpu_s"]]
            for step in run[name]:
                cpu_s.append(cpu_s[-1] + step["cpu_s"])
            # What an iteration samples is sampled with the policy that the one before it left.
            success = [step["success"] for step in run[name]]
            label = name if number == 0 else None
            axes.plot(cpu_s[:-1], success, marker=".", color=f"C{position}", alpha=0.8, label=label)
            axes.plot(cpu_s[-2:], success[-1:] * 2, color=f"C{position}", alpha=0.8, linestyle=":")
    axes.axhline(TARGET, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="CPU seconds since the start of the process", ylabel="sampled success", title=title)
    axes.set_ylim(-0.03, 1.02)  # whoever stays at 0 is seen
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)


def longer_context(model: str, context: int, folder: str) -> str:
    """A copy of the model's folder whose config allows as many tokens; rotary embeddings have no end of their own."""
    path = pathlib.Path(folder, "longer")
    shutil.copytree(model, path)
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        settings = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**settings, key: max(context, settings.get(key) or 0)}))
    return str(path)


def main() -> None:
    """Runs the jobs, prints their tables, and draws and records what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", choices=COMPARED, default=COMPARED)
    parser.add_argument("--sides", nargs="+", choices=[*SIDES], default=[*SIDES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="long_turns takes the first of them")
    parser.add_argument("--iterations", type=int, help="the most of a side; by default 14, and 20 of long_turns")
    parser.add_argument("--model", help="start policy, instead of the job's own below models/")
    parser.add_argument("--kept", type=pathlib.Path, help="report on what --json wrote earlier, run nothing")
    parser.add_argument("--json", type=pathlib.Path, help="also write every iteration here")
    parser.add_argument("--pictures", type=pathlib.Path, help="folder; also draw success against CPU seconds there")
    parser.add_argument("--record", action="store_true", help="merge the ratios into latest.json")
    args = parser.parse_args()

    places = sorted({SIDES[name][0] for name in args.sides})
    missing = [place for place in places if not (ROOT / place / "bin" / "python").exists()]
    if missing and not args.kept:
        parser.error(
            f"no environment {' and '.join(missing)}: `make bench-peers` makes them; or leave sides out, --sides"
        )

    runs: dict[str, list[Steps]] = json.loads(args.kept.read_text())["runs"] if args.kept else {}
    for job in [] if args.kept else args.jobs:
        with tempfile.TemporaryDirectory() as folder:
            played = peers_job.JOBS[job]
            model = longer_context(args.model or str(ROOT / played.model), played.context, folder)
            seeds = args.seeds if job == "many_turns" else args.seeds[:1]
            for seed in seeds:
                steps = compare(job, model, seed, args.sides, args.iterations or played.iterations)
                runs.setdefault(job, []).append(steps)
    for job, taken in runs.items():
        rows = summary(taken)
        print_table(job, rows)
        if args.record:
            record(job, taken, rows)
        if args.pictures:
            draw(taken, args.pictures / f"peers_{job}.png", peers_job.JOBS[job].title)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine.facts(), "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
