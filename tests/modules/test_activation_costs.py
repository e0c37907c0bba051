"""Which part of a layer may be computed some tokens at a time, and how costs grow with a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gspo_rllib.modules.activation_costs import ActivationCosts, Observer


class _Alone(torch.nn.Module):
    """Treats each token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 64), torch.nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).tanh().exp())


class _Mixing(_Alone):
    """Looks at the tokens before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.cumsum(1))


class _Centred(_Alone):
    """Looks at all tokens of a row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(1, keepdim=True))


class _Two(_Alone):
    """Takes more than its input."""

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return super().forward(x * scale)


class _Layer(torch.nn.Module):
    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__()
        self.norm, self.part = torch.nn.LayerNorm(8), part

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return x + self.part(self.norm(x), **kwargs)


def _observed(layer: torch.nn.Module, tokens: int, **kwargs: Any) -> Observer:
    torch.manual_seed(0)
    x = torch.randn(1, tokens, 8, requires_grad=True)
    observer = Observer([layer], layer.parameters())
    with observer.watching(), observer.layer(0, (x,), {}):
        layer(x, **kwargs)
    return observer


@pytest.mark.parametrize(
    ("part", "kwargs", "expected"),
    [(_Alone, {}, "part"), (_Mixing, {}, None), (_Centred, {}, None), (_Two, {"scale": 2.0}, None)],
)
def test_only_a_part_that_treats_each_token_alone_is_done_in_tiles(
    part: type[torch.nn.Module], kwargs: dict[str, Any], expected: str | None
) -> None:
    assert _observed(_Layer(part()), 16, **kwargs).tokenwise == [expected]


def test_a_part_that_keeps_little_is_not_worth_tiles() -> None:
    layer = _Layer(torch.nn.Linear(8, 8))
    layer.norm = _Mixing()
    assert _observed(layer, 16).tokenwise == [None]


def test_what_is_saved_is_counted_once_and_weights_are_not() -> None:
    layer = _Layer(_Alone())
    seen = _observed(layer, 16)
    number = 4
    assert seen.entering[0] == 16 * 8 * number
    # The norm's input, its two statistics and its output; tanh's output, and exp's.
    assert seen.kept[0] == number * 16 * (8 + 2 + 8 + 64 + 64)
    assert seen.parts[0]["part"] == number * 16 * (8 + 64 + 64)


def test_costs_are_on_a_straight_line_through_what_was_observed() -> None:
    layer = _Layer(_Alone())
    costs = ActivationCosts.between(_observed(layer, 8), _observed(layer, 16), few=8, many=16)
    for tokens in (8, 16, 100):
        assert costs.at(tokens).kept[0] == pytest.approx(_observed(layer, tokens).kept[0])


def test_the_peak_is_the_largest_sum_at_any_time() -> None:
    costs = ActivationCosts(
        1, 2, *(np.array([[10.0] * 3, [1.0] * 3, [2.0] * 3, [4.0] * 3, [0.0] * 3]) * n for n in (1, 2))
    )
    at = costs.at(1)
    beside = 0.5 * 4 + 1
    assert at.peak(0) == 30 + beside
    # Two layers that keep everything are gone when the first is computed again.
    assert at.peak(1) == 1 + 20 + beside
    assert at.peak(3) == 3 + 10 - 1 + beside
    kept = at.with_attention_kept()
    assert kept is not None
    assert kept.peak(3) == 2 * 3 + 12 + beside
    tiled = at.in_tiles(costs.at(1))
    assert tiled is not None
    assert tiled.peak(3) == 2 + (10 - 4 + 1 + 4 * 1.5) + 1
