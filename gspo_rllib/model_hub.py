"""Models of the Hugging Face hub: one short question whether it is there, before transformers asks for a minute.

Where it cannot, the copy in the cache is used as a folder, which asks for nothing any more.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from gspo_rllib.errors import ModelError
from gspo_rllib.model_files import ADAPTER_CONFIG, KEPT

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""How long the hub may take to answer the one question. Seconds."""

_CONFIG = "config.json"
_READ = tuple(f"*{ending}" for ending in KEPT)
_WEIGHTS = ("*.safetensors", "*.bin")


@functools.cache
def found(name: str) -> str:
    """Where transformers is to look for a model of the hub: under its name, or in the cache where nobody answers.

    Args:
        name: A hub name; whether there is such a model is left to transformers, which says it well.

    Raises:
        ModelError: The hub cannot be reached and the cache does not hold the model; or it is an adapter.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError

    if is_offline_mode():
        return name  # transformers asks nobody then
    try:
        is_adapter = not _has(name, _CONFIG) and _has(name, ADAPTER_CONFIG)
    except (HfHubHTTPError, ValueError):  # the hub refuses, or it can be no name: transformers says which
        return name
    except Exception as error:  # of whichever HTTP client huggingface_hub uses: nobody answered
        cached = try_to_load_from_cache(name, _CONFIG)
        if not isinstance(cached, str):
            raise ModelError(
                f"model path {name!r}: there is no such folder here and no copy in the cache, and the hub cannot be "
                f"reached ({type(error).__name__}: {first_line(error)}). Give a local Hugging Face folder; "
                f"`hf download {name}` fills the cache where there is a network; `gspo-rllib warmstart ENV FOLDER` "
                "makes a small model."
            ) from error
        folder = str(Path(cached).parent)
        logger.warning("model path %r: the hub cannot be reached; the copy in the cache is used, %s", name, folder)
        return folder
    if is_adapter:
        raise ModelError(
            f"model path {name!r}: the hub has an adapter of that name, not a model of its own. Download it "
            f"(`hf download {name} --local-dir FOLDER`) and give the model below it as path and the folder as "
            "adapter: rl_module(model_config={'path': MODEL, 'lora': {'adapter': FOLDER}})."
        )
    return name


@functools.cache
def downloaded(name: str, revision: str) -> str:
    """The folder in the cache that holds a revision of a model, downloaded where it is not there yet.

    Args:
        name: A hub name.
        revision: Branch, tag or commit.

    Raises:
        ModelError: There is no such revision, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download

    def download(patterns: tuple[str, ...]) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))

    try:
        # A hub often has the same weights in several formats.
        folder = download((*_READ, _WEIGHTS[0]))
        if not [*folder.glob(_WEIGHTS[0])]:
            folder = download((*_READ, *_WEIGHTS))
    except (OSError, ValueError) as error:  # what huggingface_hub raises derives from them
        raise ModelError(
            f"model path {name!r}, revision {revision!r}: not in the cache, and not to be had from the hub "
            f"({first_line(error)}). Check both names, and the network."
        ) from error
    return str(folder)


def first_line(error: BaseException) -> str:
    """What an error says first, for messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _has(name: str, file: str) -> bool:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(name, file), timeout=PATIENCE_S)
    except EntryNotFoundError:
        return False
    return True
