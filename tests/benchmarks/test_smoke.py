"""Every benchmark runs to its end, at a size at which its numbers mean nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
# What a run of each is given; {model} is a tiny model's folder, {folder} an empty one.
SMALLEST = {
    "adapters.py": "--vocabulary 1024 --layers 2 --tokens 32 --repetitions 1",
    "agents.py": "--model {model} --repetitions 1 --requests 100",
    "async_loop.py": "--repetitions 1 --iterations 1 --vocabulary 320 --groups 4 --group-size 2 --turns 2 "
    "--engine transformers",
    "before_after.py": ". --rounds 1 --repetitions 1 --groups 4 --group-size 2 --turns 2 --vocabulary 1024 "
    "--folder {folder}",
    "clip_range.py": "simulate --updates 2 --lengths 43",
    "engine_choice.py": "--widths 64 --layers 1 --engines transformers --repetitions 1",
    "envs.py": "--ids Bisection --seeds 1",
    "families.py": "--only llama --engine learner --cache {folder}/results.jsonl",
    "faults.py": "--kills 2 --stops 0 --runners 2 --groups 4 --measured 1",
    "gpu_engine.py": "--device cpu --dtype float32 --sizes tiny --vocabulary 320 --prompt 8 --tokens 4 --slots 2 "
    "--graphs",
    "gpu_head.py": "--device cpu --widths 32 --tokens 64 --vocabulary 320 --repetitions 1",
    "gpu_learner.py": "--device cpu --dtype float32 --sizes tiny --vocabulary 320 --groups 1 --prompt 8 --completion 8 "
    "--repetitions 1 --ways learner step segments shared checkpointed limited",
    "gpu_loop.py": "--device cpu --dtype float32 --sizes tiny --vocabulary 320 --groups 2 --turns 2 "
    "--tokens-per-turn 4 --row-tokens 2048 --repetitions 1",
    "growth.py": "--repetitions 1 --only vocabulary",
    "held_experts.py": "--only gpt_oss,phimoe",
    "learner.py": "--vocabularies 1024 --repetitions 1 --folder {folder}",
    "learning.py": "configs/calculator.yaml generation.engine=transformers training.groups_per_iteration=4 "
    "--model {model} --seeds 0 --target 0",
    "lookup.py": "calculator {model} --groups 1",
    "loop.py": "--repetitions 1 --groups 4 --group-size 2 --turns 2 --vocabulary 1024 --folder {folder}",
    "long_contexts.py": "--lengths 512 1024 --vocabulary 1024 --ways 0.05",
    "precision.py": "--size small --vocabulary 1024 --engines transformers --trajectories 2 --turns 1 --tokens 2 "
    "--repetitions 1",
    "prefixes.py": "--sizes tiny --prompts 16 --group-sizes 2 --completions 8 --repetitions 1",
    "ranges.py": "run {folder}/ranges.jsonl --tasks letters --rules deviations --lrs 1e-4 --iterations 1 "
    "--evaluated 4 --models {folder}",
    "resumes.py": "--cycles 1 --iterations 4 --pause 0.5",
    "rollout.py": "--goals --repetitions 1",
    "runner_cost.py": "--turns 2 --trajectories 2 --repetitions 1",
    "slow_envs.py": "--engine transformers --fast 2 --slow 1 --sleep-s 0.01 --turns 2 --tokens-per-turn 4 "
    "--repetitions 1",
    "saves.py": "--kills 6",
    "soak.py": "--time 40s --only fixed_lag-2 --every 8",
    "start_up.py": "--runners 0 --repetitions 1",
    "sweeps.py": "--model {model} --iterations 2 --operations 1 --groups 4 --lrs 1e-5 --lows 3e-4 --highs 4e-4,4e-3 "
    "--tasks 4",
    "threads.py": "--widths 64 --layers 1 --repetitions 1",
    "turns.py": "--engines transformers --turns 2 4 --tokens 2 4 --concurrency 8 --total 32 --repetitions 1",
    "weight_sync.py": "--runners 0 --remote --repetitions 1",
}
NO_PROGRAMS = {
    "agent_client.py",
    "agent_fuzz.py",
    "agent_load.py",
    "bare.py",
    "disturbing.py",
    "family_models.py",
    "family_play.py",
    "gpu.py",
    "machine.py",
    "measure.py",
    "peers_job.py",
    "side.py",
    "workload.py",
}
IN_AN_ENVIRONMENT_OF_THEIR_OWN = {
    "peers_agilerl.py",
    "peers_learner.py",
    "peers_learning.py",
    "peers_loop.py",
    "peers_multi_turn.py",
    "peers_ours.py",
    "peers_trl.py",
}


def test_every_benchmark_has_its_smallest_run() -> None:
    there = {path.name for path in FOLDER.glob("*.py")}
    assert there == SMALLEST.keys() | NO_PROGRAMS | IN_AN_ENVIRONMENT_OF_THEIR_OWN


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_it_runs_to_its_end(name: str, tiny_dense: str, tmp_path: Path) -> None:
    arguments = SMALLEST[name].format(model=tiny_dense, folder=tmp_path).split()
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments],
        cwd=FOLDER.parent, env={**os.environ, "PYTHONPATH": str(FOLDER.parent)}, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip()
