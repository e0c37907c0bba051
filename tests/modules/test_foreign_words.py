"""Words of other libraries in ``model_config``: each is answered with what does the same here."""

from __future__ import annotations

import pytest

from gspo_rllib.errors import SettingError
from gspo_rllib.modules.foreign_words import REMEDIES
from gspo_rllib.modules.lora_settings import check_lora
from gspo_rllib.modules.model_config import MODEL_CONFIG, check_model_config
from tests.learners.small_learner import learner_config


@pytest.mark.parametrize(
    ("word", "value", "instead"),
    [
        ("dtype", "bfloat16", "autocast_dtype='bfloat16'"),
        ("torch_dtype", "auto", "engine_dtype='bfloat16'"),
        ("device_map", "auto", "num_gpus_per_learner=1"),
        ("load_in_4bit", True, "activation_checkpointing=True"),
        ("quantization_config", {"bits": 4}, "engine_options={'quantization': 'fp8'}"),
        ("bnb_4bit_compute_dtype", "bfloat16", "engine_options={'quantization': 'fp8'}"),
        ("model_name_or_path", "small", "use path: a local Hugging Face folder or a hub name"),
        ("tokenizer", "small", "tokenizer.save_pretrained"),
        ("chat_template", "{{ 1 }}", "chat_template.jinja"),
        ("max_seq_length", 2048, "generation(max_model_len=...)"),
        ("use_flash_attention_2", True, "attn_implementation='flash_attention_2'"),
        ("token", "hf_x", "hf auth login"),
        ("subfolder", "policy", "path='FOLDER/SUBFOLDER'"),
        ("gradient_checkpointing", True, "activation_checkpointing=True"),
        ("use_cache", True, "Leave it out"),
        ("temperature", 0.7, "generation(temperature=...)"),
        ("fcnet_hiddens", [64, 64], "RLlib's own networks"),
    ],
)
def test_a_word_of_another_library_is_answered_with_what_does_the_same_here(word, value, instead, tiny_dense):
    config = learner_config(tiny_dense, model={word: value})
    with pytest.raises(SettingError) as refused:
        config.validate()
    message = str(refused.value)
    assert message.startswith(f"rl_module.model_config[{word!r}] is unknown: ")
    assert instead in message and "Did you mean" not in message and "\n" not in message


def test_no_word_that_is_answered_is_a_setting_and_a_misspelt_setting_is_still_guessed():
    assert not set(REMEDIES) & set(MODEL_CONFIG)
    with pytest.raises(SettingError, match=r"\['revison'\] is unknown\. Did you mean 'revision'\?"):
        check_model_config({"path": "small", "revison": "main"})


@pytest.mark.parametrize(("word", "ours"), [("r", "rank"), ("lora_alpha", "alpha"), ("lora_path", "adapter")])
def test_what_peft_calls_a_setting_of_an_adapter_is_answered_with_ours(word: str, ours: str, tiny_dense: str) -> None:
    with pytest.raises(SettingError, match=rf"\['lora'\]\['{word}'\] is unknown. Use '{ours}'."):
        check_lora({word: 8}, path=tiny_dense, trust_remote_code=False)
