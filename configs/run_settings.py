"""Every knob of a run, once: when ``gspo-rllib train`` stops and what it saves."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, ClassVar

from gspo_rllib.errors import SettingError
from gspo_rllib.knobs import Settings, check, knob, settings_dataclass
from gspo_rllib.value_forms import folder_name

TRACKERS = ("wandb", "mlflow")
"""What ``run.trackers`` may name."""

ON_COLLAPSE = ("stop", "restore")
"""What ``run.on_collapse`` may ask for."""


def tracker_settings(value: Any) -> str | None:
    """Trackers by name, each with the arguments of its callback.

    Example:
        >>> tracker_settings({"wandb": {"project": "mine"}, "mlflow": None})
        >>> tracker_settings({"wandb": {"api_key": "x"}})
        'no key or token, which would be written into run.json: set WANDB_API_KEY or MLFLOW_TRACKING_TOKEN instead'
        >>> tracker_settings({"wandb": {"upload_checkpoints": True}})
        'metrics only: run.checkpoint_storage copies checkpoints, so leave upload_checkpoints out'
    """
    if not set(value) <= set(TRACKERS) or not all(given is None or isinstance(given, dict) for given in value.values()):
        return "a mapping of wandb or mlflow to the arguments of Ray Tune's callback, e.g. {wandb: {project: mine}}"
    for given in value.values():
        for key in sorted({"upload_checkpoints", "save_checkpoints"} & set(given or ())):
            return f"metrics only: run.checkpoint_storage copies checkpoints, so leave {key} out"
    if any({"api_key", "api_key_file", "tracking_token"} & set(given or ()) for given in value.values()):
        return (
            "no key or token, which would be written into run.json: set WANDB_API_KEY or MLFLOW_TRACKING_TOKEN instead"
        )
    return None


@settings_dataclass
class RunSettings(Settings):
    """The ``run:`` section: when ``gspo-rllib train`` stops, and what it saves. The first limit reached stops it."""

    SECTION: ClassVar[str] = "run"

    algorithm: str = knob(
        "GSPO",
        "What trains, by its registered name; its config has the builders that the sections call.",
        source="ours",
    )
    name: str | None = knob(
        None,
        "Leading part of the results folder's name; None takes the config's file name.",
        form=folder_name,
        source="ours",
    )
    storage: str = knob("results", "Folder that results are written under.", source="ours")
    iterations: int | None = knob(
        None, "Stop after this many; None for no limit.", unit="iterations", low=1, source="ours"
    )
    minutes: float | None = knob(
        None,
        "Stop when this much wall time has passed since the first iteration began; None for no limit.",
        unit="minutes",
        low=0.0,
        low_open=True,
        source="ours",
    )
    success: float | None = knob(
        None,
        "Stop when this share of the trajectories succeeded: of an evaluation's where the run evaluates, of an "
        "iteration's own otherwise; None for never.",
        low=0.0,
        high=1.0,
        low_open=True,
        source="ours",
    )
    evaluate_every: int | None = knob(
        None,
        "Iterations between evaluations on a fixed set of tasks, none of them drawn for training. Where set, they and "
        "not the iterations' own tasks, which differ from one to the next, are what progress, early stopping and the "
        "best checkpoint go by. None: no evaluation, unless the evaluation section asks for it.",
        unit="iterations",
        low=1,
        source="ours",
    )
    evaluate_tasks: int | str = knob(
        128,
        "How many tasks that set has; each is played once. 'all' where the environment counts them.",
        unit="tasks",
        low=1,
        source="ours",
    )
    on_collapse: str | None = knob(
        None,
        "What happens when an evaluation is below half of the best one, and that is no matter of luck: None says so, "
        "stop ends the run, restore goes back to the best checkpoint, with half the learning rate.",
        choices=(None, *ON_COLLAPSE),
        source="ours",
    )
    give_up_after: int | None = knob(
        None,
        "Stop after this many consecutive iterations that had nothing to learn from; None goes on.",
        unit="iterations",
        low=1,
        source="ours",
    )
    checkpoint_every: int | None = knob(
        10,
        "Iterations between checkpoints; one is always written at the end. None: only that one.",
        unit="iterations",
        low=1,
        source="ours",
    )
    max_failed_saves: int = knob(
        3,
        "End the run when this many saves in a row have failed, as on a full disk; before that training goes on, and "
        "the next save tries again.",
        unit="saves",
        low=1,
        source="ours",
    )
    keep_checkpoints: int | None = knob(
        None,
        "How many of the checkpoints of checkpoint_every are kept, the newest among them; older ones are deleted once "
        "a newer one is whole. None keeps all. The best evaluation's is kept anyway.",
        unit="checkpoints",
        low=1,
        source="ours",
    )
    keep_by: str = knob(
        "newest",
        "Which those are: the newest ones, or beside the newest those with the highest score, which is success or "
        "return of the latest evaluation, or of the iteration's own trajectories where the run does not evaluate.",
        choices=("newest", "score"),
        source="ours",
    )
    checkpoint_storage: str | None = knob(
        None,
        "Where every checkpoint is also copied to, by a URI that pyarrow or fsspec opens (s3://, gs://, ...), below "
        "the name of the run's folder; verified by hash, committed by a marker. --resume takes one from there.",
        source="ours",
    )
    trackers: dict[str, Any] = knob(
        {},
        "Weights & Biases (wandb) and MLflow (mlflow) to follow the run, each with what Ray Tune's callback of that "
        "name takes, e.g. {wandb: {project: mine, mode: offline}}.",
        form=tracker_settings,
        source="ours",
    )
    record_groups: bool = knob(
        False,
        "Write every group that is sampled to groups.jsonl in the results folder; see gspo_rllib.load_groups.",
        source="ours",
    )

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            self._check(field, hints[field.name])
        if self.on_collapse is not None and self.evaluate_every is None:
            raise SettingError(
                f"run.on_collapse: {self.on_collapse!r} needs evaluations to see a collapse, and the checkpoint of the "
                "best one; set run.evaluate_every, e.g. 5."
            )

    def _check(self, field: dataclasses.Field[Any], hint: Any) -> None:
        value = getattr(self, field.name)
        if field.name == "evaluate_tasks" and value == "all":
            return
        numbers = {int, float} & {hint, *typing.get_args(hint)}
        try:
            check(f"run.{field.name}", value, hint, field.metadata)
            if isinstance(value, str) and (numbers or not value.strip()):
                raise SettingError("text instead of a number, or none")
        except SettingError as error:
            if field.metadata["choices"] is not None or isinstance(value, dict):
                raise
            expected = "true or false" if hint is bool else "a mapping" if field.name == "trackers" else "text"
            if field.metadata["form"] is folder_name and isinstance(value, str):
                expected = folder_name(value) or expected
            if numbers:
                expected = "a number > 0" if float in numbers else "a whole number >= 1"
            if field.metadata["high"] is not None:
                expected = "a share in (0, 1]"
            raise SettingError(f"run.{field.name}: expected {expected}, got {value!r}.") from error
