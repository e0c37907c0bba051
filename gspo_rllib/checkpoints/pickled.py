"""Checkpoints of 0.1, whose part of RLlib's is pickles: loading one runs whatever is in it."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

from gspo_rllib.checkpoints.manifest import POLICY, REFERENCE
from gspo_rllib.errors import CheckpointError

RENAMED_SETTINGS = {"weight_uptake": "weight_update"}
"""Settings that were renamed after 0.1: name in an old checkpoint to name now."""


def check_trusted(folder: pathlib.Path, *, trust_pickle: bool) -> None:
    """Refuses to unpickle what the caller has not vouched for.

    Raises:
        CheckpointError: ``trust_pickle`` is not True.
    """
    if trust_pickle is not True:
        raise CheckpointError(
            f"checkpoint {folder}: it was written by gspo-rllib 0.1 and holds pickles, which are programs. If it is "
            "your own, load it with trust_pickle=True, or --trust-pickle on the command line, and save it anew; its "
            f"policy alone is data, in {POLICY}."
        )


def self_contained_config(folder: pathlib.Path, *, trust_pickle: bool = False) -> dict[str, Any]:
    """The config a checkpoint of 0.1 was trained with, its model paths replaced by those inside the checkpoint.

    Args:
        folder: A verified checkpoint.
        trust_pickle: Whether its pickles may run.

    Raises:
        CheckpointError: They may not.
    """
    check_trusted(folder, trust_pickle=trust_pickle)
    with (folder / "class_and_ctor_args.pkl").open("rb") as file:
        state: dict[str, Any] = pickle.load(file)["ctor_args_and_kwargs"][0][0]
    state = {RENAMED_SETTINGS.get(name, name): value for name, value in state.items()}
    state["_model_config"] = {**state["_model_config"], "path": str(folder / POLICY)}
    if (folder / REFERENCE).is_dir():
        state["reference_path"] = str(folder / REFERENCE)
    return state
