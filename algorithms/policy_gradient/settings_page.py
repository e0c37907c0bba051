"""Writes ``docs/settings.md`` from the tables that the code reads; run it after changing one.

``python -m gspo_rllib.algorithms.policy_gradient.settings_page > docs/settings.md``
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
import typing
from collections.abc import Iterator
from typing import Any

from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.policy_gradient.reporting_settings import ReportingSettings
from gspo_rllib.algorithms.policy_gradient.rllib_checks import allowed, argument
from gspo_rllib.algorithms.policy_gradient.rllib_settings import RLLIB_SETTINGS
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import shown
from gspo_rllib.knobs import Settings, allowed_text, default_of
from gspo_rllib.learners.sharding_settings import LearnersSettings

_INTRODUCTION = """\
# Settings

Every attribute of a config, and what becomes of it: first those of this package, then those of RLlib's
`AlgorithmConfig`. A setting may be given to its builder (`config.training(lr=1e-6)`), as an attribute
(`config.lr = 1e-6`), as a key of a dict (`update_from_dict`, a Ray Tune space, `evaluation_config`) or in YAML; what is
said here holds for all of them. A name that is none of these is refused.

This page is generated: `python -m gspo_rllib.algorithms.policy_gradient.settings_page > docs/settings.md`
"""

_OWN = """\
## Of this package

Defaults are those that all algorithms share; the README of each algorithm names its own.
"""

_RLLIB = """\
## Of RLlib

**used**: read here, or by the part of RLlib that runs here. **forwarded**: handed on as it is, to Ray, torch, the
environment or code of yours. **free**: any value is right. **refused**: another value than the default would be ignored
or break training, so it is an error when the algorithm is built; the last column says what to do instead.
*In an evaluation*: whether `evaluation_config` may set it. There, a setting that only training reads is refused; of
this package's, `group_size`, `generation` and `agent` are read.
"""


def settings_page() -> str:
    """The page's text."""
    lines = [_INTRODUCTION, _OWN]
    for builder, kind in {
        "training": PolicyGradientConfig.training_settings,
        "generation": GenerationSettings,
        "agent": AgentSettings,
        "reporting": ReportingSettings,
        "learners": LearnersSettings,
    }.items():
        lines += [f"### {builder}", "", *_own_rows(kind), ""]
    lines += [_RLLIB, *_rllib_rows()]
    return "\n".join(lines) + "\n"


def _own_rows(kind: type[Settings]) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    yield "| setting | default | allowed | effect |"
    yield "|---|---|---|---|"
    for field in dataclasses.fields(kind):
        allowed = allowed_text(hints[field.name], field.metadata)
        unit = f" Unit: {field.metadata['unit']}." if field.metadata["unit"] else ""
        yield _row(f"`{field.name}`", f"`{default_of(field)!r}`", allowed, field.metadata["effect"] + unit)


def _rllib_rows() -> Iterator[str]:
    defaults = vars(PolicyGradientConfig())
    own = {name for group in _groups() for name in group}
    yield "| setting | default | what happens | in an evaluation | effect, or what to do instead |"
    yield "|---|---|---|---|---|"
    for name, setting in sorted(RLLIB_SETTINGS.items(), key=lambda item: argument(item[0])):
        note = f"{setting.note} See above." if name in own else setting.note
        if setting.fate != "refused" and (words := allowed(setting, defaults[name])):
            note += f" Allowed: {words}."
        evaluates = "yes" if setting.evaluates else "no"
        yield _row(f"`{argument(name)}`", _default(defaults[name]), setting.fate, evaluates, note)


def _groups() -> Iterator[set[str]]:
    kinds = (GenerationSettings, AgentSettings, ReportingSettings, LearnersSettings)
    for kind in (PolicyGradientConfig.training_settings, *kinds):
        yield {field.name for field in dataclasses.fields(kind)}


def _default(value: Any) -> str:
    """A default that is the same in every process."""
    if isinstance(value, enum.Enum):
        return f"`{value}`"
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"`{value.__name__}`"
    return "a dict" if isinstance(value, dict) and value else f"`{shown(value)}`"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.stdout.write(settings_page())
