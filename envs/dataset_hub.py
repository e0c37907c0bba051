"""Data sets of the hub: one short question whether anybody answers, before the package asks for half a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gspo_rllib.errors import EnvError, described

HUB = "hub:"
PATIENCE_S = 5.0
"""How long the hub may take to answer. Seconds."""


def load_from_hub(datasets: Any, path: str, split: str | None) -> Any:
    """What ``datasets.load_dataset`` returns.

    Args:
        datasets: The package of that name.
        path: ``hub:NAME``.
        split: Which split to read; None for all.

    Raises:
        EnvError: There is no such data set or split, or the hub cannot be reached and the cache has no copy.
    """
    name = path.removeprefix(HUB)
    cached = Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___")).is_dir()
    if not cached and (silence := _silence(name)) is not None:
        raise EnvError(
            f"path={path!r}: the hub cannot be reached ({described(silence, 200)}), and the cache has no copy. Give a "
            f"file or a folder; where there is a network, `hf download {name} --repo-type dataset --local-dir FOLDER` "
            "brings the files."
        )
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:  # what the package raises derives from these
        raise EnvError(f"path={path!r} could not be read: {described(error, 300)}") from error


def _silence(name: str) -> BaseException | None:
    """Why nobody answers; None where somebody does, if only to refuse, which the package then says."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        url = huggingface_hub.hf_hub_url(name, "README.md", repo_type="dataset")
        huggingface_hub.get_hf_file_metadata(url, timeout=PATIENCE_S)
    except (EntryNotFoundError, HfHubHTTPError, ValueError):
        return None
    except Exception as error:  # noqa: BLE001, of whichever HTTP client huggingface_hub uses
        return error
    return None
