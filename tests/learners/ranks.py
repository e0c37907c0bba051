"""Runs a function in several processes of one torch group, as learners are; without Ray, which costs more to start."""

from __future__ import annotations

import datetime
import multiprocessing
import pathlib
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

PATIENCE_S = 600.0
"""Seconds after which processes that still run are taken for hanging."""


def on_ranks(function: Callable[..., Any], *arguments: Any, world: int = 2) -> list[Any]:
    """What each rank's call returned, by rank.

    Args:
        function: Of a module that can be imported; called with the rank and the arguments.
        arguments: Picklable.
        world: How many ranks.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_run, args=(rank, world, folder, function, arguments)) for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE_S)
        hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
            process.join()
        answers = [pathlib.Path(folder, f"{rank}.pt") for rank in range(world)]
        found = [torch.load(file, weights_only=False) if file.is_file() else None for file in answers]
    raised = [answer["raised"] for answer in found if answer is not None and "raised" in answer]
    assert not raised, raised[0]
    assert not hanging, f"ranks {hanging} did not end in {PATIENCE_S:.0f} s"
    return [answer["returned"] for answer in found if answer is not None]


def _run(rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    answer: dict[str, Any]
    try:
        torch.set_num_threads(1)
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=60),
        )
        answer = {"returned": function(rank, *arguments)}
    except BaseException:  # noqa: BLE001, of any class: the test shows it
        answer = {"raised": f"rank {rank}: {traceback.format_exc()}"}
    torch.save(answer, f"{folder}/{rank}.pt")
    if distributed.is_initialized():
        distributed.destroy_process_group()
