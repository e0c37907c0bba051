"""Keeps a library's start-up from changing the process it runs in."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gspo_rllib.imports import draws_undone


@contextmanager
def process_state_kept(keep_env_prefix: str) -> Iterator[None]:
    """Restores random states, torch's thread count and the environment variables after the block.

    vLLM reseeds every global generator (so two env runners would explore identically), replaces
    ``torch.set_num_threads`` by a no-op, and sets variables such as LD_PRELOAD that every later subprocess inherits.

    Args:
        keep_env_prefix: Variables with this prefix keep what the block set.
    """
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    env = dict(os.environ)
    try:
        with random_states_kept():
            yield
    finally:
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != num_threads:
            set_num_threads(num_threads)
        for name in [n for n in os.environ if n not in env and not n.startswith(keep_env_prefix)]:
            del os.environ[name]
        os.environ.update({n: v for n, v in env.items() if not n.startswith(keep_env_prefix)})


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restores the global generators of Python, numpy and torch after the block, torch's as said below.

    Starting a library is not alone in changing them: the import of vLLM 0.27 draws from Python's.
    """
    with draws_undone(), torch_random_state_kept():
        yield


@contextmanager
def torch_random_state_kept() -> Iterator[None]:
    """Restores torch's global generators after the block; cheap enough for every engine step.

    On the main thread only. Beside it, to take back what the block drew would also take back what the main thread drew
    meanwhile, and a learner there would drop out the same units again. There both draw from one stream, each number
    once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
