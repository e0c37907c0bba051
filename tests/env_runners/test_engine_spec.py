"""What an env runner asks of its engine."""

from __future__ import annotations

import pytest

from gspo_rllib.env_runners.engine_spec import resolve_max_model_len
from gspo_rllib.errors import ModelError, SettingError


def test_the_context_defaults_to_the_models_and_may_not_exceed_it(tiny_dense: str) -> None:
    assert resolve_max_model_len(None, {"path": tiny_dense}) == 512
    assert resolve_max_model_len(100, {"path": tiny_dense}) == 100
    with pytest.raises(SettingError, match=r"max_model_len=513.*512"):
        resolve_max_model_len(513, {"path": tiny_dense})
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_max_model_len(256, {"path": "/no/such/model"})
    with pytest.raises(SettingError, match="path"):
        resolve_max_model_len(256, {"path": ""})
