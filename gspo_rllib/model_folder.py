"""Reading a Hugging Face folder or hub name: what a policy needs to be trained and sampled."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib import model_hub
from gspo_rllib.errors import GSPOError, ModelError, SettingError, described
from gspo_rllib.model_files import ADAPTER_CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def translated(path: str, what: str, remedy: str = "Use another model, or download it again.") -> Iterator[None]:
    """Inside ``with``, whatever transformers raises about a folder is a ``ModelError`` of one sentence.

    Its errors are of every class: those of JSON, of torch, of its own dataclasses, of the folder's own code.

    Args:
        path: The folder or hub name.
        what: What could not be done.
        remedy: What to do instead, as a sentence.

    Raises:
        ModelError: Something was raised.
    """
    try:
        yield
    except (GSPOError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(described(error, 300).split())
        raise ModelError(f"model path {path!r}: {what} ({said}). {remedy}") from error


def model_path(model_config: Mapping[str, Any]) -> str:
    """Where this process finds the configured model: a folder, or a name under which the hub has it.

    Args:
        model_config: What ``rl_module`` was given; has a ``path``.

    Raises:
        SettingError: A local folder has no revisions.
        ModelError: There is no such revision, the hub cannot be reached and the cache has no copy, or the hub's is an
            adapter.
    """
    path, revision = os.path.expanduser(str(model_config["path"])), model_config.get("revision")
    if is_missing_folder(path):
        return path  # refused where it is read
    if os.path.isdir(path):
        if revision is not None:
            raise SettingError(
                f"rl_module.model_config['revision'] is {revision!r}, but path {path!r} is a local folder, which has "
                "no revisions. Leave revision out, or give a hub name as path."
            )
        return path
    return model_hub.found(path) if revision is None else model_hub.downloaded(path, str(revision))


def is_missing_folder(path: str) -> bool:
    """Whether a path can only be a local folder, and there is none; of a hub name nobody knows without asking.

    Example:
        >>> [is_missing_folder(path) for path in ("models/seed-x", "./seed-x", "/none", "a/b/c", "me/seed", "gpt2")]
        [True, True, True, True, False, False]
    """
    owner, *rest = path.split("/")
    # No account of the hub is called models: its own pages are at that address.
    can_be_a_name = len(rest) <= 1 and owner not in ("", ".", "..", "~", "models") and "\\" not in path
    return not can_be_a_name and not os.path.isdir(os.path.expanduser(path))


def _check_folder(path: str) -> None:
    """Refuses a folder that is not there, or holds an adapter, before transformers asks the hub."""
    if "://" in path:
        name = "/".join(path.rstrip("/").split("/")[3:5])
        raise ModelError(
            f"model path {path!r}: it is an address. Give a local folder, or the name that the hub has"
            + (f": {name!r}." if name.count("/") == 1 else ", OWNER/NAME.")
        )
    if os.path.isfile(path):
        folder = str(Path(path).parent)
        raise ModelError(
            f"model path {path!r}: it is a file. "
            + (
                f"Give the folder that it is in: {folder!r}."
                if os.path.isfile(os.path.join(folder, "config.json"))
                else "Give a Hugging Face folder: config.json, a tokenizer and *.safetensors, in the model's own dtype."
            )
        )
    if is_missing_folder(path):
        raise ModelError(
            f"model path {path!r}: there is no such folder. Give a folder with config.json and *.safetensors, or a hub "
            f"name; `gspo-rllib warmstart ENV {path}` makes a small one."
        )
    if os.path.isfile(os.path.join(path, ADAPTER_CONFIG)):
        if any(not file.name.startswith("adapter_") for file in Path(path).glob("*.safetensors")):
            raise ModelError(
                f"model path {path!r}: the folder holds an adapter beside its model, and transformers would load both. "
                "Merge them, or take the adapter's files out."
            )
        raise ModelError(
            f"model path {path!r}: the folder holds an adapter, not a model of its own. Give the model below it as "
            "path and the folder as adapter: rl_module(model_config={'path': MODEL, 'lora': {'adapter': FOLDER}}); or "
            "merge both into one folder (`gspo-rllib export --merge`, or peft's merge_and_unload)."
        )


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

    _check_folder(path)
    with translated(
        path,
        "no tokenizer could be loaded",
        "It must be a local Hugging Face folder or a hub name that holds a tokenizer; `gspo-rllib warmstart` makes a "
        "small one.",
    ):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if not _writes(tokenizer):
        raise ModelError(
            f"model path {path!r}: its tokenizer has no ids for text, so every prompt would be empty. The folder has "
            "no tokenizer.json (or tokenizer.model), or an empty one; copy it from where the model comes from."
        )
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
        ModelError: The folder or hub name holds no model configuration, or weights that can only be used quantised, or
            the folder an adapter.
    """
    from transformers import AutoConfig

    _check_folder(path)
    what = "not a local Hugging Face folder (no usable config.json) and not a reachable hub name"
    if os.path.isfile(os.path.join(path, "config.json")):
        what = "its config.json cannot be used"
    below = sorted(file.parent.name for file in Path(path).glob("*/config.json")) if os.path.isdir(path) else []
    remedy = "Give a folder with config.json and *.safetensors; `gspo-rllib warmstart` makes a small one."
    if below and not os.path.isfile(os.path.join(path, "config.json")):
        remedy = f"There are models in its folders {', '.join(below[:8])}: give one of them, e.g. {path}/{below[-1]}."
    with translated(path, what, remedy):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    _check_quantised(path, config)
    return config


def _check_quantised(path: str, config: Any) -> None:
    """Has the weights of a quantised folder read as the numbers they stand for, on every device, or refuses it.

    Raises:
        ModelError: transformers keeps them quantised.
    """
    quantised = getattr(config, "quantization_config", None)
    if quantised is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    method = str(quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised.quant_method)
    kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    if kind is None or "dequantize" not in inspect.signature(kind).parameters:
        raise ModelError(
            f"model path {path!r}: its weights are quantised ({method}), and every weight is trained: an update is "
            "smaller than a step of a 4- or 8-bit weight. Give the folder that it was made from; vLLM can quantise "
            "what samples: generation(engine_options={'quantization': 'fp8'})."
        )
    if isinstance(quantised, dict):
        quantised["dequantize"] = True
    else:
        quantised.dequantize = True


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


def _writes(tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        return bool(tokenizer.encode("What is 17 + 25?", add_special_tokens=False))
    except Exception:  # noqa: BLE001, of any class; whatever cannot write this cannot write a prompt
        return False


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
