"""What model-written Python can and cannot do, in every sandbox this machine has."""

from __future__ import annotations

import doctest
import importlib
import os
import platform
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gspo_rllib.envs.sandbox as sandbox_package
from gspo_rllib.envs.sandbox import BACKENDS, Sandbox, SandboxLimits, open_sandbox, unavailable_backends
from gspo_rllib.envs.sandbox.system_calls import denied_numbers
from gspo_rllib.errors import EnvError, SettingError

REASONS = unavailable_backends()
LIMITS = SandboxLimits(seconds=20.0, memory_mib=64, output_chars=500)
CPYTHON = ("sandlock", "bwrap")


def each(*backends: str) -> pytest.MarkDecorator:
    marks = [pytest.mark.skipif(bool(REASONS[name]), reason=f"{name}: {REASONS[name]}") for name in backends]
    return pytest.mark.parametrize(
        "sandbox", [pytest.param(n, marks=m) for n, m in zip(backends, marks, strict=True)], indirect=True
    )


each_backend = each(*REASONS)
each_cpython = each(*CPYTHON)
# For what never ends; whatever is to end has the time that a busy machine takes.
out_of_time_soon = pytest.mark.usefixtures("hasty")


@pytest.fixture
def hasty() -> None:
    """A word to the fixture of the sandbox."""


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    soon = "hasty" in request.fixturenames
    session = open_sandbox(request.param, replace(LIMITS, seconds=0.4) if soon else LIMITS)
    yield session
    session.close()


def test_at_least_the_default_sandbox_is_tested() -> None:
    if importlib.util.find_spec("pydantic_monty") is None:
        pytest.skip("the extra 'sandbox' is not installed")
    assert REASONS["monty"] is None
    assert open_sandbox().backend == "monty"


@each_backend
def test_what_is_printed_comes_back_and_variables_stay(sandbox) -> None:
    assert sandbox.run("x = 6 * 7").output == ""
    assert sandbox.run("def double(n):\n    return 2 * n").error is None
    result = sandbox.run("for i in range(3):\n    print(i, 'é')\nprint(double(x))")
    assert (result.output, result.error, result.timed_out) == ("0 é\n1 é\n2 é\n84\n", None, False)


@each_backend
def test_a_session_sees_nothing_of_another(sandbox) -> None:
    sandbox.run("secret = 5")
    other = open_sandbox(sandbox.backend, LIMITS)
    assert "NameError" in (other.run("print(secret)").error or "")
    other.close()
    assert sandbox.run("print(secret)").output == "5\n"


@each_backend
def test_an_error_is_one_line_that_names_the_line_and_keeps_the_variables(sandbox) -> None:
    result = sandbox.run("x = 1\nprint(x)\nx / 0")
    assert result.output == "1\n"
    assert result.error == "ZeroDivisionError: division by zero (line 3)"
    assert (sandbox.run("def f(").error or "").startswith("SyntaxError")
    assert len(sandbox.run("raise ValueError('x' * 100_000)").error or "") < 250
    assert sandbox.run("raise SystemExit").error == "SystemExit (line 1)"
    assert sandbox.run("print(x)").output == "1\n"


@each_backend
@pytest.mark.parametrize(
    "code", ["", "\0", "?", "\U0001f600", "\ud800", "9" * 10_000, "(" * 5_000, "x" * 30_000, "'\\ud800'"]
)
def test_no_code_is_too_odd(sandbox, code) -> None:
    sandbox.run(code)
    assert sandbox.run("print('still here')").output == "still here\n"


@each_backend
def test_a_surrogate_can_be_printed(sandbox) -> None:
    sandbox.run("print('\\ud800')").output.encode()


@each_backend
def test_the_same_code_prints_the_same_in_every_session(sandbox) -> None:
    code = "print(list({'apple', 'pear', 'plum', 'fig'}))"
    other = open_sandbox(sandbox.backend, LIMITS)
    assert sandbox.run(code) == other.run(code)
    other.close()


def test_dice_and_clock_are_the_same_in_every_monty_session() -> None:
    if REASONS["monty"]:
        pytest.skip(REASONS["monty"])
    code = "import random, time\nprint(random.random(), time.time())"
    first, second = open_sandbox("monty"), open_sandbox("monty")
    assert first.run(code).error is None
    assert open_sandbox("monty").run(code) == second.run(code)


@out_of_time_soon
@each_backend
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import time\nwhile True: time.sleep(1000)",
        "for _ in iter(int, 1): pass",
    ],
    ids=["loop", "loop that catches everything", "sleep", "endless iteration"],
)
def test_what_never_ends_is_stopped_in_time_and_the_session_starts_afresh(sandbox, code) -> None:
    sandbox.run("x = 1")
    begin = time.monotonic()
    result = sandbox.run(code)
    assert time.monotonic() - begin < 60.0
    assert result.error is not None
    if result.state_lost:
        assert "NameError" in (sandbox.run("print(x)").error or "")
    assert sandbox.run("print(2)").output == "2\n"


@out_of_time_soon
@each_backend
def test_what_was_printed_before_the_time_was_up_is_kept(sandbox) -> None:
    result = sandbox.run("print('begun')\nwhile True: pass")
    assert (result.output, result.timed_out, result.state_lost) == ("begun\n", True, True)
    assert result.error == "stopped after 0.4 s; its variables are lost"


@out_of_time_soon
@each_backend
@pytest.mark.parametrize(
    "code",
    [
        "'a' * 10**10",
        "[0] * 10**9",
        "x = 2 ** (10**9)",
        "x = 'a'\nwhile True: x += x",
        "x = []\nwhile True: x.append('a' * 10**6 + str(len(x)))",
        "d = {}\nwhile True: d[len(d)] = [0] * 1000",
    ],
    ids=["string", "list", "integer", "doubling", "many strings", "dictionary"],
)
def test_memory_is_bounded(sandbox, code) -> None:
    own = resident_mib()
    result = sandbox.run(code)
    assert result.error is not None
    assert resident_mib() - own < 64, "it grew in this process"
    assert sandbox.run("print(2)").output == "2\n"


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@each_backend
def test_recursion_ends_in_an_error(sandbox) -> None:
    assert "RecursionError" in (sandbox.run("def f(n): return f(n + 1)\nf(0)").error or "")
    assert sandbox.run("print(2)").output == "2\n"


@out_of_time_soon
@each_backend
def test_a_flood_of_output_is_cut_and_stopped(sandbox) -> None:
    assert sandbox.run("print('a' * 10_000)").output == "a" * 500
    begin = time.monotonic()
    result = sandbox.run("while True: print('a' * 1000)")
    assert time.monotonic() - begin < 60.0
    assert result.error is not None
    assert len(result.output) == 500
    assert sandbox.run("print(2)").output == "2\n"


@each_backend
def test_no_file_can_be_read(sandbox, tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden-content")
    for code in (
        f"print(open({str(secret)!r}).read())",
        "print(open('/etc/passwd').read())",
        "print(open('/proc/self/environ').read())",
        f"import os\nprint(os.listdir({str(tmp_path)!r}))",
        f"import pathlib\nprint(pathlib.Path({str(secret)!r}).read_text())",
        f"import os\nprint(os.read(os.open({str(secret)!r}, 0), 99))",
    ):
        result = sandbox.run(code)
        assert result.error is not None, code
        assert result.output == ""


@each_backend
def test_no_file_can_be_written_or_removed(sandbox, tmp_path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("before")
    status = kept.stat()
    for code in (
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
        f"open({str(kept)!r}, 'w').write('x')",
        "open('/tmp/gspo_rllib_escape', 'w').write('x')",
        f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.mkdir({str(tmp_path / 'folder')!r})",
        f"import os\nos.rename({str(kept)!r}, {str(tmp_path / 'moved')!r})",
        f"import os\nos.chmod({str(kept)!r}, 0)",
        f"import os\nos.chown({str(kept)!r}, 1, 1)",
        f"import os\nos.utime({str(kept)!r}, (1, 1))",
        f"import os\nos.truncate({str(kept)!r}, 0)",
        f"import os\nos.setxattr({str(kept)!r}, 'user.x', b'x')",
        f"import os\nos.link({str(kept)!r}, {str(tmp_path / 'link')!r})",
    ):
        assert sandbox.run(code).error is not None, code
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.stat()[:9] == status[:9]  # before the test itself reads it, which changes the time of access
    assert kept.read_text() == "before"
    assert not Path("/tmp/gspo_rllib_escape").exists()


@each_backend
def test_no_command_is_run(sandbox, tmp_path) -> None:
    mark = tmp_path / "mark"
    for code in (
        f"import os\nos.system('touch {mark}')",
        f"import subprocess\nsubprocess.run(['touch', {str(mark)!r}])",
        f"import os\nos.execv('/bin/touch', ['touch', {str(mark)!r}])",
        f"import os\nos.posix_spawn('/bin/touch', ['touch', {str(mark)!r}], {{}})",
        f"__import__('os').popen('touch {mark}').read()",
        f"eval(\"__import__('os').system('touch {mark}')\")",
    ):
        sandbox.run(code)
    assert not mark.exists()
    assert sandbox.run("print(2)").output == "2\n"


@each_backend
def test_no_connection_leaves_it(sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        port = server.getsockname()[1]
        result = sandbox.run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 0.2).send(b'x')")
        assert result.error is not None
        with pytest.raises(TimeoutError):
            server.accept()


@out_of_time_soon
@each_backend
def test_no_process_is_forked(sandbox) -> None:
    result = sandbox.run("import os\nprint('child' if os.fork() == 0 else 'parent')")
    assert result.output == ""
    assert result.error is not None
    bomb = sandbox.run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
    assert bomb.error is not None
    assert sandbox.run("print(2)").output == "2\n"


@each_backend
def test_the_environment_is_not_inherited(sandbox, monkeypatch) -> None:
    monkeypatch.setenv("GSPO_RLLIB_SECRET", "hidden-content")
    fresh = open_sandbox(sandbox.backend, LIMITS)
    assert "hidden" not in fresh.run("import os\nprint(dict(os.environ))").output
    fresh.close()


@each_backend
def test_this_process_is_out_of_its_reach(sandbox) -> None:
    limits = Path("/proc/self/limits").read_text()
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    for code in (
        "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)",
        f"import os, signal\nos.kill({os.getpid()}, signal.SIGTERM)",
        "import os, signal\nos.killpg(os.getpgid(os.getppid()), signal.SIGTERM)",
        f"import resource\nresource.prlimit({os.getpid()}, resource.RLIMIT_NOFILE, (64, 64))",
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (64, 64))",
        f"import os\nos.setpriority(os.PRIO_PROCESS, {os.getpid()}, 5)",
        "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 5)",
        f"import os\nos.sched_setaffinity({os.getpid()}, {{0}})",
    ):
        sandbox.run(code)
    assert Path("/proc/self/limits").read_text() == limits
    assert os.getpriority(os.PRIO_PROCESS, 0) == nice
    assert sandbox.run("print(2)").output == "2\n"


@each_backend
def test_nothing_of_this_project_or_its_packages_can_be_imported(sandbox) -> None:
    for name in ("gspo_rllib", "numpy", "yaml", "envs"):
        assert sandbox.run(f"import {name}").error is not None


@each_backend
def test_the_ladder_through_object_leads_nowhere(sandbox, tmp_path) -> None:
    mark = tmp_path / "mark"
    sandbox.run(
        "for c in ().__class__.__base__.__subclasses__():\n"
        "    g = getattr(getattr(c, '__init__', None), '__globals__', {})\n"
        f"    if 'os' in g: g['os'].system('touch {mark}')\n"
        f"    if 'sys' in g: g['sys'].modules['os'].system('touch {mark}')\n"
    )
    assert not mark.exists()


@each_cpython
def test_an_interpreter_that_kills_itself_is_replaced(sandbox) -> None:
    sandbox.run("x = 1")
    for code in (
        "import os\nos._exit(0)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "import os\nos.close(4)",
    ):
        result = sandbox.run(code)
        assert result.error == "the interpreter died; its variables are lost"
        assert result.state_lost
    assert "NameError" in (sandbox.run("print(x)").error or "")


@each("monty")
def test_a_killed_worker_is_replaced(sandbox) -> None:
    sandbox.run("x = 1")
    os.kill(sandbox._session.worker_pid, 9)
    assert sandbox.run("print(x)").state_lost
    assert sandbox.run("print(2)").output == "2\n"


@out_of_time_soon
@each_cpython
@pytest.mark.parametrize(
    "forged",
    [
        "os.write(4, struct.pack('>IBII', 0, 0, 4, 0) + b'fake')",
        "os.write(4, struct.pack('>IBII', 1, 0, 2**31, 0))\nwhile True: os.write(4, b'x' * 99)",
        "while True: os.write(4, b'x' * 99)",
        "os.write(4, struct.pack('>IBII', 1, 0, 3, 0))",
    ],
    ids=["of another run", "too long", "nonsense", "too short"],
)
def test_a_forged_reply_ends_the_session_and_nothing_else(sandbox, forged) -> None:
    result = sandbox.run(f"import os, struct\n{forged}")
    assert len(result.output) <= 3
    sandbox.run("pass")
    assert sandbox.run("print(2)").output == "2\n"


@each_cpython
def test_no_descriptor_of_this_process_is_inherited(sandbox, tmp_path) -> None:
    code = (
        "import os\nfound = []\nfor d in range(200):\n    try: found.append((d, os.fstat(d).st_mode >> 12))\n"
        "    except OSError: pass\nprint(found)"
    )
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        fresh = open_sandbox(sandbox.backend, LIMITS)
        pipes = fresh.run(code).output
        fresh.close()
    assert pipes == "[(3, 1), (4, 1)]\n", "only the two pipes it talks through"


@each_cpython
def test_threads_work_and_the_limits_cannot_be_raised(sandbox) -> None:
    assert (
        sandbox.run("import threading\nt = threading.Thread(target=print, args=(1,))\nt.start()\nt.join()").output
        == "1\n"
    )
    sandbox.run("import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)")
    assert "MemoryError" in (sandbox.run("x = 'a' * 10**9").error or "")
    assert sandbox.run("import os\nos.write(os.memfd_create('x'), b'x' * 10**6)").error is not None


@each_backend
def test_no_process_is_left_behind(sandbox) -> None:
    before = children()
    extra = open_sandbox(sandbox.backend, LIMITS)
    extra.run("x = 1")
    extra.close()
    extra.close()
    assert extra.run("print(3)").output == "3\n", "a closed session opens again when it is used"
    del extra
    if sandbox.backend != "monty":
        assert children() == before


def children() -> set[str]:
    task = Path(f"/proc/{os.getpid()}/task")
    return {pid for thread in task.iterdir() for pid in (thread / "children").read_text().split()}


@each_backend
def test_a_session_outlives_the_thread_that_opened_it_and_serves_others(sandbox) -> None:
    def in_a_thread(work: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(work).result()

    session = in_a_thread(lambda: open_sandbox(sandbox.backend, LIMITS))
    assert in_a_thread(lambda: session.run("x = 5")).error is None
    assert in_a_thread(lambda: session.run("print(x)")).output == "5\n"
    assert session.run("print(x)").output == "5\n"
    in_a_thread(session.close)


@each_cpython
def test_no_session_outlives_its_process(sandbox) -> None:
    code = (
        "import os; from gspo_rllib.envs.sandbox import open_sandbox\n"
        f"session = open_sandbox({sandbox.backend!r}); print(session._process.pid, flush=True); os._exit(0)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    deadline = time.monotonic() + 60.0
    while alive(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(int(done.stdout))


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_many_sessions_are_open_at_once() -> None:
    if REASONS["monty"]:
        pytest.skip(REASONS["monty"])
    sessions = [open_sandbox("monty") for _ in range(16)]
    for index, session in enumerate(sessions):
        session.run(f"x = {index}")
    assert [session.run("print(x)").output for session in sessions] == [f"{index}\n" for index in range(16)]
    for session in sessions:
        session.close()


def test_no_sandbox_means_no_execution(monkeypatch) -> None:
    for name, (_, opens) in list(sandbox_package._BACKENDS.items()):
        monkeypatch.setitem(sandbox_package._BACKENDS, name, (lambda name=name: f"no {name} here", opens))
    with pytest.raises(EnvError, match=r"no bwrap here.*pip install 'gspo-rllib\[sandbox\]'"):
        open_sandbox()


@pytest.mark.parametrize("name", ["monty", "landlock", "bubblewrap"])
def test_a_missing_backend_names_its_remedy(monkeypatch, name) -> None:
    module = importlib.import_module(f"gspo_rllib.envs.sandbox.{name}")
    monkeypatch.setattr(module, "unavailable", lambda: "it is missing")
    opens = {"monty": "MontySandbox", "landlock": "open_landlock", "bubblewrap": "open_bubblewrap"}[name]
    with pytest.raises(EnvError, match=r"it is missing.*pip install 'gspo-rllib\[sandbox\]'"):
        getattr(module, opens)(LIMITS)


def test_a_wrong_name_or_limit_is_refused() -> None:
    with pytest.raises(SettingError, match="Did you mean 'sandlock'"):
        open_sandbox("sandlok")
    for setting in ({"seconds": 0}, {"seconds": True}, {"memory_mib": 1}, {"output_chars": 0}, {"code_chars": 10**6}):
        with pytest.raises(SettingError, match=f"{next(iter(setting))}="):
            SandboxLimits(**setting)
    assert set(BACKENDS) == {"auto", *REASONS}


def test_importing_it_loads_no_backend() -> None:
    code = "import sys, gspo_rllib.envs.sandbox; print({'pydantic_monty', 'sandlock', 'torch'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("name", ["", ".protocol", ".monty", ".child"])
def test_the_examples_are_true(name) -> None:
    if name in {"", ".monty"} and REASONS["monty"]:
        pytest.skip(REASONS["monty"])
    results = doctest.testmod(importlib.import_module(f"gspo_rllib.envs.sandbox{name}"))
    assert results.attempted > 0
    assert results.failed == 0


@each_cpython
def test_every_denied_system_call_is_refused(sandbox: Sandbox) -> None:
    numbers = denied_numbers(platform.machine())
    assert len(set(numbers)) == len(numbers) > 90
    program = f"""
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        wrong = (-1,) * 6
        print([n for n in {numbers} if libc.syscall(n, *wrong) != -1 or ctypes.get_errno() != errno.EPERM])
        print(libc.syscall(39) > 0 or libc.syscall(172) > 0)  # the number of the process, which is nobody's secret
    """
    assert sandbox.run(textwrap.dedent(program)).output == "[]\nTrue\n"
