"""What learners that share one model are asked to do, in each of two processes; and one alone, for comparison."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any
from unittest import mock

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch.distributed.tensor import DTensor

from gspo_rllib.algorithms import GSPOConfig, LanguagePPOConfig
from gspo_rllib.checkpoints.components import restore_component, save_component
from gspo_rllib.freed_memory import return_large_blocks
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.policy_state import inference_state
from gspo_rllib.types import TrajectoryGroup, group_episodes
from gspo_rllib.weight_sync import gather_weights
from tests.episodes import make_episode
from tests.learners.objectives import objective_config
from tests.learners.small_learner import SPACES, even_groups
from tests.own_memory import OwnMemory

LORA = {"rank": 4, "alpha": 8}
RECOMPUTED = {"activation_checkpointing": True}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ITERATIONS = 3
NEARLY_PROPORTIONAL = {"lr": 1e-3, "adam_epsilon": 1e-4}
"""An epsilon as large as the gradients: steps grow with them. Adam's usual ones are their signs, float noise's too."""

Case = tuple[str, dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "dense": ("tiny_dense", {}, {}),
    "tied": ("tiny_tied", {}, {}),
    "mixture of experts": ("tiny_moe", {}, {}),
    "checkpointed": ("tiny_dense", RECOMPUTED, {}),
    "padded rows": ("tiny_dense", {"packing": False}, {}),
    "adapter": ("tiny_dense", {"lora": LORA}, {}),
    "adapter on experts": (
        "tiny_moe",
        {"lora": {**LORA, "target_modules": ["q_proj"], "target_parameters": EXPERTS}, **RECOMPUTED},
        {},
    ),
    "reference": ("tiny_dense", {}, {"kl_coeff": 0.1}),
    "bfloat16": ("tiny_dense", {"autocast_dtype": "bfloat16"}, {"kl_coeff": 0.1, "old_log_probs": "learner"}),
    "adapter and reference": ("tiny_dense", {"lora": LORA}, {"kl_coeff": 0.1}),
    "old log-probs": ("tiny_dense", {}, {"old_log_probs": "learner", "num_epochs": 2}),
    "undone steps": ("tiny_dense", {}, {"target_kl": 1e-3, "undo_overshoot": True, "num_epochs": 2}),
    "held experts": ("tiny_moe", {}, {"routing_replay": True, "num_epochs": 2}),
    "critic": ("tiny_dense", {}, {"algorithm": LanguagePPOConfig}),
    "critic on shared layers": ("tiny_dense", {"vf_share_layers": True}, {"algorithm": LanguagePPOConfig}),
}
"""Name to model, model settings and training settings."""


def config_of(case: Case, paths: dict[str, str], *, num_learners: int, **changes: Any) -> GSPOConfig:
    model, of_model, training = case
    training = {**training, **changes}
    algorithm = training.pop("algorithm", GSPOConfig)
    # Rows of 80 tokens: several micro-batches, more on one rank than on the other. The clip bites.
    settings = {"num_minibatches": 2, "max_tokens_per_micro_batch": 80, "grad_clip": 0.05, **NEARLY_PROPORTIONAL}
    settings |= training
    config = objective_config(paths[model], algorithm(), model=of_model, **settings)
    return config.learners(num_learners=num_learners, sharding="fsdp2" if num_learners > 1 else "none")


def num_ranks(rank: int | None) -> int:
    """Learners that share a model here; none where one is alone."""
    return 0 if rank is None else torch.distributed.get_world_size()


def built(config: GSPOConfig) -> Any:
    return config.build_learner(spaces=SPACES)


def update(learner: Any, rank: int | None, groups: list[TrajectoryGroup], *, seed: int = 0, steps: int = 2) -> Any:
    """One update as RLlib's group of learners makes it: of one learner alone where there is no rank."""
    data = GroupTrainingData.from_groups(groups, num_minibatches=steps, seed=seed)
    part = data if rank is None else data.shard(num_ranks(rank))[rank][0]
    epochs = learner.settings.num_epochs if hasattr(learner.settings, "num_epochs") else 1
    results = learner.update(training_data=part, num_epochs=epochs, timesteps={})
    return {name: float(s.peek()) for name, s in results[DEFAULT_MODULE_ID].items() if hasattr(s, "peek")}


def module_of(learner: Any) -> Any:
    return learner.module[DEFAULT_MODULE_ID].unwrapped()


def sent(learner: Any) -> dict[str, np.ndarray]:
    """What engines are sent, by name; nothing of a learner that only takes part."""
    if not learner.is_sharded:
        return inference_state(module_of(learner), copy=True)
    (*_, numbers), *arrays = gather_weights(learner)
    return {name: arrays[number] for name, number in numbers.items()} if arrays else {}


def held_bytes(learner: Any) -> int:
    """Parameters and optimiser state in this process, a reference policy's included."""
    modules = [module_of(learner)]
    for piece in learner._learner_connector.connectors:
        modules += [own] if (own := getattr(piece, "_reference", None)) is not None else []
    tensors = [parameter for module in modules for parameter in module.parameters()]
    for optimizer in learner._all_optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values()]
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)


def train(rank: int | None, case: Case, paths: dict[str, str], folder: str) -> dict[str, Any]:
    """Three iterations; what was trained, what it measured, and what it takes."""
    torch.manual_seed(0 if rank is None else rank)
    learner = built(config_of(case, paths, num_learners=num_ranks(rank)))
    if case[1].get("lora"):
        start_alike(learner)
    for seed in range(ITERATIONS):
        measured = update(learner, rank, even_groups(4), seed=seed)
    if rank is None or learner.gives_state:
        save_component(learner, pathlib.Path(folder))
    else:
        save_component(learner, pathlib.Path(folder, "nowhere"))
    return {
        "state": learner.get_state(),
        "sent": sent(learner),
        "bytes": held_bytes(learner),
        "measured": measured,
    }


def start_alike(learner: Any) -> None:
    """Adapters start at random numbers, which depend on what was drawn before: here they are the same everywhere."""
    module = module_of(learner)
    state = module.get_state()
    generator = np.random.default_rng(5)
    drawn = {
        name: generator.normal(0, 0.02, value.shape).astype(np.float32) if "lora_" in name else value
        for name, value in sorted(state.items())
    }
    if torch.distributed.is_initialized():
        everywhere = [drawn]
        torch.distributed.broadcast_object_list(everywhere, src=0)
        (drawn,) = everywhere
    module.set_state(drawn)


def train_all(rank: int, names: list[str], paths: dict[str, str], folder: str) -> dict[str, Any]:
    return {name: train(rank, CASES[name], paths, f"{folder}/{name}") for name in names}


def passes(rank: int, paths: dict[str, str], sizes: dict[str, list[int]]) -> dict[str, list[bool]]:
    """Whether each pass of a rank was over nothing, in updates on groups of so many trajectories."""
    world = num_ranks(rank)
    config = config_of(CASES["dense"], paths, num_learners=world, old_log_probs="learner", grad_clip=None, lr=1e-3)
    learner = built(config.training(max_tokens_per_micro_batch=60))
    made = []
    forward = module_of(learner)._forward

    def counted(batch: dict[str, Any], **kwargs: Any) -> Any:
        made.append(bool(batch.get("empty")))
        return forward(batch, **kwargs)

    module_of(learner)._forward = counted
    found = {}
    for name, of_groups in sizes.items():
        made.clear()
        update(learner, rank, _of_sizes(of_groups), steps=1)
        found[name] = list(made)
    return found


def odd_shares(rank: int, paths: dict[str, str]) -> dict[str, Any]:
    """What ranks with unequal shares end with: micro-batches, weights before and after, steps taken or skipped."""
    found: dict[str, Any] = passes(rank, paths, {"4 and 3": [8, 6], "1 and 0": [2]})
    spoilt = even_groups(4)
    spoilt[1].episodes[0].get_extra_model_outputs("turn")[0].action_logp[:] = np.nan
    engine = built(config_of(CASES["dense"], paths, num_learners=2, old_log_probs="engine", lr=1e-3))
    start = engine.get_state()["rl_module"]
    found["skipped"] = update(engine, rank, spoilt, steps=1)["num_optimizer_steps_skipped"]
    found["untouched"] = (start, engine.get_state()["rl_module"])
    found["taken"] = update(engine, rank, even_groups(4), steps=1)["num_optimizer_steps"]
    found["after"] = engine.get_state()["rl_module"]
    found["failed saves"] = [failed_save(engine, rank, where) for where in ("state", "policy")]
    found["still there"] = engine.get_state()["rl_module"]
    return found


def failed_save(learner: Any, rank: int, where: str) -> str:
    """What a rank raises where the first one's disk is full."""
    name = (
        "gspo_rllib.checkpoints.components.write_tree"
        if where == "state"
        else "gspo_rllib.modules.share_files.write_weights"
    )
    full = OSError("no space left on device")
    with tempfile.TemporaryDirectory() as folder, mock.patch(name, side_effect=full if rank == 0 else None):
        try:
            save_component(learner, pathlib.Path(folder, "saved"))
        except OSError as error:
            return str(error)
    return "nothing"


def _of_sizes(sizes: list[int]) -> list[TrajectoryGroup]:
    """Groups of so many trajectories each, two of which fill a row, with different returns."""
    episodes = [
        make_episode(f"g{number}", i, [(20, 8)], float(i % 2) + 0.1 * number) for number, size in enumerate(sizes)
        for i in range(size)
    ]  # fmt: skip
    return group_episodes(episodes)


def restored(rank: int | None, paths: dict[str, str], folder: str) -> dict[str, Any]:
    """A new learner with a saved state, as it is, and after one more iteration."""
    learner = built(config_of(CASES["dense"], paths, num_learners=num_ranks(rank)))
    restore_component(learner, pathlib.Path(folder))
    at_once = learner.get_state()
    update(learner, rank, even_groups(4), seed=ITERATIONS)
    return {"restored": at_once, "later": learner.get_state()}


def saving_and_restoring(rank: int, paths: dict[str, str], folder: str) -> dict[str, float]:
    """MB by which a rank grows at most while its state is written and read, and what it holds."""
    return_large_blocks()
    learner = built(config_of(CASES["dense"], paths, num_learners=num_ranks(rank), old_log_probs="engine"))
    update(learner, rank, even_groups(4), steps=1)
    for parameter in module_of(learner).parameters():
        parameter.grad = None
    own = pathlib.Path(folder, "saved" if learner.gives_state else "nowhere")
    with OwnMemory() as saving:
        save_component(learner, own)
    torch.distributed.barrier()
    with OwnMemory() as restoring:
        restore_component(learner, pathlib.Path(folder, "saved"))
    return {"saving": saving.grown, "restoring": restoring.grown, "held": held_bytes(learner) / 1e6}


def more_ranks(rank: int, paths: dict[str, str], saved: str, folder: str) -> dict[str, Any]:
    """What more than two ranks train, with how many passes, and what they make of what two saved."""
    names = ["dense", "tied", "mixture of experts", "adapter", "reference"][: 5 if num_ranks(rank) == 3 else 1]
    return {
        "trained": train_all(rank, names, paths, folder),
        "passes": passes(rank, paths, {"4, 3 and 0": [8, 6], "1 and 0": [2]}),
        "restored": restored(rank, paths, saved),
    }
