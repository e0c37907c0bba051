"""The text of a token is what it adds, spaces included; ids without text keep their name."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from gspo_rllib.errors import ModelError
from gspo_rllib.view.token_texts import token_texts


def test_texts_laid_end_to_end_are_the_text(tiny_dense: str) -> None:
    file = Path(tiny_dense) / "tokenizer.json"
    ids = Tokenizer.from_file(str(file)).encode("What is 17 + 25?\n It is 42.", add_special_tokens=False).ids
    texts = token_texts(file, set(ids))
    assert "".join(texts[token] for token in ids) == "What is 17 + 25?\n It is 42."


def test_a_part_of_a_character_has_the_name_of_its_bytes(tiny_dense: str) -> None:
    file = Path(tiny_dense) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    ids = tokenizer.encode("é", add_special_tokens=False).ids
    texts = token_texts(file, ids)
    if len(ids) > 1:
        assert [texts[token] for token in ids] == [tokenizer.id_to_token(token) for token in ids]
    assert "\ufffd" not in "".join(texts.values())


def test_an_id_beyond_the_vocabulary_and_no_tokenizer_have_no_text(tiny_dense: str) -> None:
    assert token_texts(Path(tiny_dense) / "tokenizer.json", [10**6]) == {}
    assert token_texts(None, [1, 2]) == {}


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="is no tokenizer"):
        token_texts(tmp_path / "tokenizer.json", [1])
