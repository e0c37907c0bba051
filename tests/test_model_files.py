"""A saved policy is what was loaded, but for its weights; an exported one is in the dtype that it came in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from gspo_rllib import model_files
from gspo_rllib.envs import UnicodeText
from gspo_rllib.errors import ModelError
from gspo_rllib.model_files import LOADED_DTYPES, LoadedDtypes, ModelFiles, export_folder
from gspo_rllib.modules import CausalLMModule
from tests.modules.text_of_more import build_experts, build_gemma3, build_qwen3_5

REFUSED = b'{"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 0]}'
"""What transformers loads, and refuses to write: it says how to sample, but not to sample."""


def _module(path: str | Path, **model_config: Any) -> CausalLMModule:
    text, model_config = UnicodeText(100), {"path": str(path), **model_config}
    module: CausalLMModule = RLModuleSpec(
        CausalLMModule, observation_space=text, action_space=text, model_config=model_config
    ).build()
    return module


@torch.no_grad()
def _trained(module: CausalLMModule) -> CausalLMModule:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=1e-3)
    return module


def _copy(folder: str, target: Path, **config: Any) -> Path:
    """A folder in bfloat16, with some of its config changed; None takes a name away."""
    shutil.copytree(folder, target)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(target / "model.safetensors").items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    changed = json.loads((target / "config.json").read_text()) | {"dtype": "bfloat16"} | config
    (target / "config.json").write_text(json.dumps({name: v for name, v in changed.items() if v is not None}))
    return target


def test_what_came_with_the_model_is_saved_as_it_came_even_what_transformers_refuses_to_write(
    tiny_dense: str, tmp_path: Path
) -> None:
    source = _copy(
        tiny_dense, tmp_path / "source", dtype=None, torch_dtype="bfloat16", use_cache=True, top_k=7, of_another_age=[1]
    )
    extra = {
        "generation_config.json": REFUSED,
        "preprocessor_config.json": b'{"image_mean": [0.5]}',
        "additional_chat_templates/tool_use.jinja": b"{{ messages }}",
        "tokenizer.model": b"\\x00\\x01",
        "vocab.tiktoken": b"IQ== 0",
        "pytorch_model.bin.index.json": b"of other weights",
        "training_args.bin": b"no",
    }
    for name, content in extra.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(content)
    if Version(transformers.__version__) < Version("5.24"):  # later ones write it, too
        with pytest.raises(ValueError, match="do_sample"):
            GenerationConfig.from_pretrained(source).save_pretrained(tmp_path)
    said = json.loads((source / "config.json").read_text())
    came = {f.relative_to(source).as_posix(): f.read_bytes() for f in source.rglob("*") if f.is_file()}
    module = _trained(_module(source))
    shutil.rmtree(source)  # as of a trial whose checkpoint was replaced
    saved = Path(module.save_to_path(str(tmp_path / "saved")))
    assert json.loads((saved / "config.json").read_text()) == said | {"torch_dtype": "float32"}
    same = came.keys() - {
        "config.json", "model.safetensors", "pytorch_model.bin.index.json", "training_args.bin"
    }  # fmt: skip
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} < same
    assert {name: (saved / name).read_bytes() for name in same} == {name: came[name] for name in same}
    assert not [name for name in came.keys() - same - {"config.json", "model.safetensors"} if (saved / name).exists()]
    loaded = AutoModelForCausalLM.from_pretrained(saved)
    assert loaded.dtype == torch.float32 and loaded.generation_config.temperature == 0.6
    expected = module.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    other = _module(saved)
    other.restore_from_path(str(saved))


def test_a_model_of_the_hub_is_saved_with_the_files_of_its_snapshot(
    tiny_dense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--of--somebody", "0" * 40
    _copy(tiny_dense, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model = AutoModelForCausalLM.from_pretrained(repository / "snapshots" / commit)
    files = ModelFiles.of("of/somebody", model, config_class=type(model.config))
    assert files.files["tokenizer.json"] == Path(tiny_dense, "tokenizer.json").read_bytes()
    assert files.dtypes == LoadedDtypes("bfloat16")


def test_code_that_came_with_the_model_is_saved_and_loads_it_again(tiny_dense: str, tmp_path: Path) -> None:
    path = build_experts(tmp_path / "source", tokenizer=tiny_dense)
    module = _trained(_module(path, trust_remote_code=True))
    saved = module.save_to_path(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=True)
    expected = module.model.state_dict()
    assert type(loaded).__name__ == "ExpertsForCausalLM"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_the_config_of_the_text_that_was_loaded_is_saved_with_it(tiny_dense: str, tmp_path: Path) -> None:
    module = _trained(_module(build_qwen3_5(tmp_path / "source", tokenizer=tiny_dense)))
    saved = module.save_to_path(str(tmp_path / "saved"))
    assert type(AutoConfig.from_pretrained(saved)).__name__ == "Qwen3_5TextConfig"
    config = json.loads(Path(saved, "config.json").read_text())
    assert config["architectures"] == ["Qwen3_5ForCausalLM"] and config["dtype"] == "float32"
    assert config.get("use_cache", True) is True
    expected = module.model.state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(saved).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


def test_every_part_of_a_multimodal_folder_is_saved_and_named_in_its_dtype(tiny_dense: str, tmp_path: Path) -> None:
    source = _copy(build_gemma3(tmp_path / "built", tokenizer=tiny_dense), tmp_path / "source")
    saved = Path(_trained(_module(source)).save_to_path(str(tmp_path / "saved")))
    target = tmp_path / "exported"
    target.mkdir()
    assert export_folder(saved, target, dtype=None) == "bfloat16"
    for folder, dtype in ((saved, "float32"), (target, "bfloat16")):
        config = json.loads((folder / "config.json").read_text())
        assert [config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]] == [dtype] * 3
        assert {str(tensor.dtype) for tensor in load_file(folder / "model.safetensors").values()} == {f"torch.{dtype}"}
    assert load_file(saved / "model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    assert "vision_tower" in " ".join(load_file(saved / "model.safetensors"))


def test_a_model_whose_weights_could_not_be_written_is_refused_when_it_is_loaded(tiny_dense: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_dense)
    model.model.layers[0].mlp.up_proj.weight = model.model.layers[1].mlp.up_proj.weight
    with pytest.raises(ModelError, match=r"Qwen3ForCausalLM could be trained but not saved: .*\(RuntimeError: The w"):
        ModelFiles.of(tiny_dense, model, config_class=type(model.config))


def _exported(saved: Path, target: Path, dtype: str | None = None) -> dict[str, torch.Tensor]:
    target.mkdir()
    export_folder(saved, target, dtype=dtype)
    return {name: tensor for file in sorted(target.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def test_an_export_has_the_dtypes_that_came_or_the_one_that_is_named(tiny_tied: str, tmp_path: Path) -> None:
    source = _copy(tiny_tied, tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float()
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    module = _trained(_module(source))
    saved = Path(module.save_to_path(str(tmp_path / "saved")))
    assert json.loads((saved / LOADED_DTYPES).read_text()) == {
        "main": "bfloat16", "others": {"model.norm.weight": "float32"}
    }  # fmt: skip
    state = module.model.state_dict()
    assert {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()} == {torch.float32}
    as_came = _exported(saved, tmp_path / "as_came")
    assert "lm_head.weight" not in as_came and as_came.keys() == weights.keys()
    for name, tensor in as_came.items():
        assert tensor.dtype == weights[name].dtype and torch.equal(tensor, state[name].to(tensor.dtype))
    for dtype in ("bfloat16", "float16", "float32"):
        named = _exported(saved, tmp_path / dtype, dtype)
        for name, tensor in named.items():
            assert tensor.dtype == getattr(torch, dtype) and torch.equal(tensor, state[name].to(tensor.dtype))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / dtype)
        assert loaded.dtype == getattr(torch, dtype) == AutoConfig.from_pretrained(tmp_path / dtype).dtype
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert not (tmp_path / "as_came" / LOADED_DTYPES).exists()
    # A run that goes on from the checkpoint still knows.
    assert _module(saved)._files.dtypes == LoadedDtypes("bfloat16", {"model.norm.weight": "float32"})


def test_large_weights_are_written_in_shards_and_stay_in_them(
    tiny_moe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_SHARD", "200KB")
    module = _trained(_module(_copy(tiny_moe, tmp_path / "source")))
    saved = Path(module.save_to_path(str(tmp_path / "saved")))
    assert len(list(saved.glob("model-*-of-*.safetensors"))) > 2 and not (saved / "model.safetensors").exists()
    assert ModelFiles.of(str(saved), module.model, config_class=type(module.model.config)).dtypes.main == "bfloat16"
    exported = _exported(saved, tmp_path / "exported")
    index = json.loads((tmp_path / "exported" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in exported.values())
    assert index["weight_map"].keys() == exported.keys()
    expected = module.model.state_dict()
    for folder, dtype in ((saved, torch.float32), (tmp_path / "exported", torch.bfloat16)):
        loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert all(torch.equal(tensor, expected[name].to(dtype)) for name, tensor in loaded.items())


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        (torch.float8_e4m3fn, {"dtype": "bfloat16"}, "bfloat16"),
        (torch.float8_e4m3fn, {"text_config": {"torch_dtype": "float16"}}, "float16"),
        (torch.float16, {"dtype": "bfloat16"}, "float16"),
        (None, {"torch_dtype": "bfloat16"}, "bfloat16"),
        (None, {}, "float32"),
    ],
)
def test_the_dtype_is_that_of_the_weights_and_where_they_do_not_say_that_of_the_config(
    kind: torch.dtype | None, config: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    if kind is not None:
        save_file({"a": torch.zeros(4).to(kind), "step": torch.zeros(9).long()}, tmp_path / "model.safetensors")
    assert model_files._loaded_dtypes(tmp_path, config) == LoadedDtypes(expected)
