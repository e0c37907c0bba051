"""What LoRA is refused for, before anything is loaded: by what the model has, which is listed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.model_folder import load_model_config, load_tokenizer
from gspo_rllib.modules.lora_settings import largest_rank
from gspo_rllib.modules.model_config import check_model_config

LINEAR = (
    "Its linear layers are: mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, "
    "self_attn.q_proj, self_attn.v_proj."
)


def check(path: str, lora: Any) -> None:
    check_model_config({"path": path, "lora": lora})


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ({"rang": 8}, "['rang'] is unknown. Did you mean 'rank'?"),
        ({"r": 8}, "['r'] is unknown."),
        ({3: 8}, "[3] is unknown."),
        ({"rank": 0}, "rank is 0; allowed: int, >= 1"),
        ({"rank": True}, "rank is True; allowed: int, >= 1"),
        ({"rank": 2.5}, "rank is 2.5; allowed: int, >= 1"),
        ({"rank": "8"}, "rank is '8'; allowed: int, >= 1; it was given as text"),
        ({"alpha": 0}, "alpha is 0; allowed: float, > 0"),
        ({"dropout": 0.1}, "dropout is 0.1; allowed: 0.0"),
        ({"target_modules": []}, "['target_modules'] is []; give names, or None for the default."),
        ({"target_modules": [3]}, "['target_modules'] is [3]; give names"),
        ({"target_modules": ["q_proj", "query"]}, f"'query' matches none of the model's linear layers. {LINEAR}"),
        ({"target_modules": ["proj"]}, "'proj' matches none of the model's linear layers."),
        ({"target_modules": ["lm_head"]}, "'lm_head' matches 'lm_head', which is none of the model's linear"),
        ({"target_modules": ["embed_tokens"]}, "'embed_tokens' matches 'model.embed_tokens', which is none"),
        ({"target_modules": ["q_norm"]}, "'q_norm' matches 'model.layers.0.self_attn.q_norm', which is none"),
        ({"target_modules": "q_proj"}, "the expression 'q_proj' matches no whole name of one. The model's"),
        ({"target_modules": "("}, "is '(', which is no regular expression"),
        ({"target_modules": ".*norm|.*proj"}, "also matches 'model.layers.0.input_layernorm', which is no"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "The model has no parameters outside of linear layers."),
        ("rank=8", "is 'rank=8'; give a dict such as {'rank': 16, 'alpha': 32}, or None"),
        (["q_proj"], "is ['q_proj']; give a dict such as"),
        ({"adapter": "/nowhere", "rank": 4}, "brings its own rank, alpha and targets; leave out 'rank'."),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_what_can(tiny_dense: str, lora: Any, says: str) -> None:
    with pytest.raises(SettingError, match=re.escape(says)):
        check(tiny_dense, lora)


def test_experts_are_named_where_they_are_and_the_default_leaves_them_alone(tiny_moe: str) -> None:
    with pytest.raises(
        SettingError,
        match=r"'experts' matches none of the model's parameters outside of linear layers. Its parameters outside of "
        r"linear layers are: mlp.experts.down_proj, mlp.experts.gate_up_proj",
    ):
        check(tiny_moe, {"target_parameters": ["experts"]})
    with pytest.raises(SettingError, match=r"Its linear layers are: self_attn.k_proj, self_attn.o_proj"):
        check(tiny_moe, {"target_modules": ["up_proj"]})
    with pytest.raises(SettingError, match=r"'q_proj\.weight' matches none of the model's parameters outside"):
        check(tiny_moe, {"target_parameters": ["q_proj.weight"]})
    check(tiny_moe, {"target_modules": r"model\.layers\.\d+\.self_attn\.[qv]_proj"})
    check(tiny_moe, {"target_parameters": ["mlp.experts.down_proj"]})


def test_a_folder_without_an_adapter_is_refused(tiny_dense: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter .*: there is no adapter_config\.json\. Give a folder that peft's"):
        check(tiny_dense, {"adapter": str(tmp_path)})


def test_an_adapter_is_no_model(tiny_dense: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    for load in (load_model_config, load_tokenizer):
        with pytest.raises(
            ModelError, match=r"the folder holds an adapter, not a model .*'lora': \{'adapter': FOLDER\}"
        ):
            load(str(tmp_path))


def test_without_peft_it_says_how_to_get_it(tiny_dense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    with pytest.raises(SettingError, match=r'needs the package peft, .*pip install -e "\.\[lora\]"'):
        check(tiny_dense, {"rank": 8})
    check(tiny_dense, None)


def test_the_rank_an_engine_must_make_room_for_is_the_adapters_largest(tmp_path: Path) -> None:
    assert largest_rank({}) == 16 and largest_rank({"rank": 4}) == 4
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "bias": "none", "r": 8, "rank_pattern": {"q_proj": 24}}'
    )
    assert largest_rank({"adapter": str(tmp_path)}) == 24
