"""``gspo-rllib export``: writes a checkpoint's policy as a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from gspo_rllib.errors import SettingError

# A Hugging Face folder holds these; RLlib's pickles of the same folder stay behind.
KEPT = (".json", ".jinja", ".safetensors", ".model", ".txt", ".py")
RLLIB_FILES = ("metadata.json",)


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("export", help="write a policy as a Hugging Face folder", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint that training wrote")
    parser.add_argument("folder", metavar="DIR", help="folder to write; must be empty or not exist")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Copies the policy's files."""
    folder = Path(arguments.folder).expanduser()
    export(arguments.checkpoint, folder)
    print(f"{folder}: load it with transformers.AutoModelForCausalLM.from_pretrained or vllm.LLM")
    return 0


def export(checkpoint: str, folder: Path) -> None:
    """Writes the policy of a checkpoint; unpickles nothing.

    Args:
        checkpoint: A folder that training wrote.
        folder: Where to; made if missing.

    Raises:
        CheckpointError: The checkpoint is foreign, incomplete or corrupt.
        SettingError: ``folder`` is not empty.
    """
    from gspo_rllib import checkpoints

    source = checkpoints.policy_folder(checkpoint)
    if folder.exists() and any(folder.iterdir()):
        raise SettingError(f"export: {str(folder)!r} is not empty; name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.suffix in KEPT and file.name not in RLLIB_FILES:
            shutil.copy2(file, folder / file.name)
