"""A model's folder or hub name: revisions are taken from the cache, and an adapter is told from a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from safetensors.torch import load_file, save_file

from gspo_rllib.cli.main import main
from gspo_rllib.env_runners.engine_spec import engine_spec
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.model_folder import load_model_config, load_tokenizer, model_path
from gspo_rllib.modules.loading import load_causal_lm
from tests.learners.small_learner import SPACES, learner_config


@pytest.fixture
def hub_cache(tiny_dense: str, tiny_tied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which ``me/small`` has two versions: ``main`` with a head of its own, ``v1`` without."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--me--small"
    for name, commit, source in (("main", "a" * 40, tiny_dense), ("v1", "b" * 40, tiny_tied)):
        shutil.copytree(source, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    return repository


def test_learner_engine_and_tokenizer_take_the_revision_that_is_asked_for(hub_cache):
    model = {"path": "me/small", "revision": "v1"}
    config = learner_config("me/small", model={"revision": "v1"})
    config.validate()
    module = config.build_learner(spaces=SPACES).module[DEFAULT_MODULE_ID].unwrapped()
    assert module.model.config.tie_word_embeddings
    snapshot = str(hub_cache / "snapshots" / ("b" * 40))
    spec = engine_spec(GenerationSettings(), model, max_num_seqs=1, run_seed=0, stop_token_ids=(), worker_index=0)
    assert spec.model == snapshot == model_path(model)
    # Of a commit, too; without a revision, the name is left to transformers.
    assert model_path({"path": "me/small", "revision": "a" * 40}) == str(hub_cache / "snapshots" / ("a" * 40))
    assert model_path({"path": "me/small"}) == "me/small"


def test_a_revision_that_is_not_there_is_one_sentence(hub_cache, tiny_dense):
    with pytest.raises(ModelError, match=r"model path 'me/small', revision 'v2': not in the cache") as refused:
        learner_config("me/small", model={"revision": "v2"}).validate()
    assert "\n" not in str(refused.value)
    with pytest.raises(SettingError, match=r"\['revision'\] is 'v1', but path .* is a local folder"):
        learner_config(tiny_dense, model={"revision": "v1"}).validate()


def test_the_reference_of_another_path_has_not_the_revision_of_the_policy(hub_cache, tiny_dense):
    config = learner_config("me/small", model={"revision": "v1"}, kl_coeff=0.1)
    assert config._reference_config["revision"] == "v1"
    config.training(reference_path=tiny_dense)
    assert model_path(config._reference_config) == tiny_dense


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """What ``peft`` saves of a LoRA."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "me/base", "r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_an_adapter_is_told_from_a_model_and_what_to_do_with_it_is_said(adapter, tiny_dense, capsys):
    for read in (load_tokenizer, load_model_config):
        with pytest.raises(ModelError, match=r"holds an adapter, not a model of its own.*merge_and_unload"):
            read(str(adapter))
    assert main(["validate", "calculator", f"rl_module.model_config.path={adapter}"]) == 1
    assert "merge_and_unload" in capsys.readouterr().err
    # transformers would load an adapter that lies beside a model as well, without a word.
    for file in Path(tiny_dense).iterdir():
        shutil.copy(file, adapter)
    with pytest.raises(ModelError, match=r"holds an adapter beside its model"):
        load_tokenizer(str(adapter))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("https://huggingface.co/me/small", "'me/small'"),
        ("https://huggingface.co/me/small/tree/main", "'me/small'"),
        ("hf://me/small", "OWNER/NAME"),
    ],
)
def test_an_address_is_told_from_a_name(address: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "calculator", f"rl_module.model_config.path={address}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "it is an address" in error and says in error


def quantised(tiny_dense: str, folder: Path, method: dict[str, object]) -> str:
    """A copy of a model that says how its weights are quantised; those of fp8 are what that says."""
    shutil.copytree(tiny_dense, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    if method["quant_method"] == "fp8":
        weights = load_file(folder / "model.safetensors")
        for name in [name for name in weights if name.endswith("_proj.weight")]:
            weights[name] = weights[name].to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = torch.full([-(-size // 128) for size in weights[name].shape], 2.0)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "of-my-own"])
def test_a_model_that_stays_quantised_is_refused_before_anything_starts(method, tiny_dense, tmp_path, capsys):
    """transformers asks for a package that quantises; with it, nothing could be trained."""
    path = quantised(tiny_dense, tmp_path / "small", {"quant_method": method, "bits": 4, "load_in_4bit": True})
    assert main(["validate", "calculator", f"rl_module.model_config.path={path}"]) == 1
    error = capsys.readouterr().err
    assert f"its weights are quantised ({method}), and every weight is trained" in error and error.count("\n") == 1


def test_a_quantised_model_that_can_be_read_whole_is_trained_as_the_numbers_it_stands_for(tiny_dense, tmp_path):
    method = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    path = quantised(tiny_dense, tmp_path / "small", method)
    model, _ = load_causal_lm(path, trust_remote_code=False)
    name = "model.layers.0.self_attn.q_proj.weight"
    stored = load_file(Path(path) / "model.safetensors")[name]
    assert stored.dtype == torch.float8_e4m3fn
    assert torch.equal(model.get_parameter(name), stored.to(torch.float32) * 2)
    assert getattr(model.config, "quantization_config", None) is None


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_is_answered_with_its_folder_and_not_with_a_warm_start(name, tiny_dense, tmp_path, capsys):
    assert main(["validate", "calculator", f"rl_module.model_config.path={tiny_dense}/{name}"]) == 1
    assert f"it is a file. Give the folder that it is in: {tiny_dense!r}." in capsys.readouterr().err
    alone = tmp_path / "small.gguf"
    alone.write_bytes(b"GGUF")
    assert main(["validate", "calculator", f"rl_module.model_config.path={alone}"]) == 1
    assert "it is a file. Give a Hugging Face folder: config.json" in capsys.readouterr().err


def test_a_folder_of_models_names_them(tiny_dense, tmp_path, capsys):
    for step in (100, 200):
        shutil.copytree(tiny_dense, tmp_path / f"checkpoint-{step}")
    assert main(["validate", "calculator", f"rl_module.model_config.path={tmp_path}"]) == 1
    assert f"its folders checkpoint-100, checkpoint-200: give one of them, e.g. {tmp_path}/checkpoint-200" in (
        capsys.readouterr().err
    )


def test_no_path_is_no_model_to_be_made(capsys):
    assert main(["validate", "calculator", "rl_module.model_config.path=''"]) == 1
    assert "rl_module.model_config['path'] is ''; give a local Hugging Face folder" in capsys.readouterr().err
