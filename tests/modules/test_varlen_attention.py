"""One call of variable-length attention for a whole row, against one call per segment."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gspo_rllib.modules import varlen_attention as subject
from gspo_rllib.modules.attention import packed_attention
from gspo_rllib.modules.prefix_attention import prefix_attention

ROWS: dict[str, tuple[list[int], list[int] | None]] = {
    "one segment": ([7], None),
    "ragged segments": ([3, 1, 8, 3], None),
    "a prefix with branches": ([5, 2, 4, 1], [-1, 0, 0, 0]),
    "two families and others": ([4, 3, 3, 6, 2, 5, 1, 9], [-1, 0, 0, -1, -1, 4, 4, -1]),
    "branches longer than their prefix": ([1, 6, 9], [-1, 0, 0]),
}


@pytest.fixture
def kernels_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two GPU kernels' contract, kept by the CPU's, member by member; float32 too."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def pieces(tensor: Tensor, edge: Tensor) -> list[Tensor]:
        return [tensor[a:b].transpose(0, 1).unsqueeze(0) for a, b in itertools.pairwise(edge.tolist())]

    def repeated(query: Tensor, tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)

    def run(query, key, value, query_edge, key_edge, longest_query, longest_key, dropout, causal, debug, **_: Any):
        assert (longest_query, longest_key) == (int(query_edge.diff().max()), int(key_edge.diff().max()))
        key, value = (repeated(query, tensor) for tensor in (key, value))
        members = zip(pieces(query, query_edge), pieces(key, key_edge), pieces(value, key_edge), strict=True)
        parts = [flash(q, k, v, 0.0, causal) for q, k, v in members]
        out = torch.cat([part[0].transpose(0, 1) for part, _ in parts])
        return out, torch.cat([lse[0] for _, lse in parts], dim=1), query.new_zeros(2), query.new_zeros(1), None

    def run_backward(
        grad, query, key, value, out, lse, query_edge, key_edge, longest_query, longest_key, dropout, causal, *_, **__
    ):
        wide_key, wide_value = (repeated(query, tensor) for tensor in (key, value))
        found = []
        for g, q, k, v, o, log in zip(
            pieces(grad, query_edge), pieces(query, query_edge), pieces(wide_key, key_edge),
            pieces(wide_value, key_edge), pieces(out, query_edge), pieces(lse.t().unsqueeze(-1), query_edge),
            strict=True,
        ):  # fmt: skip
            found.append(backward(g, q, k, v, o, log.squeeze(-1), 0.0, causal))
        wide = [torch.cat([part[0].transpose(0, 1) for part in parts]) for parts in zip(*found, strict=True)]
        group = query.shape[1] // key.shape[1]
        return wide[0], *(part.unflatten(1, (-1, group)).sum(dim=2) for part in wide[1:])

    monkeypatch.setattr(subject, "_flash", run)
    monkeypatch.setattr(subject, "_flash_backward", run_backward)


def _inputs(tokens: int, device: str = "cpu", dtype: torch.dtype = torch.float32, width: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, tokens, width), (1, 2, tokens, width), (1, 2, tokens, width)]
    made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made]


def _with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


def _expected(row: tuple[list[int], list[int] | None], inputs: list[Tensor]) -> list[Tensor]:
    """By one causal call for each segment, after its prefix where it has one; in the inputs' precision."""
    lengths, prefixes = row
    edges = [0, *itertools.accumulate(lengths)]
    outs = []
    for i, (start, stop) in enumerate(itertools.pairwise(edges)):
        cells = list(range(start, stop))
        before = prefixes[i] if prefixes else -1
        if before >= 0:
            cells = [*range(edges[before], edges[before + 1]), *cells]
        q, k, v = (tensor[:, :, cells] for tensor in inputs)
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1), is_causal=True
        )
        outs.append(out[:, :, -(stop - start) :])
    return _with_gradients(torch.cat(outs, dim=2).transpose(1, 2), inputs)


@pytest.mark.usefixtures("kernels_of_the_cpu")
@pytest.mark.parametrize("row", ROWS)
def test_one_call_for_a_row_equals_a_call_for_each_segment(row: str) -> None:
    lengths, prefixes = ROWS[row]
    inputs = _inputs(sum(lengths))
    out = subject.varlen_attention(*inputs, segment_lengths=lengths, segment_prefixes=prefixes)
    for got, expected in zip(_with_gradients(out, inputs), _expected(ROWS[row], inputs), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-6)
    if prefixes:
        on_cpu = prefix_attention(*inputs, segment_lengths=lengths, segment_prefixes=prefixes)
        torch.testing.assert_close(out, on_cpu.transpose(1, 2), atol=2e-6, rtol=2e-6)


def test_a_cpu_and_float32_are_not_served() -> None:
    query, _, value = _inputs(4)
    assert not subject.serves(query, value)
    assert not subject.serves(query.bfloat16(), value.bfloat16())


if torch.cuda.is_available():

    @pytest.mark.parametrize("row", ROWS)
    @pytest.mark.parametrize("width", [32, 128])
    def test_on_a_gpu_it_is_as_near_to_float32_as_bfloat16_is(row: str, width: int) -> None:
        lengths, prefixes = ROWS[row]
        inputs = _inputs(sum(lengths), "cuda", torch.bfloat16, width)
        exact = _expected(ROWS[row], [tensor.detach().float().requires_grad_() for tensor in inputs])
        assert subject.serves(inputs[0], inputs[2])
        out, _ = packed_attention(
            torch.nn.Identity(), *inputs, None, segment_lengths=lengths, segment_prefixes=prefixes
        )  # fmt: skip
        for got, expected in zip(_with_gradients(out, inputs), exact, strict=True):
            assert float((got.float() - expected).norm() / expected.norm()) < 1e-2

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("window", [None, 4])
    def test_on_a_gpu_packed_attention_is_that_of_a_cpu(dtype: torch.dtype, window: int | None) -> None:
        lengths = [3, 9, 9, 1]
        inputs = _inputs(sum(lengths), "cuda", dtype, 32)
        of_cpu = [tensor.detach().cpu().float().requires_grad_() for tensor in inputs]
        settings: dict[str, Any] = {"segment_lengths": lengths, "sliding_window": window}
        (got, _), (expected, _) = (
            packed_attention(torch.nn.Identity(), *tensors, None, **settings) for tensors in (inputs, of_cpu)
        )
        bound = 1e-5 if dtype == torch.float32 else 1e-2
        for a, b in zip(_with_gradients(got, inputs), _with_gradients(expected, of_cpu), strict=True):
            assert float((a.cpu().float() - b).norm() / b.norm()) < bound
