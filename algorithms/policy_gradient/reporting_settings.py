"""The knob of ``.reporting(...)`` that RLlib has not: default, range, unit, effect and source."""

from __future__ import annotations

from typing import ClassVar

from gspo_rllib.knobs import Settings, knob, settings_dataclass


@settings_dataclass
class ReportingSettings(Settings):
    """What ``.reporting(...)`` takes beside RLlib's."""

    SECTION: ClassVar[str] = "reporting"

    keep_trajectories: int = knob(
        8,
        "Trajectories of every iteration that are kept for `gspo-rllib view`, in trajectories/ of the results folder: "
        "whole groups, drawn by name, as many as fit; of a larger group its first members. 0 keeps none.",
        unit="trajectories",
        low=0,
        high=10_000,
        source="ours",
    )
