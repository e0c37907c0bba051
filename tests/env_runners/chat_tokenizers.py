"""Small tokenizers with the rules of the real ones: byte-level BPE, and SentencePiece's BPE and Unigram."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Enough of each frame for merges that cross its ends: ".\n", "\n\n", " [", "]\n".
_TEXTS = [
    "It is here. The number is higher than 3.\n\nUser: hello there.\nAssistant: I see.\n",
    "system user assistant tool\n\n### Instruction:\nDo it.\n\n### Response:\nDone.\n",
    '[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello. [/INST] Hi. {"name": "add"}\n',
    "<|user|>\nquestion<|assistant|>\nanswer <b>two</b> & three.\n\n",
] * 8

# How GPT-4 and most models since cut a text: a line break joins the punctuation or the spaces before it.
_CUTS = r"(?i:'s|'t|'re|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@functools.cache
def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUTS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


@functools.cache
def _sentencepiece(prepend: str) -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prepend == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")  # while it learns
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=True)
    tokenizer.train_from_iterator(
        _TEXTS, trainers.BpeTrainer(vocab_size=600, special_tokens=pieces, show_progress=False)
    )
    if prepend == "legacy":
        tokenizer.pre_tokenizer = None
    tokenizer = _with_plain_bytes(tokenizer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@functools.cache
def _unigram() -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=500,
        special_tokens=pieces,
        initial_alphabet=[chr(code) for code in range(33, 127)],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return _with_plain_bytes(tokenizer)


def _with_plain_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Bytes are entries of the vocabulary like any other, though a trainer takes them for special tokens."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))


def make_tokenizer(
    rules: str,
    template: str | dict[str, str],
    *,
    special: Sequence[str | AddedToken] = (),
    added: Sequence[str | AddedToken] = (),
    eos: str,
    bos: str | None = None,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template.

    Args:
        rules: ``"bytes"`` (byte-level BPE); ``"first"``, ``"always"``, ``"legacy"`` (SentencePiece's BPE, by where a
            space is written before a text); or ``"unigram"``.
        template: The chat template.
        special: Special tokens beside ``eos`` and ``bos``.
        added: Added tokens that are not special, such as ``<tool_call>``.
        eos: The token that ends a text.
        bos: The token that begins one.
        options: Passed on.
    """
    base = _byte_level() if rules == "bytes" else _unigram() if rules == "unigram" else _sentencepiece(rules)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(base.to_str()),
        eos_token=eos,
        bos_token=bos,
        **({} if rules == "bytes" else {"unk_token": "<unk>"}),
        **options,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)}, replace_extra_special_tokens=False)
    tokenizer.add_tokens([t if isinstance(t, AddedToken) else AddedToken(t, normalized=False) for t in added])
    tokenizer.chat_template = template
    return tokenizer
