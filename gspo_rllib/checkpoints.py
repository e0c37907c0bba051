"""Which folder is a checkpoint of ours, and whether all of it is there.

A checkpoint is RLlib's own folder with the policy saved as a Hugging Face folder in it, and a manifest that is written
last: every file's size and SHA-256. A folder without one is incomplete or foreign; a file that differs is corrupt.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

from gspo_rllib.errors import CheckpointError

MANIFEST = "gspo_manifest.json"
FORMAT = 1
POLICY = pathlib.PurePosixPath("learner_group/learner/rl_module/default_policy")
"""Where in a checkpoint the policy's Hugging Face folder is."""
RENAMED_SETTINGS = {"weight_uptake": "weight_update"}
"""Settings that were renamed after 0.1: name in an old checkpoint to name now."""
WEIGHTS_VERSION = "weights_version"
"""Key in the manifest."""
REFERENCE = "reference"
"""Where in a checkpoint the frozen reference policy's Hugging Face folder is, if the run has one."""


def policy_folder(checkpoint: str | pathlib.Path) -> pathlib.Path:
    """The Hugging Face folder (safetensors, tokenizer, chat template) inside a verified checkpoint.

    Raises:
        CheckpointError: The folder does not exist, has no manifest, or a file is missing or differs.
    """
    return verify(checkpoint) / POLICY


def write_manifest(checkpoint: str | pathlib.Path, *, weights_version: int = 0) -> None:
    """Lists the files of a checkpoint that has just been written; the last step of saving.

    Args:
        checkpoint: Folder of the checkpoint.
        weights_version: Number of updates that made the weights.

    Raises:
        CheckpointError: The policy's weights are missing.
    """
    folder = pathlib.Path(checkpoint)
    if not list((folder / POLICY).glob("*.safetensors")):
        raise CheckpointError(
            f"{folder}: the learner did not write the policy's weights, so this checkpoint cannot be used. See its log "
            "(a full disk, a lost learner) and save again to a new folder."
        )
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {
        file.relative_to(folder).as_posix(): [file.stat().st_size, _sha256(file)]
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    temporary = folder / f"{MANIFEST}.tmp"
    manifest = {"format": FORMAT, "algorithm": "GSPO", WEIGHTS_VERSION: weights_version, "files": files}
    temporary.write_text(json.dumps(manifest, indent=1))
    temporary.replace(folder / MANIFEST)


def weights_version(folder: pathlib.Path) -> int:
    """What the learners of a run that goes on from a checkpoint call its weights; 0 where an old one does not say.

    Args:
        folder: A verified checkpoint.
    """
    return int(json.loads((folder / MANIFEST).read_text()).get(WEIGHTS_VERSION, 0))


def write_reference(checkpoint: str | pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Puts the reference policy into a checkpoint, before its manifest is written.

    Args:
        checkpoint: The checkpoint's folder.
        files: The files of a Hugging Face folder, name relative to the folder to content.
    """
    folder = pathlib.Path(checkpoint) / REFERENCE
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def verify(checkpoint: Any) -> pathlib.Path:
    """Checks a checkpoint against its manifest before anything is loaded from it.

    Args:
        checkpoint: A folder, or a Ray ``Checkpoint``.

    Returns:
        The folder, absolute.

    Raises:
        CheckpointError: It does not exist, has no manifest, or a file is missing or differs.
    """
    if hasattr(checkpoint, "to_directory"):
        checkpoint = checkpoint.to_directory()
    folder = pathlib.Path(str(checkpoint).removeprefix("file://")).expanduser().resolve()
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint {str(checkpoint)!r}: there is no such folder. Give what save_to_path returned."
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files: dict[str, list[Any]] = manifest["files"]
        version = manifest["format"]
    except FileNotFoundError:
        raise CheckpointError(
            f"checkpoint {folder}: it has no {MANIFEST}, so it was not written by GSPO.save_to_path, or saving was "
            "interrupted. Use an earlier checkpoint."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder}: its {MANIFEST} is damaged. Use an earlier checkpoint.") from error
    if version != FORMAT:
        raise CheckpointError(
            f"checkpoint {folder}: format {version!r}, this version reads {FORMAT}. Upgrade gspo-rllib."
        )
    for name, (size, digest) in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {folder}: {name} is missing. Use an earlier checkpoint.")
        if file.stat().st_size != size or _sha256(file) != digest:
            raise CheckpointError(f"checkpoint {folder}: {name} is corrupt. Use an earlier checkpoint.")
    return folder


def self_contained_config(folder: pathlib.Path) -> dict[str, Any]:
    """The config a checkpoint was trained with, its model paths replaced by those inside the checkpoint.

    Args:
        folder: A verified checkpoint. Its RLlib part is pickled, so it must be trusted.
    """
    with (folder / "class_and_ctor_args.pkl").open("rb") as file:
        state: dict[str, Any] = pickle.load(file)["ctor_args_and_kwargs"][0][0]
    state = {RENAMED_SETTINGS.get(name, name): value for name, value in state.items()}
    # A revision is one of a hub name, which this folder replaces.
    state["_model_config"] = {**state["_model_config"], "path": str(folder / POLICY), "revision": None}
    if (folder / REFERENCE).is_dir():
        state["reference_path"] = str(folder / REFERENCE)
    return state


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
