"""Reading a Hugging Face folder or hub name: what a policy needs to be trained and sampled."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of a saved adapter, as peft names them."""
ADAPTER_BASE = "adapter_base.json"
"""File beside them that says which weights an adapter was trained on."""


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads a tokenizer that can render a chat.

    Args:
        path: Local Hugging Face folder or hub name.
        trust_remote_code: Whether the folder may run its own code.

    Raises:
        ModelError: There is no tokenizer, it has no chat template, or no end-of-sequence token; or the folder holds an
            adapter.
    """
    from transformers import AutoTokenizer

    _refuse_adapter(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model path {path!r}: no tokenizer could be loaded ({str(error)[:300]}). It must be a local Hugging Face "
            "folder or a hub name that holds a tokenizer; `gspo-rllib warmstart` makes a small one."
        ) from error
    if tokenizer.chat_template is None:
        raise ModelError(
            f"model path {path!r}: its tokenizer has no chat template, so turns cannot be framed. Use the model's "
            "chat (instruct) version, or put a chat_template.jinja beside tokenizer_config.json."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"model path {path!r}: its tokenizer has no eos_token, so a turn could never end. Set eos_token in "
            "tokenizer_config.json to the token that closes an assistant message."
        )
    return tokenizer


def load_model_config(path: str, *, trust_remote_code: bool = False) -> Any:
    """The Hugging Face config of a model folder or hub name.

    Raises:
        ModelError: The folder or hub name holds no model configuration, or the folder an adapter.
    """
    from transformers import AutoConfig

    _refuse_adapter(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model path {path!r}: not a local Hugging Face folder (no usable config.json) and not a reachable hub "
            f"name ({str(error)[:200]}). Give a folder with config.json and *.safetensors; `gspo-rllib warmstart` "
            "makes a small one."
        ) from error


def _refuse_adapter(path: str) -> None:
    if (Path(path) / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"model path {path!r}: the folder holds an adapter, not a model of its own. Give the model below it as "
            "path and the folder as adapter: rl_module(model_config={'path': MODEL, 'lora': {'adapter': FOLDER}}); or "
            "merge both into one folder (`gspo-rllib export --merge`, or peft's merge_and_unload)."
        )


def check_weights(path: str) -> None:
    """Whether the weights of a local folder are all there, without reading them; a hub name is not asked.

    Raises:
        ModelError: There are none, or a file that the folder's index names is missing.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    indices = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    for index in indices:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise ModelError(
                f"model path {path!r}: {index.name} names {len(named)} files with weights, of which {len(missing)} are "
                f"missing, {missing[0]!r} for one. Download or save the model again."
            )
    if not indices and not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise ModelError(
            f"model path {path!r}: the folder holds no weights (*.safetensors). Download or save the model again."
        )


def declared_end_ids(
    path: str, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False
) -> tuple[int, ...]:
    """Ids that a model declares to end a text: in its generation config, its tokenizer and its config.

    An id beyond the vocabulary is no declaration, and neither is a default of the config's class, which is saved with
    every model, where it is an ordinary word of this tokenizer.

    Args:
        path: Local Hugging Face folder or hub name.
        tokenizer: The tokenizer of that folder.
        trust_remote_code: Whether the folder may run its own code.

    Raises:
        ModelError: The folder or hub name holds no model configuration.
    """
    from transformers import GenerationConfig

    config = load_model_config(path, trust_remote_code=trust_remote_code)
    declared = [tokenizer.eos_token_id]
    with contextlib.suppress(OSError, ValueError, TypeError):  # most folders have one, none needs it
        declared += _ids(GenerationConfig.from_pretrained(path).eos_token_id)
    known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for part in (config, config.get_text_config()):
        ids = _ids(getattr(part, "eos_token_id", None))
        declared += ids if known.issuperset(ids) or ids != _default_ids(type(part)) else []
    return tuple(dict.fromkeys(i for i in declared if 0 <= i < len(tokenizer)))


def _default_ids(config_class: type) -> list[int]:
    try:
        return _ids(getattr(config_class(), "eos_token_id", None))
    except (TypeError, ValueError, AttributeError):  # a class without defaults
        return []


def _ids(declared: Any) -> list[int]:
    ids = declared if isinstance(declared, (list, tuple)) else [declared]
    return [i for i in ids if isinstance(i, int) and not isinstance(i, bool)]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars that loading and saving print, whatever the model's size."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
