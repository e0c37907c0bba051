"""Builds a small Qwen3 or Qwen3-MoE chat model from nothing: tokenizer, chat template and random float32 weights.

The result is a standard Hugging Face folder that ``AutoModelForCausalLM``, ``AutoTokenizer`` and vLLM load as it is.

The tokenizer is a byte-level BPE, so every text has ids. Digits and newlines are always tokens of their own: numbers
then look the same wherever they stand, and a chat frame's last newline never merges with the message after it, so
rendering a conversation piece by piece gives the same ids as rendering it whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gspo_rllib.errors import SettingError, did_you_mean
from gspo_rllib.knobs import check, knob
from gspo_rllib.model_folder import quiet_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

Architecture = Literal["qwen3", "qwen3_moe"]

ARCHITECTURES: tuple[Architecture, ...] = ("qwen3", "qwen3_moe")
"""Names that ``build_model`` accepts as ``architecture``."""

END_OF_TEXT = "<|endoftext|>"
START_OF_MESSAGE = "<|im_start|>"
END_OF_MESSAGE = "<|im_end|>"

SPECIAL_TOKENS: tuple[str, ...] = (END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE)
"""Ids 0, 1, 2 of every tokenizer built here: padding, start and end of a message."""

ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message.role not in ["system", "user", "assistant", "tool"] -%}
        {{- raise_exception("unknown role " ~ message.role ~ "; use system, user, assistant or tool") -}}
    {%- endif -%}
    {{- "<|im_start|>" ~ message.role ~ "\\n" ~ message.content ~ "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""
"""ChatML: each message framed by its role and an end marker; a reply is sampled after the assistant header."""

_MINIMUM_VOCAB = 256 + len(SPECIAL_TOKENS)
_SIZE = knob(1, "", low=1, high=2**17, source="").metadata
_RANGE = knob(0.02, "", low=0.0, high=10.0, source="").metadata
_SAMPLE_TEXTS = (
    "What is 17 + 25? The answer is 42.",
    "Use a tool, read the result, then give the answer.",
    "The number is higher than 3 and lower than 11.",
)


def build_model(
    path: str | Path,
    *,
    texts: Iterable[str] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    architecture: Architecture = "qwen3",
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    intermediate_size: int = 384,
    vocab_size: int = 320,
    max_position_embeddings: int = 1024,
    tie_word_embeddings: bool = False,
    num_experts: int = 4,
    num_experts_per_token: int = 2,
    initializer_range: float = 0.02,
    seed: int = 0,
) -> Path:
    """Writes a randomly initialised chat model and its tokenizer to a folder.

    Args:
        path: Folder to write; made if missing, files of the same names are replaced.
        texts: What the tokenizer learns its merges from; None for three plain sentences.
        tokenizer: A tokenizer to use instead of training one; it then decides the vocabulary, not ``vocab_size``.
        architecture: ``"qwen3"`` (dense) or ``"qwen3_moe"`` (mixture of experts in every layer).
        hidden_size: Width of the residual stream.
        num_layers: Transformer layers.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; divides ``num_heads``.
        head_dim: Width of a head; vLLM on a CPU needs a multiple of 32.
        intermediate_size: Width of the feed-forward layer, or of each expert.
        vocab_size: At most this many tokens, >= 259 (256 bytes and 3 special tokens).
        max_position_embeddings: Longest context in tokens.
        tie_word_embeddings: Whether the output head is the embedding matrix.
        num_experts: Experts per layer, for ``"qwen3_moe"``.
        num_experts_per_token: Experts each token is sent to, for ``"qwen3_moe"``.
        initializer_range: Standard deviation of the random weights; 0.02 suits training, 0.1 and more gives an
            untrained model clear preferences.
        seed: Fixes the weights; the global random state is left alone.

    Returns:
        The folder, holding ``config.json``, ``model.safetensors``, the tokenizer and ``chat_template.jinja``.

    Raises:
        SettingError: A size is illegal, or the architecture is unknown.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if architecture not in ARCHITECTURES:
        raise SettingError(f"architecture={architecture!r}: {did_you_mean(str(architecture), ARCHITECTURES)}")
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise SettingError(f"num_kv_heads={num_kv_heads}: must divide num_heads={num_heads}.")
    if tokenizer is None:
        tokenizer = train_tokenizer(_SAMPLE_TEXTS if texts is None else texts, vocab_size=vocab_size)
    tokenizer.model_max_length = max_position_embeddings
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": max_position_embeddings,
        "tie_word_embeddings": tie_word_embeddings,
        "initializer_range": initializer_range,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = _model_config(architecture, sizes, num_experts, num_experts_per_token)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def check_sizes(sizes: Mapping[str, Any]) -> None:
    """Checks the names of size settings meant for ``build_model``.

    Raises:
        SettingError: One is not a size that ``build_model`` takes.
    """
    known = set(inspect.signature(build_model).parameters) - {"path", "texts", "tokenizer", "architecture", "seed"}
    for name, size in sizes.items():
        if name not in known:
            raise SettingError(f"sizes: {name!r} is not a size of a model. {did_you_mean(name, known)}")
        hint = {"tie_word_embeddings": bool, "initializer_range": float}.get(name, int)
        check(f"sizes: {name}", size, hint, _SIZE if hint is int else _RANGE)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with a ChatML template.

    Args:
        texts: What the merges are learnt from; the role names are always added.
        vocab_size: At most this many tokens, >= 259; fewer when the texts hold fewer repeated pairs.

    Raises:
        SettingError: ``vocab_size`` has no room for the 256 bytes and the special tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < _MINIMUM_VOCAB:
        raise SettingError(
            f"vocab_size={vocab_size}: must be at least {_MINIMUM_VOCAB} (256 bytes and {len(SPECIAL_TOKENS)} "
            "special tokens)."
        )
    corpus = [text for text in texts if text]
    corpus += list(ROLES) * max(1, len(corpus))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_MESSAGE,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[START_OF_MESSAGE],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _model_config(
    architecture: Architecture, sizes: dict[str, Any], num_experts: int, num_experts_per_token: int
) -> PretrainedConfig:
    from transformers import Qwen3Config, Qwen3MoeConfig

    if architecture == "qwen3":
        return Qwen3Config(**sizes)
    if not 1 <= num_experts_per_token <= num_experts:
        raise SettingError(f"num_experts_per_token={num_experts_per_token}: must be 1 to num_experts={num_experts}.")
    return Qwen3MoeConfig(
        **sizes,
        moe_intermediate_size=sizes["intermediate_size"],
        num_experts=num_experts,
        num_experts_per_tok=num_experts_per_token,
        norm_topk_prob=True,
        decoder_sparse_step=1,
    )
