"""``gspo-rllib slurm``: prints, or submits, a Slurm batch script that trains a config on a Ray cluster of its own."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from gspo_rllib.cli.slurm_script import JobShape, batch_script
from gspo_rllib.cli.train import add_config_arguments, check_limits, overrides_of
from gspo_rllib.errors import SettingError

_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")
_MEMORY = re.compile(r"\d+[KMGT]?")
_SUBMIT_S = 60.0


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("slurm", help="a Slurm batch script for a config", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of the job; default 1")
    parser.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs of each; default 0")
    parser.add_argument("--cpus-per-node", type=int, default=8, metavar="N", help="CPUs of each; default 8")
    parser.add_argument("--memory", metavar="SIZE", help="main memory of each node, e.g. 128G; default: the site's")
    parser.add_argument("--time", default="4:00:00", metavar="TIME", help="limit of one start; default 4:00:00")
    parser.add_argument(
        "--grace",
        type=int,
        default=300,
        metavar="SECONDS",
        help="before that limit, when the run is asked to save and the job is queued again: longer than an iteration "
        "and a checkpoint take together; default 300",
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further #SBATCH option, e.g. partition=gpu or account=me; may be repeated",
    )
    parser.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help="run first on every start, e.g. 'module load cuda'",
    )
    parser.add_argument("--submit", action="store_true", help="hand the script to sbatch instead of printing it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Checks what can be checked without a node, then prints or submits."""
    shape = job_shape(arguments)
    overrides = overrides_of(arguments)
    name, storage = check_fits(arguments.config, overrides, shape)
    source = Path(arguments.config).expanduser()
    script = batch_script(
        shape,
        name=name,
        config=str(source.resolve()) if source.is_file() else arguments.config,
        overrides=[item for item in overrides if not item.startswith(("run.storage=", "run.name="))],
        storage=str(Path(storage).expanduser().resolve()),
        python=sys.executable,
        verbose=arguments.verbose,
    )
    if not arguments.submit:
        print(script, end="")
        return 0
    print(submit(script))
    return 0


def job_shape(arguments: argparse.Namespace) -> JobShape:
    """What the job asks Slurm for.

    Raises:
        SettingError: An option is no amount, time or ``key=value``.
    """
    for option, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_node", 1), ("grace", 1)):
        given = getattr(arguments, option)
        if given < least:
            raise SettingError(f"--{option.replace('_', '-')}: expected a whole number >= {least}, got {given}.")
    if not _TIME.fullmatch(arguments.time):
        raise SettingError(f"--time {arguments.time!r}: expected minutes, H:MM:SS or D-HH:MM:SS, as sbatch takes it.")
    if arguments.memory is not None and not _MEMORY.fullmatch(arguments.memory):
        raise SettingError(f"--memory {arguments.memory!r}: expected a size, e.g. 128G.")
    if arguments.grace >= seconds_of(arguments.time):
        raise SettingError(
            f"--grace {arguments.grace}: the job has {arguments.time} ({seconds_of(arguments.time)} s) in all, so it "
            "would be asked to end before it began. Give more --time, or less --grace."
        )
    for item in arguments.sbatch:
        key, separator, value = item.partition("=")
        if not separator or not re.fullmatch(r"[a-z][a-z-]*", key) or not value or "\n" in value:
            raise SettingError(f"--sbatch {item!r}: expected key=value, e.g. partition=gpu.")
    for text in arguments.setup:
        if "\n" in text or not text.strip():
            raise SettingError(f"--setup {text!r}: expected a command on one line.")
    return JobShape(
        nodes=arguments.nodes,
        gpus=arguments.gpus_per_node,
        cpus=arguments.cpus_per_node,
        memory=arguments.memory,
        time=arguments.time,
        grace=arguments.grace,
        options=tuple(arguments.sbatch),
        setup=tuple(arguments.setup),
    )


def seconds_of(time: str) -> int:
    """A Slurm time limit in seconds.

    Example:
        >>> seconds_of("30"), seconds_of("4:00:00"), seconds_of("1-12"), seconds_of("10:30")
        (1800, 14400, 129600, 630)
    """
    days, separator, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if separator:  # D-H[:M[:S]]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:  # M, M:S or H:M:S
        hours, minutes, seconds = [[0, *parts, 0], [0, *parts], parts][len(parts) - 1]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def check_fits(config: str, overrides: list[str], shape: JobShape) -> tuple[str, str]:
    """Refuses a config that could not be trained in the job, before it has waited in the queue.

    Args:
        config: The config, as ``gspo-rllib train`` takes it.
        overrides: Overrides of the config.
        shape: What the job asks for.

    Returns:
        The run's name, and where its results go.

    Raises:
        SettingError: The config is refused, would never end, or asks for more than the job has.
    """
    from gspo_rllib.algorithms.policy_gradient.resources import requests, shortage
    from gspo_rllib.configs import load_run

    loaded = load_run(config, overrides)
    check_limits(loaded.settings, "this run")
    asked = requests(loaded.config, main_process=False)
    each = {"CPU": float(shape.cpus), "GPU": float(shape.gpus)}
    problem = shortage(asked, [each] * shape.nodes) if asked else None
    if problem is not None:
        raise SettingError(
            f"{', '.join(map(str, asked))} would not fit {shape.nodes} nodes with {shape.cpus} CPUs and {shape.gpus} "
            f"GPUs each: {problem}. Change --nodes, --gpus-per-node or --cpus-per-node, or ask for less."
        )
    local_gpus = 0 if loaded.config.num_learners else loaded.config.num_gpus_per_learner
    if local_gpus > shape.gpus:
        raise SettingError(
            f"learners.num_gpus_per_learner is {local_gpus:g} with num_learners=0, and the node that the driver runs "
            f"on has {shape.gpus}. Give --gpus-per-node {local_gpus:g}."
        )
    return loaded.name, loaded.settings.storage


def submit(script: str) -> str:
    """Hands a script to ``sbatch``; returns its answer.

    Raises:
        SettingError: There is no sbatch, or it refuses.
    """
    try:
        done = subprocess.run(["sbatch"], input=script, capture_output=True, text=True, timeout=_SUBMIT_S)
    except FileNotFoundError as error:
        raise SettingError(
            "--submit: there is no sbatch on this machine. Run the command on a login node, or leave --submit out and "
            "hand the printed script over yourself."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SettingError(f"--submit: sbatch did not answer within {_SUBMIT_S:.0f} s.") from error
    if done.returncode:
        raise SettingError(f"--submit: sbatch refused: {' '.join(done.stderr.split()) or shlex.join(['sbatch'])}")
    return done.stdout.strip()
