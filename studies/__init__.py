"""Studies that come with the package, each a file that ``gspo-rllib study NAME`` runs."""

from __future__ import annotations

import os
from pathlib import Path

if __name__ == "studies":
    raise ImportError("import gspo_rllib.studies, not studies")


def shipped_studies() -> dict[str, Path]:
    """Name to file.

    Example:
        >>> list(shipped_studies())
        ['baselines', 'quick']
    """
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def shipped_study(name: str) -> Path | None:
    """The file of a study that comes with the package; None where there is none, or a file here has that name.

    Example:
        >>> shipped_study("quick").name, shipped_study("mine.yaml")
        ('quick.yaml', None)
    """
    return None if os.path.isfile(name) else shipped_studies().get(name)
