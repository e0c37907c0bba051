"""Drawing one token per request."""

from __future__ import annotations

import torch

from gspo_rllib.engines.sampling import sample_tokens


def test_evenly_spread_numbers_draw_each_token_as_often_as_it_is_likely() -> None:
    probability = torch.tensor([0.05, 0.5, 0.0, 0.3, 0.15])
    draws = 1000
    uniform = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws

    token, _ = sample_tokens(probability.log().expand(draws, -1), torch.ones(draws), uniform)

    assert torch.bincount(token, minlength=5).tolist() == [50, 500, 0, 300, 150]


def test_temperature_sharpens_what_is_drawn_and_what_is_reported() -> None:
    # Squaring 0.2 and 0.8 (temperature 1/2) gives 0.04 and 0.64: shares 1/17 and 16/17.
    logits = torch.tensor([[0.2, 0.8]]).log().expand(1700, -1)
    uniform = (torch.arange(1700, dtype=torch.float64) + 0.5) / 1700

    token, logp = sample_tokens(logits, torch.full((1700,), 0.5), uniform)

    assert (token == 0).sum() == 100
    torch.testing.assert_close(logp[token == 0].exp(), torch.full((100,), 1 / 17))


def test_the_edges_of_the_unit_interval_never_draw_an_impossible_token() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]]).expand(2, -1)

    token, logp = sample_tokens(logits, torch.ones(2), torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64))

    assert token.tolist() == [1, 2]
    assert logp.isfinite().all()


def test_a_large_vocabulary_keeps_its_rare_tokens_reachable() -> None:
    vocabulary = 150_000
    uniform = (torch.tensor([0, 74_999, 149_999], dtype=torch.float64) + 0.5) / vocabulary

    token, _ = sample_tokens(torch.zeros(3, vocabulary), torch.ones(3), uniform)

    assert token.tolist() == [0, 74_999, 149_999]


def test_greedy_and_sampled_requests_share_a_batch() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])

    token, logp = sample_tokens(logits, torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0], dtype=torch.float64))

    assert token.tolist() == [1, 0]
    # Greedy reports the temperature-1 distribution: 2 - log(1 + e^2 + e).
    torch.testing.assert_close(logp[0], torch.tensor(2 - 2.40760596), atol=1e-5, rtol=0)
