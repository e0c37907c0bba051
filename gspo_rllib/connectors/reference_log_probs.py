"""Learner connector piece: scores every sampled token under a frozen reference policy."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib import columns
from gspo_rllib.connectors.scoring import score
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.modules.sharding import is_sharded, mesh_of
from gspo_rllib.modules.shares import loaded_as_shares
from gspo_rllib.types import TokenTrajectory


class ReferenceLogProbs(ConnectorV2):
    """Fills in ``reference_logp``.

    The reference is a second copy for inference only, or the policy itself with its adapter off. The copy lives here
    and not among the learner's modules, because ``DistributedDataParallel`` refuses a module without a parameter to
    train.

    Args:
        model_config: The policy's model settings, with the ``path`` of the reference; None for the model below the
            policy's adapter, which needs no copy.
        max_tokens: Token budget of one forward pass.
    """

    def __init__(self, *args: Any, model_config: dict[str, Any] | None, max_tokens: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # The module has no use for its spaces, but RLlib wants them.
        text = gym.spaces.Text(1)
        self._spec = RLModuleSpec(
            module_class=CausalLMModule, observation_space=text, action_space=text, model_config=model_config or {}
        )
        self._is_base = model_config is None
        self._max_tokens = max_tokens
        self._reference: CausalLMModule | None = None

    def __call__(
        self,
        *,
        rl_module: RLModule,
        batch: dict[str, Any],
        episodes: list[SingleAgentEpisode],
        explore: bool | None = None,
        shared_data: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See ``ConnectorV2``."""
        trajectories: list[TokenTrajectory] = batch[DEFAULT_MODULE_ID][columns.TRAJECTORIES]
        policy = rl_module[DEFAULT_MODULE_ID].unwrapped()
        device = next(policy.parameters()).device
        reference = policy if self._is_base else self._load(policy)
        with policy.adapter.off() if self._is_base else contextlib.nullcontext():
            scores = score(
                trajectories,
                lambda row: reference._forward(row)[columns.LOGP],
                max_tokens=self._max_tokens,
                device=device,
                sharing=reference.prefix_sharing(),
                module=reference,
            )
        for i, logp_L in enumerate(scores):
            trajectories[i] = dataclasses.replace(trajectories[i], reference_logp=logp_L)
        return batch

    def files(self, policy: CausalLMModule) -> dict[str, bytes]:
        """The reference as the files of a Hugging Face folder, for a checkpoint; none for the policy's own base.

        Args:
            policy: What is trained; where it is sharded, so is the reference, and the first learner has the files.
        """
        if self._is_base:
            return {}
        with tempfile.TemporaryDirectory() as temporary:
            self._load(policy).write_folder(temporary)
            folder = pathlib.Path(temporary)
            return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}

    def _load(self, policy: CausalLMModule) -> CausalLMModule:
        device = next(policy.parameters()).device
        if self._reference is None:
            # Loading it must not move the random state that decides the run.
            with torch.random.fork_rng(), loaded_as_shares(mesh_of(policy)):
                reference = self._spec.build()
            reference.eval().requires_grad_(False)
            if is_sharded(policy):
                reference.shard(device)
            self._reference = reference
        return self._reference if is_sharded(self._reference) else self._reference.to(device)
