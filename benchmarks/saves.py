"""What a kill or a failing disk does to a checkpoint: nothing that was acknowledged is lost, nothing half is found.

    .venv/bin/python benchmarks/saves.py --kills 1000
    .venv/bin/python benchmarks/saves.py --kills 20 --learners 1
    .venv/bin/python benchmarks/saves.py --disk

A trained algorithm is forked; the child saves again and again, as the API does (``api``: a new checkpoint, the best one
replaced, an old one deleted) or as the command line does (``cli``), and is killed at a random moment. Its weights are
changed before every save, so that a checkpoint tells which one it is: each that was acknowledged and not to be deleted
must be there with its own weights, and whatever lies under a checkpoint's name must be whole.

With ``--learners`` learners are processes of their own, and a fork has none: it is then a process that trains and saves
after every iteration, killed whole or losing a learner, as the draw falls.

``--disk`` saves where the disk fails. Full: on a small tmpfs (a mount of its own, without being root where the system
lets users have namespaces) with less room each time, until nothing fits. Faulting: ``strace`` has one call of a save,
each in turn, answer EIO. The save must say so, the old checkpoint be whole, and the next one succeed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
import torch
from disturbing import living_learners
from faults import config, small_model
from ray.rllib.core import DEFAULT_MODULE_ID
from safetensors import safe_open

from gspo_rllib import checkpoints
from gspo_rllib.checkpoints.places import delete_checkpoint, remove_leftovers
from gspo_rllib.cli.run_checkpoints import PERIODIC, RunCheckpoints
from gspo_rllib.configs import RunSettings
from gspo_rllib.errors import CheckpointError

BEST = "best"
KEPT = 3
"""Checkpoints that are kept; older ones are deleted."""

CALLS = ("openat", "mkdir", "write", "fsync", "rename", "renameat2", "unlink", "unlinkat", "close")
"""System calls of a save that are made to fail."""

MOUNTING = 'mount -t tmpfs -o size={size} tmpfs {folder} && exec "$@"'


class Saver:
    """Saves an algorithm over and over, each time with other weights.

    Args:
        algorithm: Trained, with its learner in this process.
        folder: Where the checkpoints are.
        way: ``"api"`` or ``"cli"``.
    """

    def __init__(self, algorithm: Any, folder: pathlib.Path, way: str) -> None:
        self._algorithm, self._folder, self._way = algorithm, folder, way
        self._policy = algorithm.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped()
        self._run = RunCheckpoints(folder, RunSettings(keep_checkpoints=KEPT))

    def mark(self, number: int) -> None:
        """Writes the number into the weights."""
        with torch.no_grad():
            next(iter(self._policy.parameters())).view(-1)[0] = number

    def save(self, number: int, say: Callable[[str, int], None]) -> None:
        """A new checkpoint, the best one replaced, and one deleted; each is said when it has been done."""
        self.mark(number)
        self._algorithm._iteration = number
        if number > KEPT:
            say("goes", number - KEPT)
        if self._way == "cli":
            self._run.save_iteration(self._algorithm, [], must=True)
        else:
            self._algorithm.save_to_path(self._folder / f"{PERIODIC}{number:06d}")
        say("saved", number)
        self._run.save(self._algorithm, BEST, must=True)
        say(BEST, number)
        old = self._folder / f"{PERIODIC}{number - KEPT:06d}"
        if self._way == "api" and old.exists():
            delete_checkpoint(old)


def number_of(checkpoint: pathlib.Path) -> int:
    """Which save a checkpoint is of; -1 where it is not whole."""
    with contextlib.suppress(CheckpointError):
        file = next(checkpoints.policy_folder(checkpoint).glob("*.safetensors"))
        with safe_open(file, framework="pt") as weights:
            return int(max(weights.get_tensor(name).view(-1)[0].item() for name in weights.keys()))  # noqa: SIM118
    return -1


def forked(act: Callable[[Callable[[str, int], None]], None]) -> tuple[int, Any]:
    """Calls a function in a fork of this process; its process, and a file of what it says."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, os.fdopen(reading)

    def say(word: str, number: int) -> None:
        # A call that a save does not make, and that is therefore not made to fail.
        os.writev(writing, [f"{word} {number}\n".encode()])

    try:
        act(say)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent is told
        say(f"raised {type(error).__name__} {' '.join(str(error).split())}", -1)
    os._exit(0)


def kill_in_saves(algorithm: Any, folder: pathlib.Path, way: str, kills: int, chance: random.Random) -> tuple[int, int]:
    """Kills a saving process at random moments.

    Returns:
        Saves that were acknowledged; those of them that are lost, and names under which something half lies.
    """
    folder.mkdir()
    saver = Saver(algorithm, folder, way)
    acknowledged, lost, first = 0, 0, 1
    for _ in range(kills):
        remove_leftovers(folder)

        def save_on(say: Callable[[str, int], None], first: int = first) -> None:
            say("begun", 0)
            for number in range(first, first + 1_000_000):
                saver.save(number, say)

        child, words = forked(save_on)
        assert words.readline() == "begun 0\n"
        time.sleep(chance.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        said = [line.split() for line in words.read().splitlines()]
        os.waitpid(child, 0)
        words.close()
        if raised := [word for word in said if word[0] == "raised"]:
            raise SystemExit(f"a save failed by itself: {raised}")
        done = {kind: {int(word[1]) for word in said if word[0] == kind} for kind in ("saved", BEST, "goes")}
        acknowledged += len(done["saved"]) + len(done[BEST])
        lost += sum(number_of(folder / f"{PERIODIC}{one:06d}") != one for one in done["saved"] - done["goes"])
        lost += bool(done[BEST]) and number_of(folder / BEST) < max(done[BEST])
        lost += sum(number_of(path) < 0 for path in folder.glob("[!.]*"))
        first = max([first, *done["saved"]]) + 1
    return acknowledged, lost


def kill_with_learners(model: str, folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Kills a process that trains with remote learners, or one of the learners, at random moments of its saves."""
    folder.mkdir()
    chance = random.Random(args.seed)
    acknowledged, lost, learners = 0, 0, 0
    for _ in range(args.kills):
        command = [sys.executable, __file__, "--child", str(folder), "--learners", str(args.learners), "--model", model]
        whole = chance.random() < 0.5
        with subprocess.Popen([*command, *([] if whole else ["--hit"])], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line.split())
                if whole and line.startswith("saving") and chance.random() < 0.7:
                    time.sleep(chance.uniform(0, 0.3))
                    process.send_signal(signal.SIGKILL)
                    break
            lines += [line.split() for line in process.stdout]
        if not whole and process.returncode:
            raise SystemExit(f"a run that lost a learner ended with {process.returncode}")
        learners += not whole
        saved = [int(words[1]) for words in lines if words[0] == "saved"]
        acknowledged += len(saved)
        lost += bool(saved) and not any(number >= max(saved) for number in versions(folder))
    print(
        f"{args.learners} remote learners: {args.kills - learners} kills of the driver in its saves, {learners} of a "
        f"learner: {acknowledged} saves acknowledged, {lost} lost"
    )
    if lost:
        raise SystemExit(1)


def versions(folder: pathlib.Path) -> Iterator[int]:
    """Updates behind each checkpoint; whatever lies under a checkpoint's name must be whole."""
    for path in folder.glob(f"{PERIODIC}*"):
        yield checkpoints.weights_version(checkpoints.verify(path))


def train_and_save(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """The child of ``kill_with_learners``: trains and saves, and says what it does."""
    ray.init(address="local", num_cpus=args.learners + 1, include_dashboard=False, log_to_driver=False)
    algorithm = config(args.model, 0, job(), seed=1, num_learners=args.learners).build_algo()
    newest = max(folder.glob(f"{PERIODIC}*"), default=None)
    if newest is not None:
        algorithm.restore_from_path(newest)
    run = RunCheckpoints(folder, RunSettings(keep_checkpoints=KEPT))
    for turn in range(4):
        algorithm.train()
        print("saving", algorithm._weights.version, flush=True)
        if args.hit and turn == 1:
            os.kill(random.choice(living_learners(algorithm.learner_group)), signal.SIGKILL)
        if run.save_iteration(algorithm, [], must=True) is not None:
            print("saved", algorithm._weights.version, flush=True)
    algorithm.stop()
    ray.shutdown()


def job() -> argparse.Namespace:
    """What is trained: as little as can be."""
    return argparse.Namespace(groups=2, max_staleness=0, patience=10.0)


def full_disk(algorithm: Any, folder: pathlib.Path) -> None:
    """Saves with less and less room on a small file system, which ``folder`` is."""
    saver = Saver(algorithm, folder, "api")
    saver.mark(1)
    size = sum(path.stat().st_size for path in pathlib.Path(algorithm.save_to_path(folder / BEST)).rglob("*"))
    failed = done = 0
    for step in range(60):
        ballast, saver_number = folder / "ballast", step + 2
        with ballast.open("wb") as file, contextlib.suppress(OSError):
            file.write(b"\0" * max(0, shutil.disk_usage(folder).free - int(size * 1.3 * (1 - step / 60))))
        saver.mark(saver_number)
        before = number_of(folder / BEST)
        try:
            algorithm.save_to_path(folder / BEST)
            done += 1
        except CheckpointError as error:
            failed += 1
            if number_of(folder / BEST) != before or "No space left" not in str(error):
                raise SystemExit(f"with a full disk: {error}") from error
        ballast.unlink()
        if sorted(path.name for path in folder.iterdir()) != [BEST]:
            raise SystemExit(f"left: {sorted(folder.iterdir())}")
    saver.mark(100)
    algorithm.save_to_path(folder / BEST)
    print(
        f"a full disk: {done} saves fitted and {failed} did not, of which each said so and left the old one whole; "
        f"afterwards: {'whole' if number_of(folder / BEST) == 100 else 'LOST'}"
    )
    if not failed or not done or number_of(folder / BEST) != 100:
        raise SystemExit(1)


def faulting_disk(algorithm: Any, folder: pathlib.Path) -> None:
    """Has each system call of a save fail in turn, by ``strace``."""
    folder.mkdir()
    saver, number, failed, passed = Saver(algorithm, folder, "api"), 1, 0, 0
    saver.mark(number)
    algorithm.save_to_path(folder / BEST)
    for call in CALLS:
        for count in range(1, 200):
            number += 1

            def save(say: Callable[[str, int], None], number: int = number) -> None:
                os.kill(os.getpid(), signal.SIGSTOP)
                saver.mark(number)
                try:
                    algorithm.save_to_path(folder / BEST)
                except CheckpointError:
                    say("refused", number)
                else:
                    say("saved", number)

            before = number_of(folder / BEST)
            child, words = forked(save)
            os.waitpid(child, os.WUNTRACED)
            inject = ["-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={count}"]
            tracer = subprocess.Popen(
                ["strace", "-f", "-p", str(child), *inject], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
            )
            assert tracer.stderr is not None
            attached = tracer.stderr.readline()
            os.kill(child, signal.SIGCONT)
            hit = "(INJECTED)" in tracer.stderr.read()
            tracer.wait()
            os.waitpid(child, 0)
            said, found = words.read().split(), number_of(folder / BEST)
            words.close()
            expected = {"saved": number, "refused": before}.get(said[0] if said else "")
            if found != expected:
                raise SystemExit(f"{call} {count} failed ({attached.strip()}): {said}, and there is {found}")
            if not hit:
                break
            failed, passed = failed + (said[0] == "refused"), passed + (said[0] == "saved")
    remove_leftovers(folder)
    saver.mark(number + 1)
    algorithm.save_to_path(folder / BEST)
    print(
        f"a faulting disk: {failed + passed} calls ({', '.join(CALLS)}) answered EIO, {failed} saves said so and left "
        f"the old one whole, {passed} were whole all the same; afterwards: "
        f"{'whole' if number_of(folder / BEST) == number + 1 else 'LOST'}"
    )


def in_this_process(model: str, folder: pathlib.Path, args: argparse.Namespace) -> None:
    """What is done with forks of this process."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    algorithm = config(model, 0, job(), seed=1).build_algo()
    algorithm.train()
    try:
        if args.small is not None:
            full_disk(algorithm, args.small)
            return
        if args.disk:
            if shutil.which("strace") is None:
                print("a faulting disk: strace is not installed, so it was not tried")
            else:
                faulting_disk(algorithm, folder / "faulting")
            return
        chance = random.Random(args.seed)
        for way, kills in (("api", args.kills - args.kills // 2), ("cli", args.kills // 2)):
            acknowledged, lost = kill_in_saves(algorithm, folder / way, way, kills, chance)
            print(f"{way}: {kills} kills in saves: {acknowledged} saves acknowledged, {lost} lost or half", flush=True)
            if lost:
                raise SystemExit(1)
    finally:
        algorithm.stop()
        ray.shutdown()


def main() -> None:
    """Prints what was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--learners", type=int, default=0)
    parser.add_argument("--disk", action="store_true", help="a disk that is full, and one that fails")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--small", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--hit", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child is not None:
        train_and_save(args.child, args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        model = args.model or small_model(folder)
        if args.learners:
            kill_with_learners(model, folder / "learners", args)
            return
        if args.disk and args.small is None:
            small = folder / "small"
            small.mkdir()
            mounting = MOUNTING.format(size="6m", folder=small)
            namespaces = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
            child = [sys.executable, __file__, "--disk", "--small", str(small), "--model", model]
            done = subprocess.run(["unshare", *namespaces, "--mount", "sh", "-c", mounting, "sh", *child])
            if done.returncode:
                raise SystemExit(done.returncode)
        in_this_process(model, folder, args)


if __name__ == "__main__":
    main()
