"""Signals: who is asked to end saves; who has nothing to save says so; who is killed leaves nothing."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gspo_rllib import checkpoints, leftovers
from gspo_rllib.cli.interrupts import StopRequest, Terminated, ends_on_signals, handler_kept
from gspo_rllib.cli.main import main


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_the_first_signal_asks_and_the_second_insists(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with StopRequest() as request:
        os.kill(os.getpid(), number)
        assert (request.signal, request.exit_code) == (number, code)
        if number == signal.SIGHUP:
            os.kill(os.getpid(), number)  # a terminal that closes says so more than once
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capsys.readouterr().err == "\nstopping after this iteration, then saving; once more to stop at once\n"
    assert signal.getsignal(number) is before


def test_who_wants_a_run_to_outlive_its_terminal_has_it() -> None:
    """As ``nohup`` starts it: SIGHUP is ignored, and stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ends_on_signals(), StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
        assert request.signal is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ray_does_not_take_the_signal_away() -> None:
    with ends_on_signals():
        with handler_kept():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as ray.init does
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_comes_while_ray_starts_ends_the_command_as_ours_would() -> None:
    def starting() -> None:
        with ends_on_signals(), handler_kept():
            signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))  # as ray.init does first
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(Terminated) as caught:
        starting()
    assert caught.value.exit_code == 143
    with pytest.raises(SystemExit, match="3"), ends_on_signals(), handler_kept():
        sys.exit(3)


def test_no_alarm_is_left_that_aborts_while_everything_is_stopped() -> None:
    signal.alarm(3)  # as the handler does that Ray's core installs before its Python one
    with pytest.raises(Terminated), ends_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.alarm(0) == 0


def test_a_signal_that_comes_where_nothing_can_be_raised_is_not_lost() -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    def working() -> None:
        with ends_on_signals():
            thing = Dying()
            del thing
            time.sleep(5)

    with pytest.raises(Terminated):
        working()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_command_that_has_nothing_to_save_ends_in_one_line(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def importing(*_: object) -> None:
        try:
            os.kill(os.getpid(), number)
        except Exception:  # noqa: BLE001, what foreign code may do with whatever is raised in it
            pytest.fail("the signal was swallowed")

    monkeypatch.setattr("gspo_rllib.cli.validate.run", importing)
    monkeypatch.setattr("gspo_rllib.cli.main._import_from_here", lambda: None)
    assert main(["validate", "quickstart"]) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"gspo-rllib: ended by {number.name}, with nothing to save\n"


def _started(config_file: str, storage: Path, *, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "gspo_rllib",
        "train",
        config_file,
        "--iterations",
        "1000",
        "--storage",
        str(storage),
    ]
    return subprocess.Popen(command, stdout=stdout, stderr=stdout, text=True)


def _wait_for_line(storage: Path, process: subprocess.Popen[str]) -> None:
    """Until an iteration was trained."""
    until = time.monotonic() + 300
    while not any(file.stat().st_size for file in storage.glob("*/result.json")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)


def _processes(run: str) -> dict[int, str]:
    return {pid: Path(f"/proc/{pid}/cmdline").read_text()[:80] for pid in leftovers.processes_of(run)}


@pytest.mark.slow
def test_nothing_outlives_a_driver_that_is_killed(config_file: str, tmp_path: Path) -> None:
    """Of ours, of Ray, or of the environments: 15 s later there is no process, socket, segment or folder."""
    records = leftovers._records()
    before = set(records.iterdir()) if records.is_dir() else set()
    process = _started(config_file, tmp_path)
    try:
        _wait_for_line(tmp_path, process)
        (record,) = set(records.iterdir()) - before
        started = _processes(record.stem)
        assert any("raylet" in command for command in started.values())
        (session,) = {Path(folder) for pid in started for folder in leftovers._ray_folders(pid)}
        assert (session / "sockets").is_dir()
        segments = {Path(name).name for pid in started for name in leftovers._shared_memory(pid)}
    finally:
        process.kill()
        process.communicate()
    time.sleep(15)
    assert _processes(record.stem) == {}
    assert not record.exists()
    assert not session.exists()
    assert not segments & set(os.listdir("/dev/shm"))


def _wait_until_it_catches(number: signal.Signals, pid: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        if int(caught, 16) >> (number - 1) & 1:
            return
        time.sleep(0.02)
    raise AssertionError(f"{number!r} is not caught after a minute")


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.0, 3.0, 7.0])
def test_a_run_that_is_terminated_while_it_starts_ends_in_one_line(
    moment: float, config_file: str, tmp_path: Path
) -> None:
    process = _started(config_file, tmp_path)
    _wait_until_it_catches(signal.SIGTERM, process.pid)  # Python itself takes a while to start
    time.sleep(moment)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=120)
    if "results:" in said:  # it was faster than that: it had begun
        assert process.returncode == 143
        return
    assert errors.splitlines()[-1:] == ["gspo-rllib: ended by SIGTERM, with nothing to save"]
    assert "Traceback" not in errors
    assert process.returncode == 143


@pytest.mark.slow
def test_a_run_whose_terminal_is_gone_saves(config_file: str, tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    process = _started(config_file, tmp_path, stdout=terminal)
    os.close(terminal)
    try:
        _wait_for_line(tmp_path, process)
        os.close(master)  # what it writes from here on fails
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 129
    finally:
        process.kill()
    (checkpoint,) = tmp_path.glob("*/checkpoints/*")
    assert re.fullmatch(r"iteration_\d+", checkpoints.verify(checkpoint).name)
