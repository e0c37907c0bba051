"""One bad input: what is done, and the sentence that answers it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gspo_rllib.algorithms import GSPOConfig

CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        name: What is wrong, for people.
        act: Gives it, in an empty folder, to the library; is handed the path of a small model.
        said: The error's text; "…" stands for words of Python, the system or another library, "{model}" for the model.
        argv: The command line that is given it, in place of ``act``.
    """

    name: str
    said: str
    act: Callable[[str], Any] | None = None
    argv: tuple[str, ...] = ()

    def matches(self, text: str, model: str) -> bool:
        """Whether an error's text is the expected one, from the first word to the last."""
        parts = self.said.replace("{model}", model).split("…")
        return re.fullmatch(".*".join(map(re.escape, parts)), text, re.DOTALL) is not None


def config(model: str) -> GSPOConfig:
    """A config that could be trained."""
    return (
        GSPOConfig()
        .environment(CALCULATOR, env_config={"operations": 1})
        .rl_module(model_config={"path": model})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .env_runners(num_env_runners=0)
        .training(group_size=2, groups_per_iteration=4)
    )


def write_run(model: str) -> None:
    """``run.yaml`` of a run that could be trained, in the current folder."""
    sections = {
        "environment": {"env": CALCULATOR, "env_config": {"operations": 1}},
        "rl_module": {"model_config": {"path": model}},
        "generation": {"engine": "transformers", "max_tokens_per_turn": 8},
        "env_runners": {"num_env_runners": 0},
        "training": {"group_size": 2, "groups_per_iteration": 4},
        "run": {"iterations": 1},
    }
    Path("run.yaml").write_text(yaml.safe_dump(sections))


def setting(place: str, value: Any, allowed: str) -> Case:
    """A value of ``section.name`` that is refused with what is allowed; by its builder, then by validation."""
    section, _, name = place.partition(".")

    def act(model: str) -> None:
        changed = config(model)
        getattr(changed, section)(**{name: value})
        changed.validate()

    return Case(f"{place}={value!r:.60}", f"{place} is …; allowed: {allowed}", act)


def settings(allowed: str, **values: list[Any]) -> list[Case]:
    """Several values of several settings, of which the same is allowed; ``section__name=[value, …]``."""
    return [setting(place.replace("__", "."), value, allowed) for place, given in values.items() for value in given]


def built(name: str, change: Callable[[GSPOConfig], Any], said: str) -> Case:
    """A change of a config that is refused."""

    def act(model: str) -> None:
        changed = config(model)
        change(changed)
        changed.validate()

    return Case(name, said, act)


def command(line: str, said: str) -> Case:
    """A command line that is refused; arguments are separated by spaces, "''" is an empty one."""
    argv = tuple("" if word == "''" else word for word in line.split(" "))
    return Case(line[:80], said, argv=argv)
