"""Every setting of a run, as it is declared where it lives: our knobs, and the arguments of RLlib's builders.

Nothing is written down here a second time: defaults, ranges, effects and sources are those of the settings classes
(``gspo_rllib.knobs``), and of RLlib's own signatures, docstrings and attributes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gspo_rllib.configs.run_settings import RunSettings
from gspo_rllib.configs.runs import BUILDERS, Run, accepted, type_name
from gspo_rllib.errors import SettingError, did_you_mean
from gspo_rllib.knobs import Settings, allowed_text, default_of

if TYPE_CHECKING:
    from gspo_rllib.algorithms import PolicyGradientConfig


@dataclass(frozen=True, slots=True)
class Declared:
    """One setting of a run.

    Attributes:
        name: Where a YAML file has it, e.g. ``"training.lr"``; deeper for what is in a mapping.
        default: The value where nobody sets one; ``Ellipsis`` where RLlib keeps none that could be read.
        allowed: What may be set, in words.
        effect: What it changes.
        unit: Unit of the value; "" for none.
        source: Where the default comes from: a paper, another library, RLlib, or this project.
    """

    name: str
    default: Any
    allowed: str
    effect: str
    unit: str
    source: str


def declared_settings(config: PolicyGradientConfig) -> list[Declared]:
    """Every setting that a YAML file may hold, section by section.

    Args:
        config: An unchanged config of the algorithm; its values are the defaults.
    """
    found = list(_of_settings(RunSettings, "run"))
    for section in BUILDERS:
        builder = getattr(config, section)
        ours = getattr(builder, "settings", None)
        known = list(_of_settings(ours, section)) if ours is not None else []
        names = {setting.name for setting in known}
        rest = [one for one in _of_builder(config, section, builder) if one.name not in names]
        found += [*known, *rest]
    return found


def settings_within() -> list[Declared]:
    """The keys of the one setting that is a mapping itself, or None: those of LoRA."""
    from gspo_rllib.modules.lora_settings import LoraSettings

    return list(_of_settings(LoraSettings, f"rl_module.{_MAPPING}.lora"))


def resolved(run: Run) -> dict[str, Any]:
    """The value of every setting of a run, defaults included, by its name in a YAML file."""
    values: dict[str, Any] = {}
    for setting in declared_settings(run.config.algo_class.get_default_config()):
        section, _, key = setting.name.partition(".")
        if section == "run":
            value = getattr(run.settings, key)
        elif "." in key:
            mapping, _, inner = key.partition(".")
            value = (getattr(run.config, f"_{mapping}") or {}).get(inner, setting.default)
        else:
            value = _attribute(run.config, key)
        values[setting.name] = run.sections.get(section, {}).get(key) if value is ... else value
    return values


def given(run: Run) -> list[str]:
    """Names of the settings that the file or the command line sets; those of a mapping's parts for ``model_config``."""
    names = []
    for section, arguments in run.sections.items():
        for key, value in arguments.items():
            if key == _MAPPING and isinstance(value, dict):
                names += [f"{section}.{key}.{inner}" for inner in value]
            else:
                names.append(f"{section}.{key}")
    return names


def matching(settings: Iterable[Declared], pattern: str) -> list[Declared]:
    """The settings whose name holds a text, else those whose effect does, whatever its case; ``*`` is any text.

    Raises:
        SettingError: There is none.
    """
    settings = list(settings)
    expression = re.compile(re.escape(pattern).replace(r"\*", ".*"), re.IGNORECASE)
    found = [setting for setting in settings if expression.search(setting.name)]
    found = found or [setting for setting in settings if expression.search(setting.effect)]
    if not found:
        words = {setting.name.rpartition(".")[2] for setting in settings}
        near = did_you_mean(pattern.rpartition(".")[2], words)
        hint = near if near.startswith("Did") else "`gspo-rllib settings` prints all of them."
        raise SettingError(f"no setting is called anything like {pattern!r}. {hint}")
    return found


_MAPPING = "model_config"
"""The one argument that is a mapping with declared keys."""


def _of_settings(settings: type[Settings], section: str) -> Iterator[Declared]:
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        meta = field.metadata
        allowed = allowed_text(hints[field.name], meta)
        yield Declared(
            f"{section}.{field.name}", default_of(field), allowed, meta["effect"], meta["unit"], meta["source"]
        )


def _of_builder(config: PolicyGradientConfig, section: str, builder: Any) -> Iterator[Declared]:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    from gspo_rllib.algorithms.policy_gradient.rllib_checks import said_of

    rllib, documented = AlgorithmConfig(), _documented(inspect.getdoc(builder) or "")
    for key, parameter in accepted(inspect.signature(builder)).items():
        if key == _MAPPING:
            from gspo_rllib.modules.settings import ModelSettings

            yield from _of_settings(ModelSettings, f"{section}.{key}")
            continue
        default, own = _attribute(config, key), _attribute(rllib, key)
        source = "RLlib" if default == own else f"ours; RLlib has {own!r}"
        note, allowed, is_refused = said_of(f"{section}.{key}")
        effect = documented.get(key, note) if not is_refused else note  # RLlib says what it does elsewhere
        allowed = allowed or type_name(parameter.annotation)
        yield Declared(f"{section}.{key}", default, allowed, effect, "", source)


def _attribute(config: Any, key: str) -> Any:
    """The value that a builder's argument ends up in; ``...`` where RLlib keeps it under another name."""
    # Not its properties, which compute a value from others.
    values = vars(config)
    return next((values[name] for name in (key, f"_{key}", f"{key}_str") if name in values), ...)


def _documented(docstring: str) -> dict[str, str]:
    """What a docstring's Args say of each argument, in its first sentence.

    Example:
        >>> _documented("Sets.\\n\\nArgs:\\n    a: How many, e.g. two. Or\\n        more.\\n    b: Which.")
        {'a': 'How many, e.g. two.', 'b': 'Which.'}
    """
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", docstring.partition("Args:")[2], re.MULTILINE)
    # A sentence ends before a capital: that of "e.g." does not.
    return {key: re.split(r"(?<=\.) (?=[A-Z`])", " ".join(text.split()))[0] for key, text in entries}
