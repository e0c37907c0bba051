"""``gspo-rllib settings``: every setting of a run with its default, what is allowed, its effect and its source."""

from __future__ import annotations

import argparse
from typing import Any

from gspo_rllib.cli.terminal import columns, wrapped
from gspo_rllib.configs.declared import Declared, matching
from gspo_rllib.configs.settings_table import settings_of

WIDEST = 100
"""Longest line on a terminal, in characters: longer ones are hard to read."""


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("settings", help="every setting of a run, or those of a name", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help="part of a name, e.g. clip or eval*")
    parser.add_argument("--algorithm", default="GSPO", metavar="NAME", help="whose defaults are shown; default GSPO")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints one paragraph per setting; one line where output is piped."""
    found = settings_of(arguments.algorithm)
    width = columns()
    for setting in matching(found, arguments.pattern):
        print("\n".join(shown(setting, width=None if width is None else min(width, WIDEST))))
    return 0


def shown(setting: Declared, *, width: int | None) -> list[str]:
    """The lines about one setting.

    Args:
        setting: What is known about it.
        width: Longest line, in characters; None for one line with everything.

    Example:
        >>> lr = Declared("training.lr", "1e-06", "float, >= 0", "AdamW's rate.", "", "verl")
        >>> print(*shown(lr, width=60), sep="\\n")
        training.lr = 1e-06
            AdamW's rate.
            Allowed: float, >= 0. Source: verl
    """
    default = f" = {setting.default}" if setting.default else ""
    unit = f" ({setting.unit})" if setting.unit else ""
    facts = f"Allowed: {setting.allowed}{unit}. Source: {setting.source}"
    if width is None:
        return ["  ".join(part for part in (f"{setting.name}{default}", setting.effect, facts) if part)]
    effect = wrapped(setting.effect, indent=4, width=width) if setting.effect else []
    return [f"{setting.name}{default}", *effect, *wrapped(facts, indent=4, width=width)]
