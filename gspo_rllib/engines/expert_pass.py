"""The part of the transformers engine that tells which experts its own forward pass sends tokens to.

Shapes:  L sampled tokens of a trajectory · K experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gspo_rllib.engines.slot_cache import SlotCache
from gspo_rllib.modules.routing import experts_noted
from gspo_rllib.types import TokenTrajectory


class TellsExperts:
    """What the engine does to compare itself with a learner; other engines keep their experts to themselves."""

    _device: torch.device
    _rows: int
    _model: PreTrainedModel | None
    _logits: Callable[[SlotCache, list[int], list[int], list[tuple[int, int, int]]], Tensor]

    @torch.inference_mode()
    def experts(self, trajectory: TokenTrajectory) -> list[Tensor]:
        """The experts of the tokens that predict a trajectory's sampled tokens, with the weights that the engine has.

        Args:
            trajectory: With at least one sampled token.

        Returns:
            Per layer [L, K] on the CPU, each token's in ascending order.

        Raises:
            SettingError: The model has none.
        """
        assert self._model is not None, "a closed engine is not asked"
        per_segment = []
        for ids, mask in zip(trajectory.segments, trajectory.loss_masks, strict=True):
            # Beside the cache of what is being sampled.
            cache = SlotCache(self._device, self._model.dtype, 1, len(ids), self._rows)
            cache.reserve(1, len(ids))
            with experts_noted(self._model) as noted:
                self._logits(cache, ids.tolist(), [len(ids) - 1], [(0, 0, len(ids))])
            before = torch.as_tensor(mask.nonzero()[0] - 1)
            per_segment.append([layer[0].cpu()[before].sort(dim=-1).values for layer in noted])
        return [torch.cat(layer) for layer in zip(*per_segment, strict=True)]
