"""A model's folder or hub name: revisions are taken from the cache, and an adapter is told from a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.cli.main import main
from gspo_rllib.env_runners.engine_spec import engine_spec
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.model_folder import load_model_config, load_tokenizer, model_path
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
