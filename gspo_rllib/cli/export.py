"""``gspo-rllib export``: writes a checkpoint's policy as a Hugging Face folder that transformers and vLLM load.

Of a policy with an adapter, the adapter as peft loads it, or with ``--merge`` the whole model.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gspo_rllib.cli.model_card import model_card
from gspo_rllib.cli.named_policy import refuse_run
from gspo_rllib.cli.push import check_name, push
from gspo_rllib.errors import SettingError
from gspo_rllib.model_files import ADAPTER_CONFIG, DTYPES, export_adapter, export_folder
from gspo_rllib.places import check_folder, named_path


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("export", help="write a policy as a Hugging Face folder", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint that training wrote")
    parser.add_argument("folder", metavar="DIR", help="folder to write; must be empty or not exist")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the weights; default: the dtype of the model that training started from"
    )
    parser.add_argument(
        "--merge", action="store_true", help="write the whole model that an adapter and the model below it make"
    )
    parser.add_argument("--push", metavar="NAME", help="upload it to the Hugging Face hub as NAME or OWNER/NAME, too")
    parser.add_argument("--private", action="store_true", help="with --push: a new repository is private")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the policy's files."""
    folder, name = named_path(arguments.folder), arguments.push
    if arguments.private and name is None:
        raise SettingError("--private: there is nothing to push; give --push NAME, or leave it out.")
    if name is not None:
        check_name(name)
    dtype = export(arguments.checkpoint, folder, dtype=arguments.dtype, merge=arguments.merge, name=name)
    loads = "transformers.AutoModelForCausalLM.from_pretrained or vllm.LLM"
    if (folder / ADAPTER_CONFIG).is_file():
        loads = "peft.AutoPeftModelForCausalLM.from_pretrained or vllm's LoRARequest"
    print(f"{folder}: {dtype}; load it with {loads}", flush=True)
    if name is not None:
        print(f"pushed to {push(folder, name, private=arguments.private)}")
    return 0


def export(
    checkpoint: str, folder: Path, *, dtype: str | None = None, merge: bool = False, name: str | None = None
) -> str:
    """Writes the policy of a checkpoint; unpickles nothing.

    Args:
        checkpoint: A folder that training wrote.
        folder: Where to; made if missing.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; None for that of the model that training started from,
            of an adapter on its own for float32.
        merge: Whether to write the whole model that an adapter makes; it is read from where the run read it.
        name: What its model card calls it; None for the folder's name.

    Returns:
        The dtype of the folder.

    Raises:
        CheckpointError: The checkpoint is foreign, incomplete or corrupt, or a run.
        ModelError: A weight is too large for the dtype, or the model below the adapter is gone or another one.
        SettingError: ``folder`` is not empty, or there is no adapter to merge.
    """
    from gspo_rllib import checkpoints

    refuse_run(checkpoint)
    check_folder(folder, "export: the folder")
    source = checkpoints.policy_folder(checkpoint)
    if folder.exists() and any(folder.iterdir()):
        raise SettingError(f"export: {str(folder)!r} is not empty; name a new folder.")
    has_adapter = (source / ADAPTER_CONFIG).is_file()
    if merge and not has_adapter:
        raise SettingError(f"export --merge: {checkpoint!r} holds a whole model and no adapter; leave --merge out.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if merge:
            written = _export_merged(source, folder, dtype=dtype)
        elif has_adapter:
            written = export_adapter(source, folder, dtype=dtype)
        else:
            written = export_folder(source, folder, dtype=dtype)
        (folder / "README.md").write_text(model_card(checkpoint, name=name or folder.name, dtype=written), "utf-8")
        return written
    except BaseException:
        # A part of a model would pass for the whole.
        shutil.rmtree(folder)
        raise


def _export_merged(source: Path, folder: Path, *, dtype: str | None) -> str:
    from gspo_rllib.modules.merging import write_merged

    with tempfile.TemporaryDirectory(dir=folder.parent) as whole:
        write_merged(source, whole)
        return export_folder(Path(whole), folder, dtype=dtype)
