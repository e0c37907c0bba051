"""Programs that mean harm, in every sandbox that runs here: none gets out, none lives on, none speaks for another run."""
# ruff: noqa: E501 -- a table is read row by row

from __future__ import annotations

import os
import secrets
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from gspo_rllib.envs.sandbox import Sandbox, SandboxLimits, open_sandbox, unavailable_backends

REASONS = unavailable_backends()
LIMITS = SandboxLimits(seconds=1.0, memory_mib=64, output_chars=500)
ESCAPED = "got out"
"""What a program prints when it has done what it must not."""

SHOWN_BY = {
    "sandlock": {"the size of a file", "whether a file exists", "when a file was changed", "where a link leads"}
}
"""Where a program can ask about a file that it cannot read: Landlock says nothing about that, see docs/environments.md."""


@dataclass(frozen=True)
class Outside:
    """What must stay as it is, and what must not be told.

    Attributes:
        folder: Holds the secret and nothing else.
        secret: A file of ``size`` bytes.
        content: What it holds.
        link: A link to the file.
        server: A socket that nobody may reach.
        datagrams: Another one, of the same port.
    """

    folder: Path
    secret: Path
    content: str
    size: int
    link: Path
    server: socket.socket
    datagrams: socket.socket

    def fill(self, program: str) -> str:
        port = self.server.getsockname()[1]
        places = {"SECRET": repr(str(self.secret)), "FOLDER": repr(str(self.folder)), "LINK": repr(str(self.link))}
        places |= {"PORT": str(port), "PID": str(os.getpid()), "ESCAPED": repr(ESCAPED)}
        for name, value in places.items():
            program = program.replace(f"@{name}", value)
        return program

    def state(self) -> Any:
        me = psutil.Process()
        kept = self.secret.stat()
        return (
            sorted(path.name for path in self.folder.iterdir()),
            (kept.st_size, kept.st_mode, kept.st_uid, kept.st_mtime_ns),
            me.nice(),
            sorted(os.sched_getaffinity(0)),
            Path("/proc/self/limits").read_text(),
            Path("/tmp/gspo_rllib_escape").exists(),
        )


TELL = "print(@ESCAPED)"
PROGRAMS: dict[str, str] = {
    # Reading.
    "read a file": "print(open(@SECRET).read())",
    "read it by descriptor": "import os\nprint(os.read(os.open(@SECRET, os.O_RDONLY), 99))",
    "read it as bytes of a path": "import pathlib\nprint(pathlib.Path(@SECRET).read_bytes())",
    "read it by a relative path": "import os\nprint(open('../' * 20 + os.path.relpath(@SECRET, '/')).read())",
    "read it through a link": "print(open(@LINK).read())",
    "read it through /proc/self/root": "print(open('/proc/self/root' + @SECRET).read())",
    "read it with io": "import io\nprint(io.FileIO(@SECRET).readall())",
    "read it as a module": "import importlib.util\nprint(importlib.util.spec_from_file_location('x', @SECRET).loader.get_data(@SECRET))",
    "read it with linecache": "import linecache\nlines = linecache.getlines(@SECRET)\nprint(lines)",
    "read it with mmap": "import mmap, os\nf = os.open(@SECRET, os.O_RDONLY)\nprint(mmap.mmap(f, 0, prot=mmap.PROT_READ)[:])",
    "read it with sqlite": "import sqlite3\nc = sqlite3.connect(@SECRET)\nprint(c.execute('select * from sqlite_master').fetchall())\n" + TELL,
    "read it with ctypes": "import ctypes\nlibc = ctypes.CDLL(None)\nfd = libc.open(@SECRET.encode(), 0)\nb = ctypes.create_string_buffer(99)\nif libc.read(fd, b, 99) > 0: print(b.value)",
    "list a folder": "import os\nif os.listdir(@FOLDER) is not None: " + TELL,
    "scan a folder": "import os\nlist(os.scandir(@FOLDER))\n" + TELL,
    "find by pattern": "import glob\nif glob.glob(@FOLDER + '/*'): " + TELL,
    "read the passwords": "open('/etc/passwd').read()\n" + TELL,
    "read another process": "open('/proc/1/environ').read()\n" + TELL,
    "read the parent's memory": "open('/proc/@PID/mem', 'rb').read(1)\n" + TELL,
    "read its own environment": "open('/proc/self/environ').read()\n" + TELL,
    "read the machine's processes": "import os\nif len([p for p in os.listdir('/proc') if p.isdigit()]) > 3: " + TELL,
    "the size of a file": "import os\nif os.stat(@SECRET).st_size: " + TELL,
    "whether a file exists": "import os\nif os.path.exists(@SECRET): " + TELL,
    "when a file was changed": "import os\nos.path.getmtime(@SECRET)\n" + TELL,
    "where a link leads": "import os\nos.readlink(@LINK)\n" + TELL,
    "how full the disk is": "import os\nos.statvfs(@FOLDER)\n" + TELL,
    "wait for a change of a file": "import ctypes\nl = ctypes.CDLL(None)\nif l.inotify_add_watch(l.inotify_init(), @FOLDER.encode(), 2) > 0: " + TELL,
    # Writing.
    "write a file": "open(@FOLDER + '/new', 'w').write('x')\n" + TELL,
    "write to /tmp": "open('/tmp/gspo_rllib_escape', 'w').write('x')\n" + TELL,
    "write to /dev/shm": "open('/dev/shm/gspo_rllib_escape', 'w').write('x')\n" + TELL,
    "append to a file": "open(@SECRET, 'a').write('x')\n" + TELL,
    "remove a file": "import os\nos.remove(@SECRET)\n" + TELL,
    "rename a file": "import os\nos.rename(@SECRET, @FOLDER + '/moved')\n" + TELL,
    "empty a file": "import os\nos.truncate(@SECRET, 0)\n" + TELL,
    "change a mode": "import os\nos.chmod(@SECRET, 0o777)\n" + TELL,
    "change an owner": "import os\nos.chown(@SECRET, 1, 1)\n" + TELL,
    "change a time": "import os\nos.utime(@SECRET, (1, 1))\n" + TELL,
    "make a link": "import os\nos.symlink(@SECRET, @FOLDER + '/link2')\n" + TELL,
    "make a hard link": "import os\nos.link(@SECRET, @FOLDER + '/hard')\n" + TELL,
    "make a folder": "import os\nos.mkdir(@FOLDER + '/inner')\n" + TELL,
    "make a pipe": "import os\nos.mkfifo(@FOLDER + '/pipe')\n" + TELL,
    # Starting and reaching processes.
    "start a shell": "import os\nif os.system('touch ' + @FOLDER + '/mark') == 0: " + TELL,
    "start a process": "import subprocess\nsubprocess.run(['/usr/bin/touch', @FOLDER + '/mark'], check=True)\n" + TELL,
    "become a process": "import os\nos.execv('/usr/bin/touch', ['touch', @FOLDER + '/mark'])",
    "fork": "import os\nif os.fork() == 0: os._exit(0)\n" + TELL,
    "fork without end": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "clone with a system call": "import ctypes\nif ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) > 0: " + TELL,
    "new namespaces": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) == 0: " + TELL,
    "trace a process": "import ctypes\nif ctypes.CDLL(None).ptrace(16, @PID, 0, 0) == 0: " + TELL,
    "signal the parent": "import os, signal\nos.kill(@PID, signal.SIGTERM)\n" + TELL,
    "signal everybody": "import os\nos.kill(-1, 9)",
    "signal the parent's group": "import os, signal\nos.killpg(os.getpgid(@PID), signal.SIGTERM)\n" + TELL,
    "change the parent's limits": "import resource\nresource.prlimit(@PID, resource.RLIMIT_NOFILE, (64, 64))\n" + TELL,
    "change the parent's priority": "import os\nos.setpriority(os.PRIO_PROCESS, @PID, 5)\n" + TELL,
    "change the parent's processors": "import os\nos.sched_setaffinity(@PID, {0})\n" + TELL,
    "change its own processors": "import os\nos.sched_setaffinity(0, {0})\n" + TELL,
    "change its scheduler": "import os\nos.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))\n" + TELL,
    "raise its own limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)\n" + TELL,
    # Speaking to others.
    "connect to a port": "import socket\nsocket.create_connection(('127.0.0.1', @PORT), 0.3)\n" + TELL,
    "send a datagram": "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(b'x', ('127.0.0.1', @PORT))",
    "open a raw socket": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\n" + TELL,
    "listen on a port": "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\nsocket.create_connection(s.getsockname(), 0.3)\nsocket.create_connection(('127.0.0.1', @PORT), 0.3)\n" + TELL,
    # Taking more than its share.
    "never end": "while True: pass",
    "never end, whatever is raised": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "never end in C": "sum(iter(int, 1))",
    "never end, deaf to signals": "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\nwhile True: time.sleep(1)",
    "fill the memory": "x = []\nwhile True: x.append('a' * 10**6)",
    "fill the memory at once": "x = bytearray(10**11)",
    "flood the output": "while True: print('a' * 10_000)",
    "exhaust descriptors": "import os\nwhile True: os.pipe()",
    "many threads": "import threading, time\nfor _ in range(10_000): threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
    "recurse without end": "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)",
    "crash the interpreter": "import ctypes\nctypes.string_at(0)",
}  # fmt: skip
"""Hostile programs by what they try. ``@SECRET`` and the like are filled in by ``Outside``."""

FOR_THE_NEXT_RUN: dict[str, str] = {
    "a reply written ahead": "import os, struct\nfor n in range(9): os.write(4, struct.pack('>IBII', n, 0, 4, 0) + b'fake')",
    "a reply with the nonce of this run": "import os, struct, sys\nf = sys._getframe()\nwhile f and 'nonce' not in f.f_locals: f = f.f_back\nfor _ in range(3): os.write(4, f.f_locals['nonce'] + struct.pack('>BII', 0, 4, 0) + b'fake')",
    "zeros": "import os\nos.write(4, bytes(64))",
    "an interpreter that ends itself soon": "import os, threading\nthreading.Timer(0.05, os._exit, (0,)).start()",
    "an interpreter that is gone": "import os\nos._exit(0)",
    "a shadowed print": "import builtins\nbuiltins.print = lambda *a, **k: None\nprint = lambda *a: None\ndel print",
    "a shadowed exec": "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
    "a removed built-in": "import builtins\ndel builtins.print, builtins.exec",
    "a replaced loop": "import __main__\n__main__.run = lambda *a: (0, 'fake', '')\n__main__._reply = lambda *a: None",
    "output that is kept": "import sys, io\nsys.stdout = sys.stderr = io.StringIO()",
    "a late alarm": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.2)\nsignal.signal(signal.SIGALRM, lambda *a: None)",
}  # fmt: skip
"""What one run leaves behind for the next; a sandbox without such things refuses them."""

FEW = ["read a file", "the size of a file", "change its own processors", "fork", "signal the parent"]


def each_backend(function: Any) -> Any:
    marks = {name: pytest.mark.skipif(bool(reason), reason=f"{name}: {reason}") for name, reason in REASONS.items()}
    return pytest.mark.parametrize("backend", [pytest.param(name, marks=mark) for name, mark in marks.items()])(
        function
    )


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    content = f"hidden-{secrets.token_hex(8)}"
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "secret").write_text(content)
    (elsewhere / "link").symlink_to(folder / "secret")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(server.getsockname())
        for one in (server, datagrams):
            one.settimeout(0.02)
        yield Outside(folder, folder / "secret", content, len(content), elsewhere / "link", server, datagrams)


def processes_of(sandbox: Sandbox) -> list[psutil.Process]:
    """A session's processes, where each has its own."""
    process = getattr(sandbox, "_process", None)
    if process is None or process.pid is None:
        return []
    try:
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def attack(sandbox: Sandbox, name: str, outside: Outside) -> float:
    """Runs a hostile program, and looks at what came of it; seconds it took."""
    before, running = outside.state(), processes_of(sandbox)
    begun = time.monotonic()
    result = sandbox.run(outside.fill(PROGRAMS[name]))
    took = time.monotonic() - begun
    assert outside.content not in f"{result.output}{result.error}", name
    if name not in SHOWN_BY.get(sandbox.backend, ()):
        assert ESCAPED not in result.output, name
    assert outside.state() == before, name
    with pytest.raises(TimeoutError):
        outside.server.accept()
    with pytest.raises(TimeoutError):
        outside.datagrams.recv(1)
    if result.state_lost:
        assert not survivors(running), f"{name}: lives on"
    return took


def survivors(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are still there a second later; one that has ended and that nobody has asked for yet is not."""
    deadline = time.monotonic() + 1.0
    while (left := [process for process in processes if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@each_backend
def test_some_programs_get_nowhere(backend: str, outside: Outside) -> None:
    sandbox = open_sandbox(backend, LIMITS)
    try:
        for name in FEW:
            attack(sandbox, name, outside)
        assert sandbox.run("print(2)").output == "2\n"
    finally:
        sandbox.close()


@each_backend
@pytest.mark.slow
def test_no_program_gets_out_or_lives_on(backend: str, outside: Outside) -> None:
    sandbox = open_sandbox(backend, LIMITS)
    took = {}
    try:
        for name in PROGRAMS:
            took[name] = attack(sandbox, name, outside)
            assert sandbox.run("print(2)").output == "2\n", name
    finally:
        left = processes_of(sandbox)
        sandbox.close()
    assert not survivors(left)
    slowest = max(took, key=lambda name: took[name])
    print(
        f"{backend}: {len(took)} programs, 0 escapes, 0 survivors; the longest took {took[slowest]:.2f} s ({slowest})"
    )


@each_backend
@pytest.mark.parametrize("name", FOR_THE_NEXT_RUN)
def test_no_run_speaks_for_the_next(backend: str, name: str) -> None:
    sandbox = open_sandbox(backend, LIMITS)
    try:
        sandbox.run(FOR_THE_NEXT_RUN[name])
        time.sleep(0.1)
        result = sandbox.run("print(6 * 7)")
        assert (result.output, result.error) == ("42\n", None)
    finally:
        sandbox.close()


@each_backend
@pytest.mark.slow
def test_a_run_costs_at_most_thirty_milliseconds(backend: str) -> None:
    sandbox = open_sandbox(backend, LIMITS)
    try:
        sandbox.run("x = 1")
        costs = []
        for _ in range(50):
            begun = time.perf_counter()
            sandbox.run("x = x + 1")
            costs.append(time.perf_counter() - begun)
    finally:
        sandbox.close()
    print(f"{backend}: {1e3 * statistics.median(costs):.2f} ms a run, the slowest of 50 {1e3 * max(costs):.2f} ms")
    assert statistics.median(costs) <= 0.03
