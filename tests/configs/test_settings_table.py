"""The file of settings says what the algorithms do, and is read without importing them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gspo_rllib import LanguagePPOConfig
from gspo_rllib.configs.declared import declared_settings
from gspo_rllib.configs.settings_table import FILE, settings_of, settings_table
from gspo_rllib.errors import SettingError


def test_the_file_is_what_is_declared() -> None:
    assert FILE.read_text(encoding="utf-8") == settings_table(), (
        "python -m gspo_rllib.configs.settings_table > configs/settings.json writes it"
    )


def test_an_algorithm_has_its_own_values_among_those_it_shares() -> None:
    found = {setting.name: setting.default for setting in settings_of("LanguagePPO")}
    config = LanguagePPOConfig()
    assert list(found)[: len(declared_settings(config))] == [setting.name for setting in declared_settings(config)]
    assert found["training.clip_low"] == repr(config.clip_low) != repr(3e-4)
    assert found["run.iterations"] == "None"
    with pytest.raises(SettingError, match=r"--algorithm 'PPO': unknown"):
        settings_of("PPO")


def test_settings_are_printed_without_importing_ray_or_torch() -> None:
    code = (
        "import sys; from gspo_rllib.cli.main import main; assert main(['settings', 'clip']) == 0;"
        "print(sorted({'ray', 'torch', 'transformers', 'gymnasium'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
