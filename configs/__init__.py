"""Named runs as YAML, and the loader that turns one into an algorithm config.

Each top-level section of a file is one builder call on the config: ``training: {lr: 1.0e-5}`` is
``config.training(lr=1e-5)``. There is no second schema: sections and keys are those of the builders' own signatures.
The one section that is no builder, ``run:``, says when ``gspo-rllib train`` stops and saves.
"""

from __future__ import annotations

if __name__ == "configs":
    raise ImportError("import gspo_rllib.configs, not configs: under two names its classes would exist twice")

from gspo_rllib.configs.run_settings import RunSettings as RunSettings
from gspo_rllib.configs.runs import Run as Run
from gspo_rllib.configs.runs import load_config as load_config
from gspo_rllib.configs.runs import load_run as load_run
from gspo_rllib.configs.runs import shipped_configs as shipped_configs
from gspo_rllib.configs.strict_yaml import parse_value as parse_value
from gspo_rllib.configs.strict_yaml import parse_yaml as parse_yaml
