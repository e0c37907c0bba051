"""The settings of every algorithm, as they are declared, in a file: asking the algorithms imports ray and torch.

``python -m gspo_rllib.configs.settings_table > configs/settings.json`` writes it, after a setting was changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gspo_rllib.configs.declared import Declared, declared_settings, settings_within
from gspo_rllib.errors import SettingError, did_you_mean

FILE = Path(__file__).with_name("settings.json")


def settings_of(algorithm: str) -> list[Declared]:
    """Every setting of a run of an algorithm; defaults are written as Python writes them, "" where none is known.

    Raises:
        SettingError: There is no such algorithm.
    """
    table = json.loads(FILE.read_text(encoding="utf-8"))
    if algorithm not in table:
        raise SettingError(f"--algorithm {algorithm!r}: unknown. {did_you_mean(algorithm, table)}")
    rows = next(iter(table.values())) | table[algorithm]
    return [Declared(name, *row) for name, row in rows.items()]


def settings_table() -> str:
    """The file's text: all rows of the first algorithm, and of the others those that differ from it."""
    from gspo_rllib.algorithms import ALGORITHMS

    table: dict[str, dict[str, list[str]]] = {}
    for name, algorithm in ALGORITHMS.items():
        declared = declared_settings(algorithm.get_default_config()) + settings_within()
        rows = {setting.name: _row(setting) for setting in declared}
        first = next(iter(table.values()), {})
        table[name] = {key: row for key, row in rows.items() if row != first.get(key)}
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def _row(setting: Declared) -> list[str]:
    """All but the name."""
    default = "" if setting.default is ... else repr(setting.default)
    if hasattr(setting.default, "__qualname__"):
        default = setting.default.__qualname__
    return [default, setting.allowed, setting.effect, setting.unit, setting.source]


if __name__ == "__main__":
    sys.stdout.write(settings_table())
