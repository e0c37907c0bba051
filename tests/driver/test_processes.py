"""Processes of actors that stand still."""

from __future__ import annotations

import os
import signal
import time

import psutil
import ray

from gspo_rllib.driver.processes import Standstill, actor_entry, stands_still_at
from tests.ray_exports import exported


def test_a_process_that_stands_still_is_told_once_however_long_it_takes_to_end(ray_local: None) -> None:
    """Who is ended for it a second time is the process in its place."""

    class Idle:
        """By value, in a process that imports neither torch nor RLlib."""

        def pid(self) -> int:
            return os.getpid()

    actor = ray.remote(num_cpus=0)(Idle).remote()
    pid, standstill = ray.get(actor.pid.remote()), Standstill()
    os.kill(pid, signal.SIGSTOP)
    try:
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:  # a busy machine takes a while to stop it
            time.sleep(0.01)
        found = []
        for _ in range(3):
            standstill._looked.clear()  # it looks every half second
            found.append(list(standstill.find({7: actor}, patience_s=0.0)))
        assert actor_entry(actor)["Pid"] == pid and found == [[7], [], []]
    finally:
        os.kill(pid, signal.SIGKILL)


def test_looks_at_other_machines_leave_one_function_with_ray_however_many_there_are(ray_local: None) -> None:
    node, looks = ray.get_runtime_context().get_node_id(), []
    for _ in range(3):
        assert not stands_still_at(node, os.getpid())
        looks.append(exported())
    assert looks[0] == looks[1] == looks[2]
