"""The runs that ``tests/golden/calculator_run.json`` records. As a program this file plays them and writes a recording.

    OMP_NUM_THREADS=1 python -m tests.recorded_runs --commit "$(git rev-parse HEAD)" > tests/golden/calculator_run.json

Record again only where other numbers are meant to come out, and say so in the commit.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import platform
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
import transformers
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from gspo_rllib import GSPOConfig
from gspo_rllib.types import GROUP, turns
from gspo_rllib.warmstart import models

ITERATIONS = 3
GROUPS = 2
MEMBERS = 6
LAST_OLD = 2
"""Index of the last trajectory of a group that is sampled before the weights change, in a run that overlaps."""

SETTINGS: dict[str, dict[str, Any]] = {
    "environment": {"env": "gspo_rllib.envs:gspo_rllib/Calculator-v0", "env_config": {"operations": 1}},
    "generation": {"engine": "transformers", "max_tokens_per_turn": 6},
    "training": {
        "group_size": MEMBERS,
        "groups_per_iteration": GROUPS,
        "num_minibatches": 2,
        "clip_low": 0.03,
        "clip_high": 0.04,
        # With an epsilon above most gradients a step is nearly proportional to the gradient, where Adam's usual one is
        # its sign: float noise stays float noise in the weights, and a gradient of another size moves them elsewhere.
        "lr": 2e-3,
        "adam_epsilon": 1e-2,
        # Few replies are right, but lengths differ: this gives every group something to learn from.
        "overlong_tokens": 16,
        "overlong_buffer": 16,
    },
    # Found by trying: with it some replies of every recording are right, and all tokens but one are drawn further than
    # 2e-4 of probability (that one 5e-6) from where they would be another: no processor rounds that far.
    "debugging": {"seed": 25},
}
"""What the numbers of every run depend on."""

OFF_POLICY = {"rollout_correction": "truncate", "rollout_correction_level": "sequence_mean"}
"""Training settings of the runs that overlap, beside these."""

RUNS: dict[str, tuple[str, dict[str, int]]] = {
    "synchronous": ("synchronous", {"max_staleness": 0, "num_env_runners": 0}),
    "synchronous, two runners": ("synchronous", {"max_staleness": 0, "num_env_runners": 2}),
    "overlapped": ("overlapped", {"max_staleness": 1, "num_env_runners": 0}),
    "overlapped, two runners": ("overlapped, two runners", {"max_staleness": 1, "num_env_runners": 2}),
}
"""Name -> which recording it must give again, and the arguments of ``play``."""

WAIT_S = 120.0
"""Longest that sampling and learning wait for each other in a run that overlaps, before one of them says why."""


def build_policy(folder: str | pathlib.Path) -> str:
    """A policy that plays Calculator badly but not hopelessly, without training: a Markov chain over a few tokens.

    Its replies are "answer 3", "3+4" and the like, whatever was asked, so rewards, lengths and turns differ. The rest
    of the model is random: what came before the last token shifts the odds, and every weight has a gradient.
    """
    sizes = {"hidden_size": 64, "num_layers": 2, "intermediate_size": 128, "max_position_embeddings": 512}
    path = models.build_model(folder, texts=("answer",), **sizes, initializer_range=0.12, seed=7)
    newline, space = "\u010a", "\u0120"  # as the byte-level vocabulary spells them
    digits = dict.fromkeys("1234", 1.0)
    successors = {
        newline: {"answer": 1.0, **digits},
        "answer": {space: 1.0},
        **{token: digits for token in (space, "+", "-")},
        **{token: {models.END_OF_MESSAGE: 1.1, "+": 1.0, "-": 1.0} for token in digits},
    }
    id_of = AutoTokenizer.from_pretrained(path).convert_tokens_to_ids
    weights = load_file(path / "model.safetensors")
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    embedding /= embedding.std()
    # Rows of the embedding are nearly orthogonal, so the head's row of a token can add up those it follows.
    for token, following in successors.items():
        for successor, weight in following.items():
            head[id_of(successor)] += embedding[id_of(token)] * (16.0 * weight / sizes["hidden_size"])
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return str(path)


class RunnerRecord:
    """What one env runner has played, and how far it may go.

    Attributes:
        trajectories: What was sampled, by "group/index".
        released: Groups from this number on are held up in their middle.
        held: The group that was held up last; -1 before the first.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.trajectories: dict[str, Any] = {}
        self.released = sys.maxsize
        self.held = -1

    def add(self, episode: SingleAgentEpisode) -> None:
        """Notes a trajectory; if it is the one before the middle of its group, returns once the group is released."""
        member = episode.custom_data[GROUP]
        group = int(member.group_id)
        with self.changed:
            self.trajectories[f"{group}/{member.index}"] = _described(episode)
            if member.index == LAST_OLD and group >= self.released:
                self.held = group
                self.changed.notify_all()
                self._wait(lambda: group < self.released, f"group {group} was not released")

    def release(self, below: int) -> None:
        """Lets groups below this number be played to their end."""
        with self.changed:
            self.released = below
            self.changed.notify_all()

    def wait_until_held(self) -> bool:
        """Returns True once a group that is not released is held up."""
        with self.changed:
            self._wait(lambda: self.held >= self.released, f"no group from {self.released} on came to its middle")
        return True

    def _wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        if not self.changed.wait_for(condition, WAIT_S):
            raise TimeoutError(f"{otherwise} within {WAIT_S:g} s; played until then: {list(self.trajectories)}.")


class RecordTrajectories(RLlibCallback):
    """Notes what is sampled, where it is sampled."""

    def on_episode_end(self, *, episode: SingleAgentEpisode, env_runner: Any, **kwargs: Any) -> None:
        _record_of(env_runner).add(episode)


def play(policy: str, *, max_staleness: int, num_env_runners: int) -> dict[str, Any]:
    """One run of three iterations.

    When a runner that samples beside the learner takes up weights, and which groups are finished first, is a matter of
    time. Here it is not: each runner plays one trajectory at a time, and stops in the middle of its first group that is
    the next iteration's, until the weights of this iteration have been offered; and no update begins before every
    runner has come that far. So the first half of such a group has the old weights, the second half and what follows
    the new ones, and an iteration finds no groups finished but its own.

    Args:
        policy: Folder of the model.
        max_staleness: 0 to sample and learn in turns, 1 to do both at once.
        num_env_runners: Runners in processes of their own; 0 for the one in this process.

    Returns:
        ``trajectories``: What was sampled for these iterations, by "group/index".
        ``iterations``: What the learner measured in each.
        ``update``: By how much every weight changed in all of them.
    """
    overlaps = max_staleness > 0
    config = (
        GSPOConfig()
        .environment(**SETTINGS["environment"])
        .rl_module(model_config={"path": policy})
        .generation(**SETTINGS["generation"])
        # 4 slots are no multiple of a group's 6 trajectories, so in the engine groups mix.
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=1 if overlaps else 4)
        .learners(num_learners=0)
        .training(**SETTINGS["training"], **(OFF_POLICY if overlaps else {}), max_staleness=max_staleness)
        .debugging(**SETTINGS["debugging"])
        .callbacks(RecordTrajectories)
    )
    algo = config.build_algo()

    def each_runner(function: Callable[[Any], Any]) -> list[Any]:
        answers: list[Any] = algo.env_runner_group.foreach_env_runner(function, local_env_runner=not num_env_runners)
        assert len(answers) == max(1, num_env_runners)
        return answers

    def release(below: int) -> None:
        # A runner gets this after all that it was sent before: new groups, and weights.
        each_runner(lambda runner: _record_of(runner).release(below))

    try:
        before = _parameters(algo)
        if overlaps:
            update = algo.learner_group.update

            def held_update(**kwargs: Any) -> Any:
                each_runner(lambda runner: _record_of(runner).wait_until_held())
                return update(**kwargs)

            algo.learner_group.update = held_update
        results = []
        for iteration in range(ITERATIONS):
            if overlaps:
                release((iteration + 1) * GROUPS)
            results.append(algo.train())
        after = _parameters(algo)
        played = each_runner(lambda runner: _record_of(runner).trajectories)
    finally:
        try:
            release(sys.maxsize)  # what is held up cannot be stopped
        finally:
            algo.stop()
    sampled = {name: trajectory for part in played for name, trajectory in part.items()}
    names = [f"{group}/{index}" for group in range(ITERATIONS * GROUPS) for index in range(MEMBERS)]
    return {
        "trajectories": {name: sampled[name] for name in names if name in sampled},
        "iterations": [_measured(result) for result in results],
        "update": {name: after[name] - before[name] for name in before},
    }


def digest(update: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Of the change of every tensor: its norm, the sum of its entries, and the three largest by their flat index."""
    rows = {}
    for name, change in update.items():
        flat = change.astype(np.float64).ravel()
        largest = np.argsort(-np.abs(flat), kind="stable")[:3].tolist()
        rows[name] = {
            "norm": float(np.linalg.norm(flat)),
            "sum": float(flat.sum()),
            "entries": {str(index): float(flat[index]) for index in largest},
        }
    return rows


def record(commit: str) -> dict[str, Any]:
    """A new recording, of the code as it is.

    Args:
        commit: Names that code.
    """
    recordings: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(folder)
        for recording, how in RUNS.values():
            if recording not in recordings:
                played = play(policy, **how)
                recordings[recording] = {**played, "update": digest(played["update"])}
    return {
        "provenance": {
            "commit": commit,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "ray": ray.__version__,
            "processor": torch.backends.cpu.get_cpu_capability(),
        },
        "settings": {**SETTINGS, "off_policy": OFF_POLICY, "iterations": ITERATIONS},
        "recordings": recordings,
    }


def _record_of(env_runner: Any) -> RunnerRecord:
    record: RunnerRecord = vars(env_runner).setdefault("record", RunnerRecord())
    return record


def _described(episode: SingleAgentEpisode) -> dict[str, Any]:
    return {
        "turns": [
            {
                "policy_version": turn.policy_version,
                "prompt_crc32": zlib.crc32(np.asarray(turn.prompt_token_ids, dtype=np.int32).tobytes()),
                "ids": np.asarray(turn.action_token_ids).tolist(),
                "reward": float(reward),
            }
            for turn, reward in zip(turns(episode), episode.get_rewards(), strict=True)
        ],
        "truncated": bool(episode.is_truncated),
    }


def _measured(result: dict[str, Any]) -> dict[str, float]:
    learner = result["learners"][DEFAULT_MODULE_ID]
    return {name: float(learner[name]) for name in ("num_trajectories", "staleness", "clip_fraction", "grad_norm")}


def _parameters(algo: Any) -> dict[str, np.ndarray]:
    state = algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]
    return {name: np.array(array) for name, array in state.items()}


def _to_json(value: Any, levels: int, indent: str = "") -> str:
    """JSON with one line for every item of the outer levels, so that a changed recording can be read as a diff."""
    if not levels or not isinstance(value, dict):
        return json.dumps(value)
    inner = indent + " "
    items = ",\n".join(f"{inner}{json.dumps(key)}: {_to_json(item, levels - 1, inner)}" for key, item in value.items())
    return f"{{\n{items}\n{indent}}}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Plays the runs and prints a recording.")
    parser.add_argument("--commit", required=True, help="what the code that is recorded is called")
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    print(_to_json(record(arguments.commit), levels=4))
