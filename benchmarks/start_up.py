"""How long it takes from ``config.build_algo()`` to the first sampled token, and from a command to its first result.

    .venv/bin/python benchmarks/start_up.py
    .venv/bin/python benchmarks/start_up.py --profile
    .venv/bin/python benchmarks/start_up.py --train
    .venv/bin/python benchmarks/start_up.py --train --trees . ../before

Every start is a fresh process. Stages: *import* until ``GSPOConfig`` is there, *build* until ``build_algo()`` returns,
*token* until the first token of an environment's turn is sampled, and *evaluation*: a first evaluation in the driver,
which shares the training runner's engine (column *engines*). The machine's first start, with empty caches, is printed
beside them. Goal: build + token <= 30 s on 2 cores. CPU seconds are of the driver and of processes it waited for; Ray's
own and its actors are left out. *compiled* counts the C++ files torch compiled.

``--train`` times ``gspo-rllib train calculator``, as a user sees it: until the first progress line (*first*) and from
the last iteration's line to the end of the process (*stop*), with the built-in engine and vLLM in the driver, and with
vLLM in one env runner. CPU seconds are of the command and of what it waited for. Ways and trees take turns, and medians
are printed; goals are for two cores. On a machine that others use, compare trees, not seconds with goals.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

GOAL_S = 30.0
FIRST_GOAL_S = {"transformers": 7.0, "vllm": 12.0, "vllm remote": 20.0}
"""Way of training to the goal for its first result."""
STOP_GOAL_S = 2.0
_WAYS = {
    "transformers": ["generation.engine=transformers"],
    "vllm": ["generation.engine=vllm"],
    "vllm remote": ["generation.engine=vllm", "env_runners.num_env_runners=1"],
}
STAGES = ("import", "build", "token", "evaluation")


def start(model: str, num_env_runners: int, profile: bool) -> dict[str, Any]:
    """One start, in this process: seconds of each stage."""
    marks = [time.perf_counter()]

    from gspo_rllib.algorithms import GSPOConfig

    marks.append(time.perf_counter())
    if profile:
        import cProfile
        import pstats

        profiler = cProfile.Profile()
        profiler.enable()
    # A cluster that was killed leaves its address behind, and Ray would wait for it.
    os.environ["RAY_ADDRESS"] = "local"
    config = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Arithmetic-v0")
        .rl_module(model_config={"path": model})
        .generation(engine="vllm", max_tokens_per_turn=1)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=8)
        .training(group_size=8)
        .debugging(seed=0, log_level="ERROR")
    )
    if not num_env_runners:
        config = config.evaluation(evaluation_interval=1, evaluation_num_env_runners=0, evaluation_duration=1)
    algo = config.build_algo()
    marks.append(time.perf_counter())
    local = not num_env_runners
    episodes = algo.env_runner_group.foreach_env_runner(
        lambda runner: len(runner.sample(group_ids=["0"])), local_env_runner=local
    )
    marks.append(time.perf_counter())
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("cumtime").print_stats(60)
    if sum(episodes) != 8 * max(1, num_env_runners):
        raise RuntimeError(f"{episodes} trajectories were played")
    engines = 0
    if local:
        algo.evaluate()
        runner = algo.env_runner_group.local_env_runner
        engines = len({id(runner._engine), id(runner._evaluator._engine)})
    marks.append(time.perf_counter())
    algo.stop()
    took = [later - earlier for earlier, later in itertools.pairwise(marks)]
    return dict(zip(STAGES, took, strict=True)) | {"engines": engines}


def child(model: str, cache: pathlib.Path, num_env_runners: int, *, profile: bool = False) -> dict[str, Any]:
    """One start in a fresh process: its stages, its CPU seconds and what it compiled."""
    compiled = cache / "compiled"
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(compiled),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, "--start", model, str(num_env_runners)]
    done = subprocess.run(
        [*command, *(["--profile"] if profile else [])], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the start failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    *printed, result = done.stdout.strip().splitlines()
    if profile:
        print("\n".join(printed))
    files = [path for path in compiled.rglob("*") if path.suffix in (".cpp", ".so")]
    told: dict[str, Any] = json.loads(result)
    return told | {"runners": num_env_runners, "compiled_files": len(files)}


def train(way: str, model: str, tree: str, iterations: int) -> dict[str, Any]:
    """One ``gspo-rllib train calculator``: seconds to its first line and from its last one to its end, CPU seconds."""
    first = last = None
    with tempfile.TemporaryDirectory() as storage:
        command = [sys.executable, "-m", "gspo_rllib", "train", "calculator", f"run.iterations={iterations}"]
        command += [f"run.storage={storage}", f"rl_module.model_config.path={model}", "run.success=null"]
        environment = {**os.environ, "PYTHONPATH": tree, "OMP_NUM_THREADS": "1"}
        before, started = _children_cpu(), time.perf_counter()
        with subprocess.Popen(
            [*command, *_WAYS[way]], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running:
            assert running.stdout is not None
            said = []
            for line in running.stdout:
                said.append(line)
                if line.split()[:1] and line.split()[0].endswith(f"/{iterations}"):
                    last = time.perf_counter()
                    first = first or last
        ended = time.perf_counter()
    if running.returncode or first is None or last is None:
        raise RuntimeError(f"the command failed:\n{''.join(said)[-4000:]}")
    return {"first": first - started, "stop": ended - last, "cpu": _children_cpu() - before, "way": way, "tree": tree}


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def train_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures ``gspo-rllib train`` in every way and tree, prints the medians."""
    from gspo_rllib.warmstart.models import build_model

    rows = []
    with tempfile.TemporaryDirectory() as name:
        model = os.path.abspath(args.model) if args.model else str(build_model(pathlib.Path(name) / "model"))
        for _ in range(args.repetitions):
            for way in args.ways:
                rows += [train(way, model, os.path.abspath(tree), args.iterations) for tree in args.trees]
    print(f"{'way':>12} {'first s':>8} {'goal':>5} {'stop s':>7} {'goal':>5} {'cpu s':>6}  tree")
    for way in args.ways:
        for tree in args.trees:
            mine = [row for row in rows if (row["way"], row["tree"]) == (way, os.path.abspath(tree))]
            first, stop, cpu = (statistics.median(row[key] for row in mine) for key in ("first", "stop", "cpu"))
            print(f"{way:>12} {first:8.1f} {FIRST_GOAL_S[way]:5.0f} {stop:7.1f} {STOP_GOAL_S:5.0f} {cpu:6.1f}  {tree}")
    return rows


def main() -> None:
    """Measures and prints one row per placement of the engine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runners", type=int, nargs="+", default=[0, 1], help="0 is the driver's own engine")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="also print where the driver's time goes, once")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    parser.add_argument("--train", action="store_true", help="time `gspo-rllib train calculator` instead")
    parser.add_argument("--ways", nargs="+", choices=list(_WAYS), default=list(_WAYS), help="of training")
    parser.add_argument("--trees", nargs="+", default=["."], metavar="DIR", help="checkouts to compare")
    parser.add_argument("--model", metavar="DIR", help="a warm-started model; default: an untrained one")
    parser.add_argument("--iterations", type=int, default=2, help="of the training")
    parser.add_argument("--start", nargs=2, metavar=("MODEL", "RUNNERS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        took = start(args.start[0], int(args.start[1]), args.profile)
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(json.dumps(took | {"cpu": sum(usage.ru_utime + usage.ru_stime for usage in used)}))
        return

    if args.train:
        _write(train_rows(args), args.json)
        return

    from gspo_rllib.warmstart.models import build_model

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model = str(build_model(folder / "model"))
        first = child(model, folder, args.runners[0])
        print(f"first start ever: build {first['build']:.1f} s, cpu {first['cpu']:.1f} s", flush=True)
        if args.profile:
            child(model, folder, args.runners[0], profile=True)
        for runners in args.runners:
            rows += [child(model, folder, runners) for _ in range(args.repetitions)]
    print(f"{'runners':>7}" + "".join(f" {stage + ' s':>12}" for stage in STAGES), end="")
    print(f" {'cpu s':>6} {'engines':>7} {'compiled':>8} {'build + token':>13} {'goal':>5}")
    for runners in args.runners:
        mine = [row for row in rows if row["runners"] == runners]
        middle = {key: statistics.median(row[key] for row in mine) for key in mine[0]}
        print(
            f"{runners:7d}"
            + "".join(f" {middle[stage]:12.1f}" for stage in STAGES)
            + f" {middle['cpu']:6.1f} {middle['engines']:7.0f} {middle['compiled_files']:8.0f} "
            f"{middle['build'] + middle['token']:13.1f} {GOAL_S:5.0f}"
        )
    _write(rows, args.json)


def _write(rows: list[dict[str, Any]], path: pathlib.Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
