"""Named runs as YAML, and the loader that turns one into an algorithm config.

Each top-level section of a file is one builder call on the config: ``training: {lr: 1.0e-5}`` is
``config.training(lr=1e-5)``. There is no second schema: sections and keys are those of the builders' own signatures.
The one section that is no builder, ``run:``, says when ``gspo-rllib train`` stops and saves.
"""

from __future__ import annotations

if __name__ == "configs":
    raise ImportError("import gspo_rllib.configs, not configs: under two names its classes would exist twice")

from gspo_rllib.configs.runs import Run, RunSettings, load_config, load_run, shipped_configs
from gspo_rllib.configs.strict_yaml import parse_value, parse_yaml

__all__ = ["Run", "RunSettings", "load_config", "load_run", "parse_value", "parse_yaml", "shipped_configs"]
