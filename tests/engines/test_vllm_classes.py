"""vLLM leaves transformers' classes as they are, and still has its own way with them."""

from __future__ import annotations

import pytest
import torch

from gspo_rllib.engines import registry

if "vllm" not in registry.available_engines():
    pytest.skip("vllm is not installed", allow_module_level=True)

pytestmark = pytest.mark.vllm


class Decoder(torch.nn.Module):
    """A decoder as transformers has them."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids + 1


def test_a_class_is_itself_again_and_vllms_object_keeps_what_was_changed() -> None:
    from vllm.compilation import decorators

    from gspo_rllib.engines.vllm_classes import classes_kept

    before, bases, original = dict(vars(Decoder)), Decoder.__bases__, decorators._support_torch_compile
    theirs, ours = Decoder(), Decoder()
    with classes_kept() as claim:
        decorators.support_torch_compile(dynamic_arg_dims={"input_ids": 0})(Decoder)
        assert Decoder.__bases__ != bases
        claim(torch.nn.Sequential(theirs))
    assert decorators._support_torch_compile is original
    assert dict(vars(Decoder)) == before and Decoder.__bases__ == bases
    assert isinstance(theirs, Decoder) and type(theirs) is not Decoder
    assert {"__call__", "__init__"} <= set(vars(type(theirs)))
    theirs.do_not_compile = True  # type: ignore[assignment]
    assert theirs(torch.tensor(1)) == ours(torch.tensor(1)) == Decoder()(torch.tensor(1)) == 2


def test_a_failed_start_changes_no_class_either() -> None:
    from vllm.compilation import decorators

    from gspo_rllib.engines.vllm_classes import classes_kept

    def start() -> None:
        with classes_kept():
            decorators.support_torch_compile(dynamic_arg_dims={"input_ids": 0})(Decoder)
            raise ZeroDivisionError

    before = dict(vars(Decoder))
    with pytest.raises(ZeroDivisionError):
        start()
    assert dict(vars(Decoder)) == before
