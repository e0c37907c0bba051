"""Buffers that a pass changes are found; those that it only reads are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from transformers import AutoModelForCausalLM

from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.modules.buffers import buffers_changed_by
from tests.learners.small_learner import SPACES, even_groups, learner_config


def test_a_running_mean_is_found_in_training_mode_and_is_none_in_evaluation_mode() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    rows = torch.randn(5, 3)
    assert buffers_changed_by(lambda: model(rows), model) == [
        "1.num_batches_tracked",
        "1.running_mean",
        "1.running_var",
    ]
    assert buffers_changed_by(lambda: model.eval()(rows), model) == []


def test_a_buffer_that_is_replaced_or_added_is_found() -> None:
    model: Any = torch.nn.Module()
    model.register_buffer("table", torch.ones(2))
    model.register_buffer("constant", torch.ones(2))

    def forward() -> None:
        model.table = torch.ones(4)
        model.register_buffer("late", model.constant * 2)

    assert buffers_changed_by(forward, model) == ["late", "table"]


@pytest.mark.slow
def test_two_ranks_send_no_buffers_and_end_with_the_same_bits(tiny_dense: str, ray_local: None) -> None:
    def told(learner: Any) -> Any:
        module = learner.module[DEFAULT_MODULE_ID]
        weights = {name: p.detach().clone() for name, p in module.unwrapped().named_parameters()}
        return module.broadcast_buffers, weights

    trained: list[Any] = []
    no_options: dict[str, bool] = {}
    for options in (no_options, {"broadcast_buffers": True}):
        config = learner_config(tiny_dense, old_log_probs="learner", num_learners=2, num_minibatches=2, lr=1e-3)
        config.framework(torch_ddp_kwargs=options)
        group = config.build_learner_group(rl_module_spec=config.get_multi_rl_module_spec(spaces=SPACES))
        try:
            for seed in range(2):
                data = GroupTrainingData.from_groups(even_groups(4), num_minibatches=2, seed=seed)
                group.update(training_data=data, num_epochs=1)
            trained.append([result.get() for result in group.foreach_learner(told)])
        finally:
            group.shutdown()

    assert [sends for ranks in trained for sends, _ in ranks] == [False, False, True, True]
    (_, expected), *others = [rank for ranks in trained for rank in ranks]
    start = AutoModelForCausalLM.from_pretrained(tiny_dense).state_dict()
    assert not all(torch.equal(expected[f"model.{name}"], tensor) for name, tensor in start.items())
    for _, weights in others:
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
