"""The text of a Slurm batch script: Ray as job steps, the driver beside them, a new start at the time limit."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BODY = r"""
set -euo pipefail

# The Python that wrote this script; results of all starts of this job are in one folder.
export PATH=@bin@:"$PATH"
@setup@export RAY_USAGE_STATS_ENABLED=0 RAY_ADDRESS=
storage=@storage@/slurm-"$SLURM_JOB_ID"
config=@config@
overrides=(@overrides@)

# A cluster of this job's own. Jobs that share a node have other ports, and no token of another job opens this one.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN
port=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 12000))
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*}
address=$(python -c 'import ray; print(ray.util.get_node_ip_address())'):$port

steps=()
driver=
finish() {
    trap '' TERM USR1
    if [ "${#steps[@]}" -gt 0 ]; then
        kill -TERM "${steps[@]}" 2>/dev/null || true
        wait "${steps[@]}" 2>/dev/null || true
    fi
}
trap finish EXIT

# USR1 comes from Slurm before the time limit (--signal), TERM from whoever cancels. Either has the run save and end
# after its iteration; only the first queues the job again.
again=
# shellcheck disable=SC2329  # the traps call it
stop() {
    if [ -n "$driver" ]; then kill -TERM "$driver" 2>/dev/null || true; else exit 143; fi
}
trap 'again=1; stop' USR1
trap stop TERM

ray_start=(ray start --num-cpus @cpus@ --num-gpus @gpus@ --disable-usage-stats --block)
srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
    "${ray_start[@]}" --head --port "$port" --include-dashboard false &
steps+=($!)
for ((attempt = 1; ; attempt++)); do
    # With a deadline: Ray itself would try for minutes.
    if timeout 60 ray health-check --address "$address" 2>/dev/null; then break; fi
    if ((attempt == 12)) || ! kill -0 "${steps[0]}" 2>/dev/null; then
        echo "Ray's head did not start on $head, port $port" >&2
        exit 1
    fi
    sleep 2
done
if ((SLURM_JOB_NUM_NODES > 1)); then
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --nodes="$others" --ntasks="$others" --ntasks-per-node=1 --overlap --exclude="$head" \
        "${ray_start[@]}" --address "$address" &
    steps+=($!)
fi

# What an earlier start of this job has left is gone on with, in its folder.
what=("$config" --storage "$storage")
for folder in "$storage"/*/; do
    if [ -f "$folder/config.yaml" ] && compgen -G "$folder/checkpoints/[!.]*" >/dev/null; then
        what=(--resume "$folder")
    fi
done
gspo-rllib train "${what[@]}" ${overrides[@]+"${overrides[@]}"} @verbose@--address "$address" --min-nodes @nodes@ &
driver=$!

# wait returns when a signal was handled, too.
while kill -0 "$driver" 2>/dev/null; do wait "$driver" || true; done
code=0
wait "$driver" || code=$?
if [ -n "$again" ] && [ "$code" -eq 143 ]; then
    finish
    echo "time limit ahead: saved, queued again"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
"""


@dataclass(frozen=True, kw_only=True)
class JobShape:
    """What a job asks Slurm for.

    Attributes:
        nodes: Nodes.
        gpus: GPUs of each node.
        cpus: CPUs of each node.
        memory: Main memory of each node, as sbatch takes it; None for the site's default.
        time: Limit of one start, as sbatch takes it.
        grace: Seconds before that limit at which the run is asked to save.
        options: Further ``key=value`` options of sbatch.
        setup: Commands to run first.
    """

    nodes: int
    gpus: int
    cpus: int
    memory: str | None = None
    time: str
    grace: int
    options: Sequence[str] = ()
    setup: Sequence[str] = ()


def batch_script(
    shape: JobShape,
    *,
    name: str,
    config: str,
    overrides: Sequence[str],
    storage: str,
    python: str,
    verbose: bool = False,
) -> str:
    """The script.

    Args:
        shape: What it asks for.
        name: Name of the run; also the job's.
        config: The config, as ``gspo-rllib train`` takes it.
        overrides: ``section.key=value`` items that hold for every start.
        storage: Folder that every node sees, under which results go.
        python: The interpreter, beside which ``ray`` and ``gspo-rllib`` are.
        verbose: Whether actors' output is shown.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    asked = [
        f"job-name={safe}",
        f"nodes={shape.nodes}",
        "ntasks-per-node=1",
        f"cpus-per-task={shape.cpus}",
        *([f"gpus-per-node={shape.gpus}"] if shape.gpus else []),
        *([f"mem={shape.memory}"] if shape.memory else []),
        f"time={shape.time}",
        f"signal=B:USR1@{shape.grace}",
        "requeue",
        "open-mode=append",
        f"output={safe}-%j.out",
        *shape.options,
    ]
    body = _BODY
    for key, text in {
        "bin": shlex.quote(str(Path(python).parent)),
        "setup": "".join(f"{command}\n" for command in shape.setup),
        "storage": shlex.quote(storage),
        "config": shlex.quote(config),
        "overrides": shlex.join(overrides),
        "cpus": str(shape.cpus),
        "gpus": str(shape.gpus),
        "nodes": str(shape.nodes),
        "verbose": "--verbose " if verbose else "",
    }.items():
        body = body.replace(f"@{key}@", text)
    return "\n".join(["#!/usr/bin/env bash", *(f"#SBATCH --{item}" for item in asked)]) + "\n" + body
