"""Model folders that hold no model, half of one, or one that does not fit its tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input.case import Case, config

WEIGHTS, INDEX, TEMPLATE = "model.safetensors", "model.safetensors.index.json", "chat_template.jinja"
AGAIN = "Download or save the model again."
UNUSABLE = "model path 'model': its config.json cannot be used (…). Give a folder with config.json and *.safetensors; …"
NO_MODEL = "model path 'model': config.json describes no causal language model (…). Use another model, …"
NO_TOKENIZER = "model path 'model': no tokenizer could be loaded (…). It must be a local Hugging Face folder or …"
NO_INDEX = (
    f"model path 'model': {INDEX} is no index; it must be {{\"weight_map\": {{weight: file, ...}}}} with files of this "
    f"folder. {AGAIN}"
)
NOT_FRAMED = (
    "model path 'model': the chat template does not write a message's content as it is, so it cannot be framed. Use …"
)
REFUSES = "model path 'model': the chat template refuses a conversation with the roles user: …"
NOT_TRAINED_WITH = " for a conversation of three short messages. Use the template that the model was trained with."


def _folder(name: str, change: Callable[[Path], Any], said: str) -> Case:
    """A copy of a small model, changed."""

    def act(model: str) -> None:
        copy = Path("model")
        shutil.copytree(model, copy)
        try:
            change(copy)
            used = config(model)
            used._model_config = {"path": "model"}
            used.validate()
        finally:
            shutil.rmtree(copy)

    return Case(name, said, act)


def _written(file: str, content: str | bytes, said: str) -> Case:
    data = content if isinstance(content, bytes) else content.encode()
    return _folder(f"{file} {content[:40]!r}", lambda folder: (folder / file).write_bytes(data), said)


def _config(said: str, **changes: Any) -> Case:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return _folder(f"config.json {changes!r:.60}", change, said)


def _without(*files: str, said: str) -> Case:
    return _folder(f"without {', '.join(files)}", lambda folder: [(folder / file).unlink() for file in files], said)


def _cut(share: float, said: str) -> Case:
    def change(folder: Path) -> None:
        file = folder / WEIGHTS
        whole = file.read_bytes()
        file.write_bytes(whole[: int(len(whole) * share)])

    return _folder(f"weights cut to {share}", change, said)


def _instead_of_weights(file: str, content: str, said: str) -> Case:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / file).write_text(content)

    return _folder(f"{file} {content[:40]!r} for weights", change, said)


def _path(path: str, said: str) -> Case:
    def act(model: str) -> None:
        used = config(model)
        used._model_config = {"path": path}
        used.validate()

    return Case(f"model path {path[:40]!r}", said, act)


ELSEWHERE = (
    "model path …: not a local Hugging Face folder (no usable config.json) and not a reachable hub name (…). Give …"
)
NO_FOLDER = "model path …: there is no such folder. Give a folder with config.json and *.safetensors, or a hub name; …"

MODELS: list[Case] = [
    *[
        _written("config.json", text, UNUSABLE)
        for text in (
            *("[]", "3", "null", '"x"', "{", "", "[" * 100_000, "{}", '{"model_type": 5}', '{"model_type": "nope"}'),
            *(b"\xff\xfe", b"\0\0\0"),
        )
    ],
    _config(UNUSABLE, hidden_size="big"),
    *[_config(UNUSABLE, hidden_size=size) for size in (1.5, None, True, [64])],
    _config(UNUSABLE, num_hidden_layers=[2]),
    *[_config(UNUSABLE, vocab_size=size) for size in ("x", None)],
    _config(UNUSABLE, eos_token_id="x"),
    _config(UNUSABLE, max_position_embeddings="long"),
    _config(UNUSABLE, dtype="float99"),
    _config(NO_MODEL, num_attention_heads=0),
    _config(NO_MODEL, num_attention_heads=-1),
    _config(NO_MODEL, head_dim=0),
    _config(NO_MODEL, hidden_size=-64),
    _config(NO_MODEL, intermediate_size=-1),
    _config(NO_MODEL, hidden_act="nope"),
    *[
        _config(
            f"model path 'model': config.json has num_hidden_layers={layers}, but the folder holds 25 weights in all; "
            f"allowed: at least 1, and no more than there are weights for. {AGAIN}",
            num_hidden_layers=layers,
            layer_types=None,
        )
        for layers in (10**6, 0, -1)
    ],
    _config(
        f"model path 'model': 11 of 36 weights of the model that config.json describes are not in the folder, … for "
        f"one. {AGAIN}",
        num_hidden_layers=3,
        layer_types=None,
    ),
    _config(
        "model path 'model': the weight model.embed_tokens.weight has the shape [320, 64], but config.json describes a "
        f"model in which it has [5, 64]. {AGAIN}",
        vocab_size=5,
    ),
    _config(
        "model path 'model': the weight model.embed_tokens.weight has the shape [320, 64], but config.json describes a "
        f"model in which it has [320, 128]. {AGAIN}",
        hidden_size=128,
    ),
    _config("model path 'model': the weight … has the shape [64, 64], but config.json …", num_key_value_heads=3),
    _config(
        "model path 'model': config.json describes another kind of model than the weights are of: it has weights such "
        f"as …, and the folder such as …. {AGAIN}",
        model_type="gpt2",
        layer_types=None,
    ),
    _cut(0.0, f"model path 'model': {WEIGHTS} is cut off or empty: it has 0 bytes. {AGAIN}"),
    _cut(0.5, f"model path 'model': {WEIGHTS} is cut off: it has … bytes, and its header names …. {AGAIN}"),
    _cut(0.999, f"model path 'model': {WEIGHTS} is cut off: it has … bytes, and its header names …. {AGAIN}"),
    _cut(
        0.0002, f"model path 'model': {WEIGHTS} is cut off, or no safetensors file: its header cannot be read. {AGAIN}"
    ),
    _written(
        WEIGHTS,
        "x" * 1000,
        f"model path 'model': {WEIGHTS} is cut off, or no safetensors file: its header cannot be read. {AGAIN}",
    ),
    _without(WEIGHTS, said=f"model path 'model': the folder holds no weights (*.safetensors). {AGAIN}"),
    *[_instead_of_weights(INDEX, text, NO_INDEX) for text in ("[]", "{", "null", "{}", '{"weight_map": [1]}')],
    *[
        _instead_of_weights(INDEX, json.dumps({"weight_map": files}), NO_INDEX)
        for files in ({}, {"a": 5}, {"a": "../../x"}, {"a": ""}, {"a": None})
    ],
    _instead_of_weights(
        INDEX,
        json.dumps({"weight_map": {"a": "model-1.safetensors"}}),
        f"model path 'model': {INDEX} names 1 files with weights, of which 1 are missing, 'model-1.safetensors' for "
        f"one. {AGAIN}",
    ),
    _instead_of_weights(
        "pytorch_model.bin",
        "no weights",
        f"model path 'model': pytorch_model.bin is cut off, or no file of torch's: it cannot be read. {AGAIN}",
    ),
    _instead_of_weights("pytorch_model.bin", "", f"model path 'model': pytorch_model.bin is empty. {AGAIN}"),
    _without("tokenizer.json", said=NO_TOKENIZER),
    _without(
        "tokenizer.json",
        "tokenizer_config.json",
        said="model path 'model': its tokenizer has no ids for text, so every prompt would be empty. The folder has no "
        "tokenizer.json (or tokenizer.model), or an empty one; copy it from where the model comes from.",
    ),
    *[_written("tokenizer.json", text, NO_TOKENIZER) for text in ("[]", "{", "", "null", "3", '{"a": 1}')],
    *[_written("tokenizer_config.json", text, NO_TOKENIZER) for text in ("[]", "{", "", "null", "3")],
    *[_written(TEMPLATE, text, REFUSES) for text in ("{% if", "{{ x", "{{ 1/0 }}", "{{ messages[7].content }}")],
    *[
        _written(TEMPLATE, text, REFUSES)
        for text in ("{{ raise_exception('no') }}", "{% include 'x' %}", "{{ x.y.z }}")
    ],
    *[_written(TEMPLATE, text, NOT_FRAMED) for text in ("", "hello", "{{ messages | length }}")],
    _written(TEMPLATE, b"\xff\xfe", NO_TOKENIZER),
    _written(
        TEMPLATE,
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        f"model path 'model': the chat template does not end within 1 s{NOT_TRAINED_WITH}",
    ),
    _written(
        TEMPLATE,
        "{{ 'a' * 10000000000 }}",
        f"model path 'model': the chat template takes more than 1024 MB{NOT_TRAINED_WITH}",
    ),
    _written(
        TEMPLATE,
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        f"model path 'model': the chat template calls itself without end{NOT_TRAINED_WITH}",
    ),
    *[_path(path, NO_FOLDER) for path in ("/nowhere", "/dev/null", "a/b/c/d", "~/nowhere-at-all", "../x")],
    _path(
        "http://x/y", "model path 'http://x/y': it is an address. Give a local folder, or the name that the hub has, …"
    ),
    *[_path(path, ELSEWHERE) for path in ("/proc/self", "x" * 300, "~nobody-of-that-name/x", " ", "a\0b")],
    _path("run.yaml", "model path …: it is a file. Give a Hugging Face folder: …"),
]
