"""A driver whose learners and env runner are in actors, and what memory it takes, stage by stage; a program."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import ray

from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.driver.processes import is_here
from gspo_rllib.weight_sync import Weights
from tests.own_memory import OwnMemory
from tests.toy_envs.coin_env import CoinEnv


def main(path: str, num_learners: int, address: str) -> dict[str, float]:
    """Most MB in each stage; on a cluster that has an address, all actors are on another node than this process."""
    here = {"num_cpus": 4, "include_dashboard": False} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, configure_logging=False, **here)
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
    with OwnMemory() as memory, tempfile.TemporaryDirectory() as folder:
        memory.enter("build")
        algorithm = config.build_algo()
        learners = algorithm.learner_group
        assert [is_here(learner) for learner in learners._workers] == [address == "local"] * num_learners
        memory.enter("train")
        for _ in range(2):
            algorithm.train()
        memory.enter("commit")
        learners.commit()
        memory.enter("sync")
        del Weights(learners)._taken
        memory.enter("save")
        algorithm.save_to_path(folder)
        memory.enter("restore")
        algorithm.restore_from_path(folder)
        algorithm.train()
        algorithm.stop()
        memory.enter("from_checkpoint")
        again = GSPO.from_checkpoint(folder, trust=[CoinEnv])
        again.train()
        again.stop()
    return memory.of


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
