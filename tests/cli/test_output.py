"""Output that fails: on a full disk, without a reader, without a place at all, in a locale that lacks characters."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

NO_ROOM = (
    "gspo-rllib: what is printed cannot be written now (No space left on device) and is lost; the command goes on\n"
)


def command(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **settings.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "gspo_rllib", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
        **settings,
    )


def code(text: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True, check=False, **settings)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_disk_without_room_is_said_once_and_in_the_exit_code(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = command("list", stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (74, NO_ROOM)


def test_nothing_is_said_where_it_cannot_be() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "gspo_rllib", "no-such"], stderr=full, check=False)
    assert done.returncode == 2


@pytest.mark.slow
def test_a_character_that_the_locale_lacks_is_spelt_out() -> None:
    done = command("settings", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\xb7" in done.stdout


def test_a_command_without_output_does_its_work_and_prints_into_no_file() -> None:
    done = code(
        """if True:
        import os, sys, tempfile
        os.close(1)
        sys.stdout = sys.__stdout__ = None  # as Python begins where descriptor 1 is closed
        from gspo_rllib.cli import listing, main
        def run(arguments):
            with tempfile.TemporaryFile() as file:
                assert file.fileno() != 1
            print("for nobody")
            os.write(1, b"of a library's own")
            return 0
        listing.run = run
        sys.exit(main.main(["list"]))
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_is_slow_is_waited_for_where_the_pipe_does_not_block() -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETFL, os.O_NONBLOCK)
    seen: list[bytes] = []

    def reader() -> None:
        while part := os.read(read, 1000):
            seen.append(part)

    text = 'from gspo_rllib.cli.output import *\nwith sturdy_output(): print("x" * 1_000_000)'
    thread = threading.Thread(target=reader)
    thread.start()
    done = code(text, stdout=write)
    os.close(write)
    thread.join()
    os.close(read)
    assert (done.returncode, done.stderr, len(b"".join(seen))) == (0, "", 1_000_001)


def test_a_run_whose_output_nobody_reads_is_asked_to_stop() -> None:
    text = """if True:
        import sys
        from gspo_rllib.cli.interrupts import StopRequest
        from gspo_rllib.cli.output import sturdy_output
        with sturdy_output(), StopRequest() as request:
            while request.signal is None:
                print("an iteration", flush=True)
            print("saved")  # what comes after it is passed over, and fails nothing
        sys.exit(request.exit_code)
    """
    read, write = os.pipe()
    os.close(read)
    done = code(text, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
