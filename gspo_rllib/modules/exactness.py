"""Which way of scoring is exact for a model: all are compared with its own answer, and the fastest that agrees taken.

Its own answer is its own forward pass, attention and logits, in float32, one segment at a time. Its own attention is
``eager``, in its own file: transformers' others leave out what they do not know, such as soft caps, without a word.
Compared are log-probs, entropies and a gradient, in evaluation mode, at the policy's temperature, with activations
recomputed if they are to be. A way that raises anything does not work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gspo_rllib.errors import ModelError, SettingError, described
from gspo_rllib.modules.attention import PACKED, watched_windows
from gspo_rllib.modules.lens import lens, longest_unchanged, short_reach
from gspo_rllib.modules.own_attention import OWN, own_attention, with_attention
from gspo_rllib.modules.probe import Answer, Distance, Probe, largest, ordinary_ids, own_logits
from gspo_rllib.modules.recomputation import activations_kept
from gspo_rllib.modules.sampling_mode import checked_pass
from gspo_rllib.modules.scoring import Head, Rows, Scoring, score

logger = logging.getLogger(__name__)

NATS, GRADIENT = 1e-4, 1e-3
"""Largest distance that is float noise: of a log-probability, and of a gradient as a share of it. More of both where
the last digit of what goes into the layers moves a log-probability by more than the first."""

MOST_ROUNDING = 0.1
"""Nats that pass for float noise at most, however much the last digit moves."""

_LONG = 160
"""Tokens on which a model must be causal, too: sparse attention picks among few keys at random where scores tie."""

_verdicts: dict[str, Scoring] = {}
"""By class, config and settings: a process asks once."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the user set (``MODEL_CONFIG``) and what the run needs.

    Attributes:
        packing: True for packed rows only, False for none, None for whatever is exact.
        attention: transformers' name of an attention; None for ours in packed rows and the model's own elsewhere.
        shared_prefixes: True for shared prompts only, False for none, None for wherever they are exact.
        exact_head: Whether the head multiplies in float32.
        temperature: Divides the logits.
        max_tokens: Longest segment the run may make; None where nobody knows.
        recomputes: Whether activations are recomputed.
    """

    packing: bool | None = None
    attention: str | None = None
    shared_prefixes: bool | None = None
    exact_head: bool = False
    temperature: float = 1.0
    max_tokens: int | None = None
    recomputes: bool = False


def exact_scoring(models: Sequence[PreTrainedModel], tokenizer: Any, wanted: Wanted) -> Scoring:
    """The fastest exact way to score with a model, which is left with the attention that it takes.

    Args:
        models: The policy and, if there is one, its critic's trunk; freshly loaded.
        tokenizer: The policy's.
        wanted: Settings; a way that they rule out is not tried.

    Raises:
        ModelError: There is none, or none for segments as long as the run makes them.
        SettingError: None that the settings allow.
    """
    model = models[0]
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    key = repr((type(model), config, wanted))
    if key not in _verdicts:
        # Nothing of this may move the random state that decides the run.
        with torch.random.fork_rng(devices=[]), torch.autocast(model.device.type, enabled=False):
            _verdicts[key] = _Search(model, tokenizer, wanted).run()
    take_attention(models, _verdicts[key])
    return _verdicts[key]


def take_attention(models: Sequence[PreTrainedModel], scoring: Scoring) -> None:
    """Leaves models with the attention that a way to score them takes."""
    for model in models if scoring.attention is not None else ():
        model.set_attn_implementation(scoring.attention)


class _Search:
    def __init__(self, model: PreTrainedModel, tokenizer: Any, wanted: Wanted) -> None:
        self._model, self._wanted, self._attention = model, wanted, wanted.attention
        self._name = type(model).__name__
        self._tried: list[str] = []
        self._ids = ordinary_ids(model, tokenizer)
        made_for = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._context = wanted.max_tokens or made_for or _LONG
        # Without a run, positions that the model was not made for are looked at, too.
        self._longest = wanted.max_tokens or 4 * (made_for or 1 << 14)
        self._probe = Probe(self._ids, wanted.max_tokens or made_for, model.device)

    def run(self) -> Scoring:
        with self._understood("its own forward pass"), self._alone():
            checked_pass([self._model], lambda: own_logits(self._model, self._probe.longest))
        with lens(self._model, self._probe.longest):
            with self._alone():
                self._noise = self._rounding()
                limit = longest_unchanged(self._model, self._probe.shortest, self._longest, self._noise)
            self._check_length(limit)
            self._probe = Probe(self._ids, min(limit or self._longest, self._longest), self._model.device)
            own = self._own()
            with self._alone():
                self._check_causal(min(_LONG, limit or _LONG, self._context))
            self._check_attention(own)
            scoring = self._rows(own, self._head(own))
        scoring = dataclasses.replace(scoring, attention=scoring.attention or self._wanted.attention, max_tokens=limit)
        if self._tried:
            logger.warning("%s is scored by: %s. Not exact for it: %s.", self._name, scoring, "; ".join(self._tried))
        return scoring

    def _rounding(self) -> float:
        nats = self._probe.rounding(self._model)
        if nats <= NATS:
            return NATS
        with torch.no_grad():
            first, again = (own_logits(self._model, self._probe.longest).float() for _ in range(2))
        change = largest(first.log_softmax(-1) - again.log_softmax(-1))
        if change > NATS:
            raise ModelError(
                f"{self._name} scores the same tokens differently each time, by {change:.2g} nats, so there is no "
                "policy to train. Switch off in its config what is random in evaluation mode, or use another model."
            )
        return min(nats, MOST_ROUNDING)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The model as its authors wrote it, inside the block."""
        with activations_kept(), own_attention(self._model):
            yield

    @contextmanager
    def _understood(self, what: str) -> Iterator[None]:
        try:
            yield
        except ModelError:
            raise
        except Exception as error:  # foreign code
            raise ModelError(
                f"{self._name} cannot be trained: {what} on token ids alone raised {described(error, 300)}. Use a "
                "model that continues text."
            ) from error

    def _own(self) -> Answer:
        with self._understood("the gradient of its own forward pass"), self._alone():
            return checked_pass([self._model], lambda: self._probe.own_answer(self._model, self._wanted.temperature))

    def _check_length(self, limit: int | None) -> None:
        longest = self._wanted.max_tokens
        if limit is not None and longest is not None and longest > limit:
            raise ModelError(
                f"{self._name} scores a token by how long its context will become: at more than {limit} tokens its "
                f"positions are others, for the tokens before, too (long or dynamic RoPE), and max_model_len is "
                f"{longest}. A reply that crosses {limit} tokens was sampled from no distribution that one forward "
                f"pass scores. Set generation(max_model_len={limit})."
            )

    def _check_causal(self, longest: int) -> None:
        nats = self._change_by_the_rest(self._probe.longest)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.tensor(self._ids)[torch.randint(len(self._ids), (2, longest), generator=generator)]
        with contextlib.suppress(Exception):  # foreign code; its own context may be shorter than it says
            # Where one of both agrees, the other one was a router that rounding made pick another expert.
            nats = max(nats, min(self._change_by_the_rest(ids) for ids in drawn.to(self._model.device)))
        if not nats <= self._noise:
            raise ModelError(
                f"{self._name} scores a token by what comes after it: its own log-probabilities differ by {nats:.2g} "
                "nats with and without the rest of a segment, so what is sampled token by token is not what a forward "
                "pass scores. Use a causal language model; some are one by their config.json only (BERT and its kin: "
                '"is_decoder": true; sparse attention picks among ties where it has few heads: "index_n_heads").'
            )

    @torch.no_grad()
    def _change_by_the_rest(self, ids_T: Tensor) -> float:
        """Nats by which the first half of a segment is scored differently without the second."""
        half = len(ids_T) // 2
        whole, part = (own_logits(self._model, ids).float().log_softmax(-1) for ids in (ids_T, ids_T[:half]))
        return largest(whole[:half] - part)

    def _check_attention(self, own: Answer) -> None:
        """Takes the model's own attention where transformers' choice is another, and one that the user named on trust
        where only a GPU could run it."""
        distance = self._distance(own, Scoring(rows=Rows.SINGLE, head=Head.ALL, attention=self._attention))
        if self._attention is None and not self._is_noise(distance) and self._model._can_set_attn_implementation():
            self._tried.append(f"attention {self._model.config._attn_implementation!r} ({distance})")
            self._attention = OWN
        elif self._attention is not None and torch.cuda.is_available() and isinstance(distance, str):
            logger.warning("Attention %r is taken on trust, not compared: %s.", self._attention, distance)
            self._attention = None

    def _head(self, own: Answer) -> Head:
        """Where log-probabilities come from, found one segment at a time."""
        distances = []
        for head in Head:
            distance = self._distance(own, Scoring(rows=Rows.SINGLE, head=head, attention=self._attention))
            if self._is_noise(distance):
                break
            distances.append(distance)
        else:
            self._refuse(distances[-1])
        self._tried += [f"{tried.value} ({distance})" for tried, distance in zip(Head, distances, strict=False)]
        if self._wanted.exact_head and head is not Head.SPLIT:
            raise SettingError(
                f"rl_module.model_config['head_dtype'] is 'float32', but the head of {self._name} is more than one "
                f"matrix multiplication; as one, it is off by {distances[0]}. Set it to None."
            )
        return head

    def _refuse(self, distance: Distance | str) -> NoReturn:
        if self._wanted.attention is not None:
            raise SettingError(
                f"rl_module.model_config['attn_implementation'] is {self._wanted.attention!r}, which is not exact for "
                f"{self._name}: {distance}, compared with its own. Set it to None."
            )
        raise ModelError(
            f"{self._name} cannot be trained: no way to score its tokens gives what its own forward pass does, not "
            f"even its own logits, one segment at a time ({distance})."
            + (" Leave out activation_checkpointing and max_activation_gb." if self._wanted.recomputes else "")
        )

    def _rows(self, own: Answer, head: Head) -> Scoring:
        """The fastest exact rows."""
        wanted, before = self._wanted, len(self._tried)
        packed = Scoring(rows=Rows.PACKED, head=head, attention=PACKED if wanted.attention is None else self._attention)
        found = None if wanted.packing is False else self._packed(own, packed)
        why = "; ".join(self._tried[before:])
        if found is None and wanted.packing:
            raise SettingError(
                f"rl_module.model_config['packing'] is True, but packed rows are not exact for {self._name}: {why}. "
                "Set it to None."
            )
        if wanted.shared_prefixes and not (found and found.shares_prefixes):
            raise SettingError(
                f"rl_module.model_config['shared_prefixes'] is True, but {self._name} cannot share prompts as it is "
                f"configured: {why or 'that takes packed rows and our own attention (attn_implementation None)'}. Set "
                "it to None or False."
            )
        if found is not None:
            return found
        padded = Scoring(rows=Rows.PADDED, head=head, attention=self._attention)
        return padded if self._agrees(own, padded) else dataclasses.replace(padded, rows=Rows.SINGLE)

    def _packed(self, own: Answer, packed: Scoring) -> Scoring | None:
        with watched_windows() as windows:
            if not self._agrees(own, packed):
                return None
        with short_reach(self._model, self._probe.longest) as shortened:
            if shortened:
                try:
                    short = self._own()
                except ModelError as error:  # as it is, it was computed
                    self._tried.append(f"{packed.rows.value} (with shortened windows {error})")
                    return None
                if not self._agrees(short, packed):
                    return None
        if self._wanted.attention is not None or self._wanted.shared_prefixes is False:
            return packed
        shared = dataclasses.replace(packed, shares_prefixes=True, window=min(windows, default=None))
        return shared if self._agrees(own, shared) else packed

    def _agrees(self, own: Answer, scoring: Scoring) -> bool:
        distance = self._distance(own, scoring)
        if not self._is_noise(distance):
            self._tried.append(f"{scoring.rows.value}{' with shared prompts' * scoring.shares_prefixes} ({distance})")
        return self._is_noise(distance)

    def _is_noise(self, distance: Distance | str) -> bool:
        if isinstance(distance, str):
            return False
        return distance.nats <= self._noise and distance.gradient <= self._noise / NATS * GRADIENT

    def _distance(self, own: Answer, scoring: Scoring) -> Distance | str:
        """From the model's own answer; what it raised where there is none."""
        row = self._probe.shared if scoring.shares_prefixes else self._probe.packed
        score_row = functools.partial(
            score, self._model, row, scoring, temperature=self._wanted.temperature, exact_head=self._wanted.exact_head
        )
        try:
            with with_attention(self._model, scoring.attention):
                answer = self._probe.answer(self._model, lambda: score_row()[:2])
            return own.distance(answer)
        except Exception as error:  # noqa: BLE001  # foreign code: a way that raises is one that does not work
            return described(error, 200)
