"""Studies that come with the package, each a file that ``gspo-rllib study NAME`` runs."""

from __future__ import annotations

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
