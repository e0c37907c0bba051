"""The knobs of LoRA, and whether a model has what they name; asked before anything is loaded."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from gspo_rllib.errors import ModelError, SettingError, did_you_mean
from gspo_rllib.knobs import Settings, knob, settings_dataclass
from gspo_rllib.model_check import without_storage
from gspo_rllib.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gspo_rllib.model_folder import load_model_config

ALL_LINEAR = "all-linear"
"""peft's name for every linear layer but the head."""

_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # Others (PiSSA, OLoRA, LoftQ, ...) change the base as well, so that with the adapter off it is another model.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}
"""What a saved adapter must say to be plain LoRA."""
_NO_KIND = frozenset(
    {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "target_parameters"}
    | {"exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "lora_dropout", "inference_mode"}
    | {"peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "runtime_config"}
    | {"eva_config", "megatron_core", "qalora_group_size"}
)
"""What a plain one may set beside; anything else makes it of another kind, and each release of peft brings some."""

_PEFT_S = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "lora_path": "adapter"}
"""What peft calls them."""

_SHOWN = 24  # names of a list in a message


@settings_dataclass
class LoraSettings(Settings):
    """``.rl_module(model_config={"lora": ...})``: train a low-rank update of some matrices, and freeze the model."""

    SECTION: ClassVar[str] = "rl_module.model_config['lora']"

    rank: int = knob(16, "Rank of every update.", low=1, source="peft's guide to LoRA; its own default is 8")
    alpha: float = knob(32.0, "Updates are scaled by alpha / rank.", low=0.0, low_open=True, source="ours: 2 · rank")
    target_modules: list[Any] | str | None = knob(
        None,
        "Linear layers that get an update, by the ends of their names, or one regular expression for whole names. None "
        "takes all but the head; of a mixture-of-experts model with fused experts, that is its attention.",
        source="peft: all-linear",
    )
    target_parameters: list[Any] | None = knob(
        None,
        "Parameters outside of linear layers that get an update, by the ends of their names: fused experts, e.g. "
        "['mlp.experts.gate_up_proj', 'mlp.experts.down_proj']. Saves memory with activation_checkpointing only.",
        source="peft: none",
    )
    dropout: float = knob(
        0.0,
        "Always 0: a policy is trained on tokens that it sampled without dropout; with it, another one is scored.",
        choices=(0.0,),
        source="ours: exact log-probs",
    )
    adapter: str | pathlib.Path | None = knob(
        None,
        "Folder of an adapter to start from, which brings rank, alpha and targets; None for a new one, which changes "
        "nothing at first.",
        source="ours",
    )


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for; an adapter takes the next larger one."""


def check_lora(lora: Any, *, path: str, trust_remote_code: bool) -> LoraSettings:
    """Refuses what could not be trained.

    Args:
        lora: What the user gave.
        path: The model's.
        trust_remote_code: Whether its folder may run its own code.

    Raises:
        SettingError: An unknown key, an illegal value, a target that the model does not have, or no peft.
        ModelError: The adapter to start from cannot be used.
    """
    names = [field.name for field in dataclasses.fields(LoraSettings)]
    if not isinstance(lora, Mapping):
        raise SettingError(
            f"{LoraSettings.SECTION} is {lora!r}; give a dict such as {{'rank': 16, 'alpha': 32}}, or None to train "
            "every weight."
        )
    for key in lora:
        if key not in names:
            remedy = f"Use {_PEFT_S[key]!r}." if key in _PEFT_S else did_you_mean(str(key), names)
            raise SettingError(f"{LoraSettings.SECTION}[{key!r}] is unknown. {remedy}")
    settings = LoraSettings(**lora)
    if importlib.util.find_spec("peft") is None:
        raise SettingError(
            f"{LoraSettings.SECTION} needs the package peft, which is not installed. Run "
            '`pip install "gspo-rllib[lora]"`, or in a checkout `pip install -e ".[lora]"`, '
            "or set it to None to train every weight."
        )
    if settings.adapter is not None:
        if len(lora) > 1:
            others = sorted(key for key in lora if key != "adapter")
            raise SettingError(
                f"{LoraSettings.SECTION} names an adapter to start from, which brings its own rank, alpha and targets; "
                f"leave out {', '.join(map(repr, others))}."
            )
        adapter_config(settings.adapter)
        return settings
    for name in ("target_modules", "target_parameters"):
        given = getattr(settings, name)
        if given is not None and (not given or not all(isinstance(item, str) and item for item in given)):
            raise SettingError(f"{LoraSettings.SECTION}[{name!r}] is {given!r}; give names, or None for the default.")
    _check_targets(path, trust_remote_code, _hashable(settings.target_modules), _hashable(settings.target_parameters))
    return settings


def check_saved_policy(folder: pathlib.Path, lora: Mapping[str, Any] | None, *, source: str) -> None:
    """Refuses a saved policy that one with these settings cannot take up, as far as that is seen without a model.

    Args:
        folder: A folder that ``CausalLMModule.save_to_path`` wrote.
        lora: The settings of the policy's adapter, checked; None where it has none.
        source: What to call the folder in errors.

    Raises:
        ModelError: One of the two has an adapter and the other has none, or they differ in rank or scale.
    """
    saved = (folder / ADAPTER_WEIGHTS).is_file()
    if lora is not None and not saved:
        raise ModelError(
            f"{source} holds a whole model, and this policy has an adapter. Train from that folder as "
            "rl_module.model_config['path'], or set rl_module.model_config['lora'] to None."
        )
    if lora is None and saved:
        raise ModelError(
            f"{source} holds an adapter, and this policy has none. Set rl_module.model_config['lora'] as it was, "
            "or write the checkpoint's whole model with `gspo-rllib export --merge` and train from that folder."
        )
    if lora is None or lora.get("adapter") is not None:
        return
    settings, said = LoraSettings(**lora), adapter_config(folder)
    here, there = (settings.rank, settings.alpha), (said.get("r"), said.get("lora_alpha"))
    if here != there:
        raise ModelError(
            f"{source} holds an adapter of rank {there[0]} and alpha {there[1]}, and this policy's has {here[0]} and "
            f"{here[1]:g}. Set {LoraSettings.SECTION} as it was, or begin a new run from it: "
            f"{LoraSettings.SECTION} = {{'adapter': FOLDER}}."
        )


def adapter_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """The configuration of a saved adapter that can be trained on.

    Raises:
        ModelError: The folder holds no adapter, or one of a kind that is not exact on every engine.
    """
    path = pathlib.Path(folder).expanduser()
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise ModelError(
            f"adapter {str(folder)!r}: there is no {missing[0]}. Give a folder that peft's save_pretrained or "
            "`gspo-rllib export` wrote; of one on the hub, `hf download NAME --local-dir FOLDER` makes it."
        )
    config: dict[str, Any] = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    odd = [f"{name} is {config.get(name)!r}" for name, plain in _PLAIN.items() if config.get(name) not in plain]
    odd += [f"{name} is set" for name, value in config.items() if value and name not in _NO_KIND and name not in _PLAIN]
    if odd:
        raise ModelError(
            f"adapter {str(folder)!r}: {', '.join(odd)}; only plain LoRA can be trained and sampled here. Merge it "
            "into its model (peft: merge_and_unload, save_pretrained) and train that folder with a new adapter."
        )
    return config


def largest_rank(lora: Mapping[str, Any]) -> int:
    """The largest rank of an adapter's updates.

    Args:
        lora: Checked settings.
    """
    settings = LoraSettings(**lora)
    if settings.adapter is None:
        return settings.rank
    config = adapter_config(settings.adapter)
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def _hashable(given: list[Any] | str | None) -> tuple[str, ...] | str | None:
    return tuple(given) if isinstance(given, (list, tuple)) else given


@functools.lru_cache(maxsize=8)
def _check_targets(
    path: str, trust_remote_code: bool, modules: tuple[str, ...] | str | None, parameters: tuple[str, ...] | None
) -> None:
    """Compares targets with a model without storage."""
    from transformers.pytorch_utils import Conv1D

    config = load_model_config(path, trust_remote_code=trust_remote_code)
    model = without_storage(path, config, trust_remote_code=trust_remote_code)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    linear = {n for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m not in ends}
    others = {n for n, m in model.named_modules() if n and not list(m.children()) and n not in linear}
    fused = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if name not in linear and module not in ends
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2
    }
    if isinstance(modules, str):
        if modules != ALL_LINEAR:
            _check_expression(modules, linear, others)
    else:
        for target in modules or ():
            _check_name("target_modules", target, linear, others, "linear layers")
    for target in parameters or ():
        _check_name("target_parameters", target, fused, linear | others, "parameters outside of linear layers")
    if modules is None and not linear:
        raise SettingError(
            f"{LoraSettings.SECTION}['target_modules'] is None, but {type(model).__name__} has no linear layers. Name "
            f"target_parameters instead: {_listed(fused)}."
        )


def _check_name(knob_name: str, target: str, known: set[str], others: set[str], kind: str) -> None:
    found = _ending(known, target)
    wrong = sorted(_ending(others, target))
    if found and not wrong:
        return
    remedy = f"Its {kind} are: {_listed(known)}." if known else f"The model has no {kind}."
    why = f"matches none of the model's {kind}"
    if wrong:
        why = f"matches {wrong[0]!r}, which is none of the model's {kind} (head and embeddings keep their weights)"
    raise SettingError(f"{LoraSettings.SECTION}[{knob_name!r}]: {target!r} {why}. {remedy}")


def _check_expression(expression: str, linear: set[str], others: set[str]) -> None:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise SettingError(
            f"{LoraSettings.SECTION}['target_modules'] is {expression!r}, which is no regular expression ({error}). "
            "Give a list of names, or an expression for whole names."
        ) from None
    wrong = sorted(name for name in others if pattern.fullmatch(name))
    if wrong or not any(pattern.fullmatch(name) for name in linear):
        why = f"also matches {wrong[0]!r}, which is no linear layer" if wrong else "matches no whole name of one"
        raise SettingError(
            f"{LoraSettings.SECTION}['target_modules']: the expression {expression!r} {why}. The model's linear layers "
            f"are {min(linear, default='none')!r} and so on; their names end in: {_listed(linear)}."
        )


def _ending(names: Iterable[str], target: str) -> set[str]:
    return {name for name in names if name == target or name.endswith(f".{target}")}


def _listed(names: Iterable[str]) -> str:
    """The ends of names, from the last number on: what a target is written as."""
    ends = list(dict.fromkeys(re.sub(r"^.*\.\d+\.", "", name) for name in sorted(names)))
    return ", ".join(ends[:_SHOWN]) + (f" and {len(ends) - _SHOWN} more" if len(ends) > _SHOWN else "")
