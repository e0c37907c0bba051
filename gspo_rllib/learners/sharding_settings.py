"""The knob of ``.learners(...)`` that RLlib has not: default, range, unit, effect and source."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from gspo_rllib.knobs import Settings, knob, settings_dataclass

SHARDINGS = ("none", "fsdp2")
"""Values of ``sharding``; the second is torch's ``fully_shard``."""


@settings_dataclass
class LearnersSettings(Settings):
    """What ``.learners(...)`` takes beside RLlib's."""

    SECTION: ClassVar[str] = "learners"

    sharding: Literal["none", "fsdp2"] = knob(
        "none",
        "What each of several learners holds. 'none': all of the model (torch's DistributedDataParallel). 'fsdp2': its "
        "share of weights, gradients, optimiser state and reference policy, and one layer at a time while it runs.",
        choices=SHARDINGS,
        source="ours: RLlib's own way",
    )


def shards(config: Any) -> bool:
    """Whether the learners of a config share one copy of the model; not those of a config from before the setting."""
    return bool(getattr(config, "sharding", SHARDINGS[0]) != SHARDINGS[0])
