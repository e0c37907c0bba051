"""Every bad input is one sentence before the first actor: what was got, what is allowed, what to do; exit code 2."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray

from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.policy_gradient import rllib_checks
from gspo_rllib.algorithms.policy_gradient.rllib_settings import RLLIB_SETTINGS
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.cli.main import main
from gspo_rllib.env_pool import trial
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import GSPOError
from tests.bad_input.case import Case, config, write_run
from tests.bad_input.of_commands import COMMANDS
from tests.bad_input.of_environments import ENVIRONMENTS, Good
from tests.bad_input.of_models import MODELS
from tests.bad_input.of_rllib import RLLIBS
from tests.bad_input.of_settings import OURS

CASES = [*OURS, *RLLIBS, *MODELS, *ENVIRONMENTS, *COMMANDS]
LONGEST_S = 5.0


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where whatever is left behind is seen; and no Ray is started."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ray is started, so an actor would have been next")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", start)


def _spent() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.encode("ascii", "replace").decode())
def test_bad_input_is_one_sentence(case: Case, tiny_dense: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tiny_dense)
    started, before = _spent(), sorted(os.listdir())
    if case.act is None:
        try:
            code = main(case.argv)
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        said = capsys.readouterr().err.strip()
        assert code == 2
        assert said.startswith("gspo-rllib")
        said = said.partition(": ")[2]
    else:
        with pytest.raises(GSPOError) as caught:
            case.act(tiny_dense)
        said = str(caught.value)
    assert case.matches(said, tiny_dense), said
    assert "\n" not in said and "Traceback" not in said
    assert _spent() - started < LONGEST_S
    assert sorted(os.listdir()) == before


class _Odd:
    """An object whose words cannot be had."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


NEVER = (_Odd(), {1, 2}, float("nan"), -(10**40), np.array([1, 2]))
"""What no setting is, whatever it is about."""

KINDS = {"training": TrainingSettings, "generation": GenerationSettings, "agent": AgentSettings}
OWN = [(section, field.name) for section, kind in KINDS.items() for field in dataclasses.fields(kind)]
RLLIB = [name for name, row in RLLIB_SETTINGS.items() if row.fate in ("used", "forwarded") and row.builder]


def _is_refused(place: str, value: object, change: Callable[[GSPOConfig], object], model: str) -> None:
    changed = config(model)

    def give() -> None:
        change(changed)
        changed.validate()

    with pytest.raises(GSPOError) as caught:
        give()
    said = str(caught.value)
    assert place.partition(".")[2] in said or place.partition(".")[0] in said
    assert "\n" not in said and len(said) < 1000


@pytest.mark.parametrize(("section", "name"), OWN, ids=".".join)
def test_no_setting_of_ours_takes_what_no_setting_is(section: str, name: str, tiny_dense: str) -> None:
    for value in NEVER:
        _is_refused(f"{section}.{name}", value, lambda c, v=value: getattr(c, section)(**{name: v}), tiny_dense)


@pytest.mark.parametrize("name", RLLIB)
def test_no_setting_of_rllibs_takes_what_no_setting_is(name: str, tiny_dense: str) -> None:
    for value in NEVER:
        _is_refused(rllib_checks.argument(name), value, lambda c, v=value: setattr(c, name, v), tiny_dense)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("group_size", np.int64(4), 4),
        ("lr", np.float32(0.5), 0.5),
        ("lr", np.float64(0.5), 0.5),
        ("undo_overshoot", np.bool_(False), False),
        ("clip_scaling", np.str_("none"), "none"),
        ("num_env_runners", np.int32(2), 2),
        ("seed", np.uint32(7), 7),
        ("explore", np.bool_(True), True),
    ],
)
def test_a_scalar_of_numpys_is_the_number_it_is(name: str, value: object, kept: object, tiny_dense: str) -> None:
    changed = config(tiny_dense)
    setattr(changed, name, value)
    changed.validate()
    assert getattr(changed, name) == kept
    assert type(getattr(changed, name)) is type(kept)


def test_an_environment_that_hangs_when_it_is_closed_holds_nobody_up(
    tiny_dense: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(trial, "CLOSE_S", 0.1)
    for close, said in (
        (released.wait, "has not returned within 0.1 seconds"),
        (_interrupt, "raises KeyboardInterrupt"),
    ):
        kind = type("Closing", (Good,), {"close": lambda self, close=close: close()})
        changed = config(tiny_dense)
        changed.env_config = {}
        changed.environment(kind).validate()
        assert said in caplog.text
    released.set()


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_there_are_cases_of_every_kind_and_each_is_one() -> None:
    assert len(CASES) >= 250
    assert min(map(len, (OURS, RLLIBS, MODELS, ENVIRONMENTS, COMMANDS))) >= 20
    assert all((case.act is None) != (not case.argv) and case.said for case in CASES)
