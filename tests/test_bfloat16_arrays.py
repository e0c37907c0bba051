"""bfloat16 in numpy: every number, shape and layout comes back bit by bit, also out of Ray's object store."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from gspo_rllib.bfloat16_arrays import BFLOAT16, to_array, to_tensor
from gspo_rllib.engines.weights import as_tensor, on_host


def _every_number() -> torch.Tensor:
    return torch.arange(1 << 16).to(torch.int32).to(torch.uint16).view(torch.bfloat16)


@pytest.mark.parametrize(
    "tensor",
    [
        _every_number(),
        _every_number().view(256, 256).t(),
        _every_number().view(4, 64, 256)[:, 3:9, ::2],
        torch.tensor(0.1, dtype=torch.bfloat16),
        torch.zeros(0, 3, dtype=torch.bfloat16),
        torch.randn(3, 5),
        torch.tensor(7),
    ],
)
def test_a_tensor_comes_back_as_it_was(tensor: torch.Tensor) -> None:
    array = to_array(tensor)
    assert array.shape == tuple(tensor.shape) and array.nbytes == tensor.numel() * tensor.element_size()
    assert (array.dtype == BFLOAT16) == (tensor.dtype == torch.bfloat16)
    for sent in (array, pickle.loads(pickle.dumps(array, protocol=5))):
        sent.flags.writeable = False
        back = to_tensor(sent)
        assert back.dtype == tensor.dtype and back.shape == tensor.shape
        # NaNs are not equal to themselves; their bits are.
        bits = torch.uint16 if tensor.dtype == torch.bfloat16 else tensor.dtype
        assert torch.equal(back.contiguous().view(bits), tensor.contiguous().view(bits))


def test_the_memory_is_shared_both_ways() -> None:
    tensor = torch.ones(4, dtype=torch.bfloat16)
    assert to_tensor(to_array(tensor)).data_ptr() == tensor.data_ptr()


def test_engines_take_both_kinds_and_a_tied_one_stays_one() -> None:
    tensor = torch.randn(2, 3).bfloat16()
    arrays = on_host({"embed": tensor, "head": tensor, "norm": np.ones(2, np.float32)})
    assert arrays["embed"] is arrays["head"]
    assert torch.equal(as_tensor(arrays["head"]), tensor) and as_tensor(arrays["norm"]).dtype == torch.float32
