"""A driver whose learners and env runner are in actors, and what memory it takes, stage by stage; a program."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray

from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.weight_sync import Weights
from tests.toy_envs.coin_env import CoinEnv


class Peaks:
    """Most resident memory of this process in each stage, in MB."""

    def __init__(self) -> None:
        self.of: dict[str, float] = {}
        self.enter("start")
        threading.Thread(target=self._look, daemon=True).start()

    def enter(self, stage: str) -> None:
        """From now on it is another stage."""
        self.stage = stage
        self._note()

    def _note(self) -> None:
        status = Path("/proc/self/status").read_text().splitlines()
        now = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024 / 1e6
        self.of[self.stage] = max(self.of.get(self.stage, 0.0), now)

    def _look(self) -> None:
        while True:
            self._note()
            time.sleep(0.01)


def main(path: str, num_learners: int) -> dict[str, float]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    peaks = Peaks()
    config: Any = (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", max_tokens_per_turn=6)
        .training(group_size=4, groups_per_iteration=2, num_minibatches=2, lr=1e-4)
        .env_runners(num_env_runners=1)
        .learners(num_learners=num_learners, sharding="fsdp2" if num_learners > 1 else "none")
        .debugging(seed=0)
    )
    peaks.enter("build")
    algorithm = config.build_algo()
    peaks.enter("train")
    for _ in range(2):
        algorithm.train()
    peaks.enter("sync")
    del Weights(algorithm.learner_group)._taken
    with tempfile.TemporaryDirectory() as folder:
        peaks.enter("save")
        algorithm.save_to_path(folder)
        peaks.enter("restore")
        algorithm.restore_from_path(folder)
        algorithm.train()
        algorithm.stop()
        peaks.enter("from_checkpoint")
        again = GSPO.from_checkpoint(folder, trust=[CoinEnv])
        again.train()
        again.stop()
    peaks.enter("end")
    return peaks.of


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
