"""Surrogate objectives: what is maximised for one ratio and one advantage.

Shapes:  elementwise, any shape; clip bounds broadcast against it.
Source:  clip: Schulman et al. 2017, arXiv:1707.06347, with the asymmetric range of arXiv:2507.18071v2 §5.1;
         dual clip: Ye et al. 2019, arXiv:1912.09729; CISPO: MiniMax 2025, arXiv:2506.13585;
         soft gate (SAPO): arXiv:2511.20347; log clip (GMPO): arXiv:2507.20673v3, see ``token_clip``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gspo_rllib.ops.ratios import IMPORTANCE_SAMPLING_LEVELS
from gspo_rllib.ops.spans import Span
from gspo_rllib.ops.token_clip import hold_clipped_tokens

Surrogate = Literal["clip", "dual_clip", "cispo", "sapo", "policy_gradient", "log_clip"]
"""How ratio and advantage become an objective; each one's function is below."""

Bound = Float[Tensor, "..."] | float | int


def clipped_surrogate(
    ratio: Float[Tensor, "..."], advantage: Float[Tensor, "..."], *, clip_low: Bound, clip_high: Bound
) -> Float[Tensor, "..."]:
    """min(s A, clip(s, 1 - low, 1 + high) A): pessimistic, and flat (gradient 0) once the clip binds.

    Args:
        ratio: Importance ratio s, differentiable.
        advantage: Advantage A, constant.
        clip_low: How far below 1 the ratio may go while a negative advantage pushes it down.
        clip_high: How far above 1 it may go while a positive advantage pushes it up.

    Example:
        >>> clipped_surrogate(torch.tensor([1.5, 1.5]), torch.tensor([1.0, -1.0]), clip_low=0.1, clip_high=0.2)
        tensor([ 1.2000, -1.5000])
    """
    return torch.minimum(ratio * advantage, _clip(ratio, clip_low, clip_high) * advantage)


def dual_clipped_surrogate(
    ratio: Float[Tensor, "..."],
    advantage: Float[Tensor, "..."],
    *,
    clip_low: Bound,
    clip_high: Bound,
    dual_clip: float | int,
) -> Float[Tensor, "..."]:
    """``clipped_surrogate``, but never below c A where A is negative: a ratio that exploded cannot dominate.

    Args:
        ratio: Importance ratio s, differentiable.
        advantage: Advantage A, constant.
        clip_low: How far below 1 the ratio may go while a negative advantage pushes it down.
        clip_high: How far above 1 it may go while a positive advantage pushes it up.
        dual_clip: c, the largest ratio that a negative advantage is multiplied with; > 1.

    Example:
        >>> dual_clipped_surrogate(
        ...     torch.tensor([1.5, 9.0]), torch.tensor([-1.0, -1.0]), clip_low=0.1, clip_high=0.2, dual_clip=3.0)
        tensor([-1.5000, -3.0000])
    """
    clipped = clipped_surrogate(ratio, advantage, clip_low=clip_low, clip_high=clip_high)
    return torch.where(advantage < 0, torch.maximum(clipped, dual_clip * advantage), clipped)


def cispo_surrogate(
    ratio: Float[Tensor, "..."],
    advantage: Float[Tensor, "..."],
    logp: Float[Tensor, "..."],
    *,
    clip_low: Bound,
    clip_high: Bound,
) -> Float[Tensor, "..."]:
    """clip(s, 1 - low, 1 + high) A log p with the clipped ratio held constant: every token keeps a gradient.

    Args:
        ratio: Importance ratio s; no gradient flows through it.
        advantage: Advantage A, constant.
        logp: Log-probability (nats) of the token, differentiable.
        clip_low: How far below 1 the weight may go.
        clip_high: How far above 1 it may go.

    Example:
        >>> cispo_surrogate(torch.tensor([9.0]), torch.tensor([1.0]), torch.tensor([-0.5]), clip_low=1.0, clip_high=3.0)
        tensor([-2.])
    """
    return _clip(ratio, clip_low, clip_high).detach() * advantage * logp


def soft_gated_surrogate(
    ratio: Float[Tensor, "..."],
    advantage: Float[Tensor, "..."],
    *,
    temperature_positive: float | int,
    temperature_negative: float | int,
) -> Float[Tensor, "..."]:
    """4/tau sigmoid(tau (s - 1)) A: slope A at s = 1, fading smoothly on both sides instead of being cut off.

    Args:
        ratio: Importance ratio s, differentiable.
        advantage: Advantage A, constant.
        temperature_positive: tau where A > 0; larger fades faster.
        temperature_negative: tau elsewhere.

    Example:
        >>> soft_gated_surrogate(
        ...     torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0]), temperature_positive=1.0, temperature_negative=2.0)
        tensor([ 2., -1.])
    """
    positive = torch.full_like(ratio, temperature_positive)
    temperature = torch.where(advantage > 0, positive, torch.full_like(ratio, temperature_negative))
    return 4.0 / temperature * torch.sigmoid(temperature * (ratio - 1.0)) * advantage


class SurrogateKnobs(NamedTuple):
    """The numbers that surrogates are set with; each uses some of them. See ``surrogate_objective``."""

    clip_low: Bound
    clip_high: Bound
    dual_clip: float | int = 3.0
    sapo_temperature_positive: float | int = 1.0
    sapo_temperature_negative: float | int = 1.05


def _clip_objective(ratio: Tensor, advantage: Tensor, logp: Tensor, knobs: SurrogateKnobs) -> Tensor:
    return clipped_surrogate(ratio, advantage, clip_low=knobs.clip_low, clip_high=knobs.clip_high)


def _dual_clip_objective(ratio: Tensor, advantage: Tensor, logp: Tensor, knobs: SurrogateKnobs) -> Tensor:
    if not knobs.dual_clip > 1:
        raise ValueError(f"dual_clip={knobs.dual_clip!r}; allowed: a ratio > 1")
    return dual_clipped_surrogate(
        ratio, advantage, clip_low=knobs.clip_low, clip_high=knobs.clip_high, dual_clip=knobs.dual_clip
    )


def _cispo_objective(ratio: Tensor, advantage: Tensor, logp: Tensor, knobs: SurrogateKnobs) -> Tensor:
    return cispo_surrogate(ratio, advantage, logp, clip_low=knobs.clip_low, clip_high=knobs.clip_high)


def _soft_gate_objective(ratio: Tensor, advantage: Tensor, logp: Tensor, knobs: SurrogateKnobs) -> Tensor:
    positive, negative = knobs.sapo_temperature_positive, knobs.sapo_temperature_negative
    if not min(positive, negative) > 0:
        got = f"{positive!r} and sapo_temperature_negative={negative!r}"
        raise ValueError(f"sapo_temperature_positive={got}; allowed: both > 0")
    return soft_gated_surrogate(ratio, advantage, temperature_positive=positive, temperature_negative=negative)


def _plain_objective(ratio: Tensor, advantage: Tensor, logp: Tensor, knobs: SurrogateKnobs) -> Tensor:
    return ratio * advantage


_Sides = tuple[Tensor, Tensor]
"""Below the range, and above it: boolean tensors of one shape."""


def _outside(ratio: Tensor, advantage: Tensor, knobs: SurrogateKnobs) -> _Sides:
    return ratio < 1.0 - knobs.clip_low, ratio > 1.0 + knobs.clip_high


def _where_the_clip_is_flat(ratio: Tensor, advantage: Tensor, knobs: SurrogateKnobs) -> _Sides:
    low, high = _outside(ratio, advantage, knobs)
    return low & (advantage < 0), high & (advantage > 0)


def _where_the_dual_clip_is_flat(ratio: Tensor, advantage: Tensor, knobs: SurrogateKnobs) -> _Sides:
    low, high = _where_the_clip_is_flat(ratio, advantage, knobs)
    return low, high | ((ratio > knobs.dual_clip) & (advantage < 0))


def _nowhere(ratio: Tensor, advantage: Tensor, knobs: SurrogateKnobs) -> _Sides:
    nowhere = torch.zeros_like(ratio, dtype=torch.bool)
    return nowhere, nowhere.clone()


def _hold(logp: Tensor, old_logp: Tensor, advantage: Tensor, knobs: SurrogateKnobs) -> tuple[Tensor, _Sides]:
    return hold_clipped_tokens(logp, old_logp, advantage, clip_low=knobs.clip_low, clip_high=knobs.clip_high)


@dataclasses.dataclass(frozen=True)
class SurrogateTraits:
    """What follows from a surrogate.

    Attributes:
        objective: Ratio, advantage, log-probability and knobs -> what is maximised, per token.
        binding: Ratio, advantage and knobs -> where its clip has an effect, below the range and above it.
        hold: Log-probabilities, old ones, advantage and knobs -> the log-probabilities that the ratio is made of, and
            where the clip has an effect; None: the ratio itself is clipped.
        clips_gradient: Whether a token outside ``clip_low`` … ``clip_high`` loses its gradient.
        clip_span: The tokens that share one decision of the clip; None: those that share a ratio.
        has_ceiling: Whether ``dual_clip`` bounds the ratio of a negative advantage.
        gates: Whether the ``sapo_temperature_…`` shape it.
        bounds_policy: Whether anything keeps the policy near the one that sampled, however many steps are taken.
        token_range: A ``clip_low`` and ``clip_high`` for single tokens that are known to work, and whose they are.
    """

    objective: Callable[[Tensor, Tensor, Tensor, SurrogateKnobs], Tensor]
    binding: Callable[[Tensor, Tensor, SurrogateKnobs], _Sides] = _nowhere
    hold: Callable[[Tensor, Tensor, Tensor, SurrogateKnobs], tuple[Tensor, _Sides]] | None = None
    clips_gradient: bool = False
    clip_span: Span | None = None
    has_ceiling: bool = False
    gates: bool = False
    bounds_policy: bool = True
    token_range: str = "GRPO uses 0.2 and 0.28"

    @property
    def has_range(self) -> bool:
        """Whether ``clip_low`` and ``clip_high`` change anything."""
        return self.binding is not _nowhere or self.hold is not None


SURROGATES: dict[str, SurrogateTraits] = {
    "clip": SurrogateTraits(_clip_objective, _where_the_clip_is_flat, clips_gradient=True),
    "dual_clip": SurrogateTraits(
        _dual_clip_objective, _where_the_dual_clip_is_flat, clips_gradient=True, has_ceiling=True
    ),
    "cispo": SurrogateTraits(_cispo_objective, _outside),
    "sapo": SurrogateTraits(_soft_gate_objective, gates=True),
    "policy_gradient": SurrogateTraits(_plain_objective, bounds_policy=False),
    "log_clip": SurrogateTraits(
        _plain_objective,
        hold=_hold,
        clips_gradient=True,
        clip_span=Span.TOKEN,
        token_range="GMPO uses 0.4 and 0.4, which are of each token's log-ratio",
    ),
}
"""Every ``Surrogate`` and what follows from it."""


def surrogate_traits(surrogate: str) -> SurrogateTraits:
    """What follows from that name.

    Args:
        surrogate: A name in ``SURROGATES``.

    Raises:
        ValueError: An unknown surrogate.
    """
    if surrogate not in SURROGATES:
        raise ValueError(f"surrogate={surrogate!r}; allowed: {', '.join(SURROGATES)}")
    return SURROGATES[surrogate]


def clip_span(importance_sampling_level: str, surrogate: str) -> Span:
    """The tokens that share one decision of the clip, and hence the scale of its range.

    Args:
        importance_sampling_level: A name in ``IMPORTANCE_SAMPLING_LEVELS``.
        surrogate: A name in ``SURROGATES``.

    Example:
        >>> clip_span("sequence_token", "clip").name
        'TRAJECTORY'
    """
    own = SURROGATES[surrogate].clip_span
    return IMPORTANCE_SAMPLING_LEVELS[importance_sampling_level].span if own is None else own


def surrogate_objective(
    ratio: Float[Tensor, "..."],
    advantage: Float[Tensor, "..."],
    logp: Float[Tensor, "..."],
    *,
    surrogate: Surrogate,
    clip_low: Bound,
    clip_high: Bound,
    dual_clip: float | int = 3.0,
    sapo_temperature_positive: float | int = 1.0,
    sapo_temperature_negative: float | int = 1.05,
) -> Float[Tensor, "..."]:
    """The surrogate of that name; ``"policy_gradient"`` is s A, without a clip, and so is ``"log_clip"`` at this point.

    Args:
        ratio: Importance ratio s, differentiable.
        advantage: Advantage A, constant.
        logp: Log-probability (nats) of the token, differentiable; only ``"cispo"`` uses it.
        surrogate: ``"clip"`` | ``"dual_clip"`` | ``"cispo"`` | ``"sapo"`` | ``"policy_gradient"`` | ``"log_clip"``,
            whose clip comes before the ratio: ``hold_clipped_tokens``.
        clip_low: Ratio range below 1.
        clip_high: Ratio range above 1.
        dual_clip: c of ``"dual_clip"``; > 1.
        sapo_temperature_positive: tau of ``"sapo"`` where A > 0; > 0.
        sapo_temperature_negative: tau of ``"sapo"`` elsewhere; > 0.

    Raises:
        ValueError: An unknown surrogate, or a number outside its range.
    """
    knobs = SurrogateKnobs(clip_low, clip_high, dual_clip, sapo_temperature_positive, sapo_temperature_negative)
    return surrogate_traits(surrogate).objective(ratio, advantage, logp, knobs)


def binding_clip(
    ratio: Float[Tensor, "..."],
    advantage: Float[Tensor, "..."],
    *,
    clip_low: Bound,
    clip_high: Bound,
    surrogate: Surrogate = "clip",
    dual_clip: float | int = 3.0,
) -> tuple[Tensor, Tensor]:
    """Where the clip has an effect: below the range, and above it. Boolean tensors of the same shape.

    For ``"clip"`` and ``"dual_clip"`` that is where the gradient is 0; for ``"cispo"`` where the weight is not the
    ratio itself (the gradient stays); ``"sapo"`` and ``"policy_gradient"`` have no clip, and ``"log_clip"`` none of a
    ratio, see ``hold_clipped_tokens``.

    Args:
        ratio: Importance ratio s.
        advantage: Advantage A.
        clip_low: Ratio range below 1.
        clip_high: Ratio range above 1.
        surrogate: The surrogate whose clip is meant, by name.
        dual_clip: c of ``"dual_clip"``.

    Example:
        >>> binding_clip(torch.tensor([1.5, 1.5]), torch.tensor([1.0, -1.0]), clip_low=0.1, clip_high=0.2)
        (tensor([False, False]), tensor([ True, False]))
    """
    return surrogate_traits(surrogate).binding(ratio, advantage, SurrogateKnobs(clip_low, clip_high, dual_clip))


def _clip(ratio: Tensor, clip_low: Bound, clip_high: Bound) -> Tensor:
    low, high = 1.0 - clip_low, 1.0 + clip_high
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        # clamp takes two tensors or two numbers.
        return ratio.clamp(torch.as_tensor(low).to(ratio), torch.as_tensor(high).to(ratio))
    return ratio.clamp(low, high)
