"""What the loss never reaches is frozen, and told; what another input may reach is trained wherever it is reached."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import LanguagePPOConfig
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.modules.frozen import Reach
from tests.learners.small_learner import SPACES, even_groups, learner_config
from tests.modules.text_of_more import build_experts, build_gemma3, build_gemma4, build_qwen3_5


def _updated(learner: Any, groups: int = 4) -> Any:
    data = GroupTrainingData.from_groups(even_groups(groups), num_minibatches=1, seed=0)
    learner.update(training_data=data, num_epochs=1)
    return learner


@pytest.mark.parametrize(
    ("build", "family", "tower"),
    [
        (build_gemma3, "Gemma3", ("model.vision_tower", "model.multi_modal_projector")),
        (build_gemma4, "Gemma4", ("model.vision_tower", "model.embed_vision")),
    ],
)
def test_a_tower_that_text_does_not_reach_is_frozen_told_and_never_moved(
    build: Callable[..., str], family: str, tower: tuple[str, str], tiny_dense: str, tmp_path: Path, caplog: Any
) -> None:
    config = learner_config(build(tmp_path, tokenizer=tiny_dense), lr=1e-2, weight_decay=0.5)
    with caplog.at_level(logging.WARNING, logger="gspo_rllib.modules.frozen"):
        learner = config.build_learner(spaces=SPACES)
    (told,) = [record.getMessage() for record in caplog.records if record.name == "gspo_rllib.modules.frozen"]
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    names = [name for name, _ in module.named_parameters() if name.startswith(tuple(f"model.{t}." for t in tower))]
    num_frozen, total = sum(module.get_parameter(name).numel() for name in names), module.model.num_parameters()
    assert told == (
        f"{family}ForConditionalGeneration: text does not reach {tower[0]}, {tower[1]}, so {num_frozen:.3g} of "
        f"{total:.3g} parameters are frozen: they are sampled with and saved as they came."
    )
    assert module.reach == Reach(tuple(names), may_miss=False)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    _updated(learner)
    moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == before.keys() - set(names)
    (optimizer,) = (optimizer for _, optimizer in learner.get_optimizers_for_module(DEFAULT_MODULE_ID))
    assert set(optimizer.state) == {module.get_parameter(name) for name in moved}


def test_the_tower_of_a_critics_own_trunk_is_frozen_too(tiny_dense: str, tmp_path: Path) -> None:
    path = build_gemma3(tmp_path, tokenizer=tiny_dense)
    config = LanguagePPOConfig().environment("gspo_rllib.envs:gspo_rllib/Calculator-v0")
    config.rl_module(model_config={"path": path}).generation(engine="transformers").debugging(seed=0)
    module = config.build_learner(spaces=SPACES).module[DEFAULT_MODULE_ID].unwrapped()
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert frozen == set(module.reach.frozen)
    assert {name.removeprefix("critic.trunk.") for name in frozen if name.startswith("critic")} == {
        name.removeprefix("model.model.") for name in frozen if name.startswith("model")
    }


@pytest.mark.parametrize("model", ["tiny_dense", "tiny_tied", "tiny_moe"])
def test_of_a_language_model_nothing_is_frozen(model: str, request: pytest.FixtureRequest) -> None:
    module = learner_config(request.getfixturevalue(model)).build_learner(spaces=SPACES).module[DEFAULT_MODULE_ID]
    assert module.unwrapped().reach == Reach((), may_miss=False)


def test_of_a_multimodal_folder_whose_text_alone_is_loaded_nothing_is_frozen(tiny_dense: str, tmp_path: Path) -> None:
    path = build_qwen3_5(tmp_path, tokenizer=tiny_dense)
    module = learner_config(path).build_learner(spaces=SPACES).module[DEFAULT_MODULE_ID].unwrapped()
    assert module.reach == Reach((), may_miss=False)


def _gradient(learner: Any) -> dict[str, torch.Tensor | None]:
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.slow
def test_two_learners_agree_on_experts_that_only_one_or_none_of_them_reached(
    tiny_dense: str, tmp_path: Path, ray_local: None
) -> None:
    options: dict[str, Any] = {
        "model": {"trust_remote_code": True}, "old_log_probs": "learner", "max_tokens_per_micro_batch": 80,
    }  # fmt: skip
    path = build_experts(tmp_path, tokenizer=tiny_dense)
    one = _updated(learner_config(path, **options).build_learner(spaces=SPACES), groups=2)
    assert one.module[DEFAULT_MODULE_ID].unwrapped().reach == Reach(
        ("model.tower.weight", "model.tower.bias"), may_miss=True
    )
    expected = _gradient(one)
    config = learner_config(path, num_learners=2, **options)
    group = config.build_learner_group(rl_module_spec=config.get_multi_rl_module_spec(spaces=SPACES))
    try:
        _updated(group, groups=2)
        for answer in group.foreach_learner(_gradient):
            gradient = answer.get()
            missing = {name for name, value in gradient.items() if value is None}
            assert missing == {name for name, value in expected.items() if value is None}
            assert {"model.tower.weight", "model.tower.bias"} < missing
            for name in expected.keys() - missing:
                torch.testing.assert_close(gradient[name], expected[name], rtol=1e-4, atol=1e-6)
        # That a gradient never came, DistributedDataParallel says in the next pass.
        _updated(group, groups=2)
    finally:
        group.shutdown()
