"""The text of single tokens, by a model's ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gspo_rllib.errors import ModelError


def token_texts(tokenizer: Path | None, ids: Iterable[int]) -> dict[int, str]:
    """The text that each id adds to what stands before it.

    A token that is only a part of a character has none; it is named by its bytes' name in the vocabulary.

    Args:
        tokenizer: The file; None knows no text.
        ids: Ids to look up; those that the vocabulary has not are left out.

    Raises:
        ModelError: The file cannot be read.
    """
    if tokenizer is None:
        return {}
    import tokenizers

    try:
        model = tokenizers.Tokenizer.from_file(str(tokenizer))
    except Exception as error:
        raise ModelError(f"{str(tokenizer)!r} is no tokenizer: {str(error)[:200]}.") from error
    texts = {}
    for token in ids:
        name = model.id_to_token(token)
        if name is None:
            continue
        # Twice, because some decoders strip a space from the beginning of a text.
        once = model.decode([token], skip_special_tokens=False)
        twice = model.decode([token, token], skip_special_tokens=False)
        text = twice[len(once) :] if twice.startswith(once) else once
        texts[token] = name if "\ufffd" in text or not text else text
    return texts
