"""What other libraries' users write into ``model_config``, and what does the same here."""

from __future__ import annotations

from collections.abc import Mapping

_PRECISION = (
    "use precision='bfloat16', for sampling and training; autocast_dtype='bfloat16' is for the learner alone, and "
    "generation(engine_dtype='bfloat16') for sampling alone. The learner's weights are float32 whatever the folder's "
    "dtype, so that small steps are not rounded away; `gspo-rllib export` writes the dtype that the model came in."
)
_DEVICES = (
    "Ray says which devices there are. Use learners(num_learners=..., num_gpus_per_learner=1) for training and "
    "env_runners(num_env_runners=..., num_gpus_per_env_runner=1) for sampling; one engine takes several GPUs with "
    "generation(engine_options={'tensor_parallel_size': 2})."
)
_QUANTISATION = (
    "every weight is trained, and an update is smaller than a step of a 4- or 8-bit weight. For less memory use "
    "precision='bfloat16', activation_checkpointing=True, a lower training(max_tokens_per_micro_batch=...) or "
    "more learners; vLLM can quantise what samples: generation(engine_options={'quantization': 'fp8'})."
)
_PATH = "use path: a local Hugging Face folder or a hub name."
_TOKENIZER = (
    "the tokenizer is the one in the model's folder, and is saved with it. Save yours there "
    "(tokenizer.save_pretrained), and give that folder as path."
)
_TEMPLATE = (
    "conversations are written with the chat template of the model's folder. Put yours there as chat_template.jinja; "
    "what a template takes goes into generation(template_kwargs={...})."
)
_CONTEXT = (
    "use generation(max_model_len=...) for the longest context, at most what the model was made for; a longer one is "
    "the business of the folder's config.json (rope_scaling)."
)
_ATTENTION = "use attn_implementation='flash_attention_2', or leave it out: packed rows have a fast attention already."
_HUB = (
    "what is downloaded, and how, is the business of huggingface_hub: `hf auth login` or HF_TOKEN for private models, "
    "HF_HOME for the cache, HF_HUB_OFFLINE=1 for no network; `hf download` brings all of it beforehand."
)
_NETWORKS = "it describes RLlib's own networks; the architecture of a language model is that of its folder."
_CACHE = "engines keep keys and values on their own, and the learner needs none. Leave it out."
_DROPOUT = "a policy is trained as it is sampled, without dropout. Leave it out."

_WORDS: dict[str, tuple[str, ...]] = {
    _PRECISION: ("dtype", "torch_dtype", "fp16", "bf16", "half"),
    _DEVICES: ("device_map", "device", "max_memory", "tp_plan", "tp_size", "device_mesh", "low_cpu_mem_usage"),
    _QUANTISATION: ("load_in_4bit", "load_in_8bit", "quantization_config", "quantization", "bnb_config"),
    _PATH: (
        "pretrained_model_name_or_path",
        "model_name_or_path",
        "model_name",
        "model_path",
        "model_id",
        "model",
        "pretrained",
        "name",
    ),
    _TOKENIZER: ("tokenizer", "tokenizer_name", "tokenizer_path", "use_fast", "padding_side", "processing_class"),
    _TEMPLATE: ("chat_template", "chat_template_kwargs", "template_kwargs"),
    _CONTEXT: (
        "max_model_len",
        "max_seq_length",
        "max_seq_len",
        "max_length",
        "max_position_embeddings",
        "rope_scaling",
    ),
    _ATTENTION: ("use_flash_attention_2", "use_flash_attention", "use_flash_attn", "attn_impl"),
    _HUB: (
        "token",
        "use_auth_token",
        "cache_dir",
        "local_files_only",
        "force_download",
        "resume_download",
        "proxies",
        "offload_folder",
        "use_safetensors",
    ),
    "give the folder itself as path: path='FOLDER/SUBFOLDER', downloaded with `hf download` where it is on the hub.": (
        "subfolder",
    ),
    "save the model without a variant (model.save_pretrained), and give that folder as path.": ("variant",),
    "use lora={'rank': 16, 'alpha': 32}, which needs the package peft.": ("peft_config", "lora_config", "use_peft"),
    "use revision: it holds for a model's code, too.": ("code_revision",),
    "use activation_checkpointing=True.": ("gradient_checkpointing", "use_gradient_checkpointing"),
    _CACHE: ("use_cache",),
    _DROPOUT: ("dropout", "attention_dropout", "hidden_dropout", "attention_probs_dropout_prob"),
    "use generation(temperature=...).": ("temperature",),
    "use an algorithm with a critic (LanguagePPO), or training(advantage_estimator='gae').": ("use_critic",),
    _NETWORKS: (
        "fcnet_hiddens",
        "fcnet_activation",
        "head_fcnet_hiddens",
        "head_fcnet_activation",
        "conv_filters",
        "conv_activation",
        "use_lstm",
        "lstm_cell_size",
        "use_attention",
        "free_log_std",
    ),
}

REMEDIES: Mapping[str, str] = {word: remedy for remedy, words in _WORDS.items() for word in words}
"""By word: why it is no setting of ``model_config``, and what to use."""


def remedy(word: str) -> str | None:
    """What to use in the place of a word; None for one that no library is known to have.

    Example:
        >>> remedy("bnb_4bit_compute_dtype") == remedy("load_in_4bit")
        True
        >>> remedy("pathh") is None
        True
    """
    return _QUANTISATION if word.startswith("bnb_") else REMEDIES.get(word)
