"""``gspo-rllib export``: writes a checkpoint's policy as a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from gspo_rllib.errors import SettingError
from gspo_rllib.model_files import DTYPES, export_folder
from gspo_rllib.places import check_folder, named_path


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("export", help="write a policy as a Hugging Face folder", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint that training wrote")
    parser.add_argument("folder", metavar="DIR", help="folder to write; must be empty or not exist")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the weights; default: the dtype of the model that training started from"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the policy's files."""
    folder = named_path(arguments.folder)
    dtype = export(arguments.checkpoint, folder, dtype=arguments.dtype)
    print(f"{folder}: {dtype}; load it with transformers.AutoModelForCausalLM.from_pretrained or vllm.LLM")
    return 0


def export(checkpoint: str, folder: Path, *, dtype: str | None = None) -> str:
    """Writes the policy of a checkpoint; unpickles nothing.

    Args:
        checkpoint: A folder that training wrote.
        folder: Where to; made if missing.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; None for that of the model that training started from.

    Returns:
        The dtype of the folder.

    Raises:
        CheckpointError: The checkpoint is foreign, incomplete or corrupt.
        ModelError: A weight is too large for the dtype.
        SettingError: ``folder`` is not empty.
    """
    from gspo_rllib import checkpoints

    check_folder(folder, "export: the folder")
    source = checkpoints.policy_folder(checkpoint)
    if folder.exists() and any(folder.iterdir()):
        raise SettingError(f"export: {str(folder)!r} is not empty; name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return export_folder(source, folder, dtype=dtype)
    except BaseException:
        # A part of a model would pass for the whole.
        shutil.rmtree(folder)
        raise
