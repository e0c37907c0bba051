"""The test suite's own rule: where nothing may be skipped, a skipped test fails the run, and is named."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NO_SKIPS = "GSPO_RLLIB_NO_SKIPS"

FILES = {
    "passes": "def test_one(): pass",
    "fails": "def test_two(): assert False",
    "mark": "import pytest\n@pytest.mark.skipif(True, reason='no bwrap')\ndef test_three(): pass",
    "call": "import pytest\n@pytest.mark.parametrize('x', [1, 2])\ndef test_four(x): pytest.skip('no java')",
    "module": "import pytest\npytest.importorskip('no_such_package')",
    "fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip('no gpu')\ndef test_five(f): pass",
    "xfail": "import pytest\n@pytest.mark.xfail\ndef test_six(): assert False",
}
SKIPPING = {
    "mark": {"no bwrap", "test_mark.py::test_three"},
    "call": {"no java", "test_call.py::test_four[1]", "test_call.py::test_four[2]"},
    "module": {"could not import 'no_such_package': No module named 'no_such_package'", "test_module.py"},
    "fixture": {"no gpu", "test_fixture.py::test_five"},
}
IN_PROCESSES = [[], ["-n", "2"]] if importlib.util.find_spec("xdist") else [[]]

in_every_way = pytest.mark.parametrize("options", IN_PROCESSES, ids=" ".join)


def run(folder: Path, names: list[str], options: list[str], *, no_skips: bool) -> subprocess.CompletedProcess[str]:
    """pytest on a folder with this suite's conftest and some of the files above."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -q -p no:cacheprovider\n")
    for name in names:
        (folder / f"test_{name}.py").write_text(FILES[name])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # Without this suite's own plugins, which take a second to import.
    environment |= {NO_SKIPS: "1" if no_skips else "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", *(["-p", "xdist", *options] if options else [])]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@in_every_way
def test_every_kind_of_skip_fails_the_run_and_is_listed_with_its_reason(tmp_path: Path, options: list[str]) -> None:
    done = run(tmp_path, ["passes", "xfail", *SKIPPING], options, no_skips=True)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    listed = done.stdout.partition(f"5 skipped, but {NO_SKIPS} allows none")[2]
    assert listed, done.stdout
    lines = [line.strip() for line in listed.splitlines()]
    for name, expected in SKIPPING.items():
        assert expected <= set(lines), name
    assert lines.count("test_module.py") == 1
    assert "test_six" not in listed and "test_one" not in listed


@in_every_way
def test_a_run_that_may_skip_passes(tmp_path: Path, options: list[str]) -> None:
    done = run(tmp_path, ["passes", *SKIPPING], options, no_skips=False)
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    assert NO_SKIPS not in done.stdout


def test_a_run_that_skips_nothing_passes_and_a_failure_stays_one(tmp_path: Path) -> None:
    assert run(tmp_path, ["passes", "xfail"], [], no_skips=True).returncode == pytest.ExitCode.OK
    assert run(tmp_path, ["fails"], [], no_skips=True).returncode == pytest.ExitCode.TESTS_FAILED


def test_continuous_integration_runs_make_test_and_allows_no_skip() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-2:] == [f"export {NO_SKIPS}=1", "exec make test"]
