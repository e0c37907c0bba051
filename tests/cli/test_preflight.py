"""Before the first actor every node is asked; what is wrong with one is a sentence that names it; nothing is left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.cli import preflight
from gspo_rllib.cli.node_look import Answer
from gspo_rllib.errors import SettingError


@pytest.fixture
def config(tiny_dense: str) -> GSPOConfig:
    return (
        GSPOConfig()
        .rl_module(model_config={"path": tiny_dense})
        .env_runners(num_env_runners=1)
        .learners(num_learners=0)
    )


def test_a_single_node_passes_in_no_time_and_nothing_is_left(
    config: GSPOConfig, ray_local: None, tmp_path: Path
) -> None:
    started = time.process_time()
    preflight.preflight(config, storage=tmp_path / "new" / "results")
    assert time.process_time() - started < 2
    preflight.preflight(config, storage=tmp_path / "new" / "results", always=True)
    assert not [*tmp_path.iterdir()]


def test_more_than_the_cluster_has_is_refused_before_the_first_actor(config: GSPOConfig, ray_local: None) -> None:
    config.learners(num_learners=99)
    with pytest.raises(SettingError, match=r"99 x learner .* cannot be had"):
        preflight.preflight(config, storage=None, always=True)


def test_a_node_that_sees_another_world_is_named(
    config: GSPOConfig, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(nodes: dict[str, Any], question: Any) -> tuple[dict[str, Answer], dict[str, str]]:
        (node,) = nodes
        answer = Answer("elsewhere", {"ray": "1.0"}, left="never-written")
        return {node: answer}, {}

    monkeypatch.setattr(preflight, "_ask", other)
    with pytest.raises(SettingError, match="Nothing was started") as caught:
        preflight.preflight(config, storage=tmp_path, always=True)
    said = str(caught.value)
    assert "(elsewhere): " in said and "ray is 1.0 (here" in said and "gspo_rllib is not installed" in said
    assert f"storage {tmp_path} is another folder there: what it writes is not seen here" in said
    assert not [*tmp_path.iterdir()]


def test_a_node_that_does_not_answer_is_named(
    config: GSPOConfig, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "ANSWER_S", 0.0)
    with pytest.raises(SettingError, match=r"node [\d.]+, id \w{8}: it did not answer within"):
        preflight.preflight(config, storage=None, always=True)


def test_storage_that_this_node_cannot_write_is_refused(config: GSPOConfig, ray_local: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"storage .*file/results cannot be written on this node"):
        preflight.preflight(config, storage=tmp_path / "file" / "results", always=True)


def test_a_relative_reference_means_the_same_on_every_node(
    config: GSPOConfig, tiny_dense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(tiny_dense).parent)
    config.training(reference_path=Path(tiny_dense).name, kl_coeff=0.1)
    preflight.make_absolute(config)
    assert config.reference_path == tiny_dense
    assert preflight.model_folders(config) == [tiny_dense]
