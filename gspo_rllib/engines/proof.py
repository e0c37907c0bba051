"""Whether an engine samples from the weights it was sent: a short conversation, which the learner scores as well.

That a load reported success says little: a loader may know other names, write past the place it should, or leave out a
step that packs the weights for a kernel. What an engine samples says it all. So each engine answers a few requests
after its first weights, before its first trajectory: short ones beside a long one, then the long one's next turn on its
cached context. The learner's log-probabilities of the same ids may differ by rounding alone. Half of the short ones are
sampled hotter than the run, since a model that is sure of every token gives all of them a log-probability of 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gspo_rllib.engines.protocol import Engine, EngineSpec, Generation, GenerationRequest
from gspo_rllib.errors import WeightSyncError
from gspo_rllib.types import TokenTrajectory

_SHORT = (2, 3, 5, 8)  # tokens of the short prompts
_LONG, _LONGEST, _OBSERVED = 48, 256, 4  # tokens of the long prompt, and of what comes between its turns
_SAMPLED = 6  # tokens of every answer
_HOTTEST = 2.0  # temperature; vLLM takes no higher one
_NAMES_SHOWN = 8

# Largest and mean |difference| per token, in nats, that rounding explains. Of float32, the largest seen with a correct
# engine was 2e-5, the smallest error of a wrong one 7e-4. Of bfloat16, 0.7 (a router that picked another expert).
_EXACT = (1e-4, 1e-4)
_ROUNDED = (1.0, 0.25)
_QUANTISED = (3.0, 0.75)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What every engine of a run is asked, and how.

    Attributes:
        short: Prompts of requests that run beside the first.
        first: Prompt of the first turn; longer than a sliding window, where the model has a short one.
        observed: Ids that follow the first turn's answer and end the second turn's prompt.
        temperature: The run's temperature.
        learner_dtype: Precision of the learner's forward pass, ``"float32"`` or ``"bfloat16"``.
    """

    short: list[list[int]]
    first: list[int]
    observed: list[int]
    temperature: float
    learner_dtype: str = "float32"

    @classmethod
    def of(cls, config: Any, vocab_size: int, *, temperature: float, learner_dtype: str) -> Conversation:
        """The same ids for every model of this size.

        Args:
            config: The model's Hugging Face config.
            vocab_size: Ids run from 0 to ``vocab_size - 1``.
            temperature: The run's temperature.
            learner_dtype: Precision of the learner's forward pass.
        """
        settings = list(_settings(config.to_dict()))
        reserved = {value for name, value in settings if name.endswith(("token_id", "token_index"))}
        # From the middle: special tokens, images and padding are at either end of a vocabulary.
        ordinary = [i for i in range(vocab_size // 4, max(vocab_size // 2, 1)) if i not in reserved]
        draw = np.random.default_rng(0)
        edges = [value for name, value in settings if "window" in name or "chunk" in name or "original" in name]
        length = max([_LONG, *(edge + _SAMPLED for edge in edges if edge + _SAMPLED <= _LONGEST)])
        short = [draw.choice(ordinary or range(vocab_size), count).tolist() for count in _SHORT]
        first, observed = (draw.choice(ordinary or range(vocab_size), count).tolist() for count in (length, _OBSERVED))
        return cls(short, first, observed, temperature, learner_dtype)


@dataclass(frozen=True, slots=True)
class EngineSample:
    """What an engine answered.

    Attributes:
        spec: How the engine was built.
        version: Weights version it sampled with.
        prompts: Prompts of the requests.
        answers: The generation of each.
        temperatures: The temperature of each.
        unchanged: Names of the engine's tensors that loading all weights did not change, as far as it can tell.
    """

    spec: EngineSpec
    version: int | None
    prompts: list[list[int]] = field(default_factory=list)
    answers: list[Generation] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)
    unchanged: tuple[str, ...] = ()

    def trajectories(self) -> list[TokenTrajectory]:
        """The requests as the learner scores them."""
        return [_trajectory(p, a, i) for i, (p, a) in enumerate(zip(self.prompts, self.answers, strict=True))]


def converse(engine: Engine, spec: EngineSpec, conversation: Conversation) -> EngineSample:
    """Has an idle engine answer the conversation; a context that is too short for all of it gets its beginning.

    Args:
        engine: Holds weights and no requests.
        spec: How it was built.
        conversation: What to ask.

    Raises:
        EngineError: The engine failed.
    """
    unchanged = tuple(getattr(engine, "unchanged_tensors", ()))
    sample = EngineSample(spec, engine.weights_version, unchanged=unchanged)
    sampled = max(1, min(_SAMPLED, engine.max_model_len // 8))
    room = max(engine.max_model_len - 2 * sampled - len(conversation.observed), 1)
    first, own = conversation.first[:room], conversation.temperature
    heats = [own if number % 2 else max(own, min(2 * own, _HOTTEST)) for number in range(len(conversation.short))]
    _ask(engine, sample, [first, *(prompt[:room] for prompt in conversation.short)], [own, *heats], sampled)
    following = first + list(sample.answers[0].token_ids) + conversation.observed
    if len(following) + sampled <= engine.max_model_len:
        _ask(engine, sample, [following], [own], sampled)
    return sample


def _ask(
    engine: Engine, sample: EngineSample, prompts: list[list[int]], temperatures: list[float], max_tokens: int
) -> None:
    start = len(sample.prompts)
    sample.prompts.extend(prompts)
    sample.temperatures.extend(temperatures)
    for number, (prompt, temperature) in enumerate(zip(prompts, temperatures, strict=True), start):
        engine.submit(GenerationRequest(f"proof/{number}", prompt, max_tokens, temperature, number))
    done: dict[str, Generation] = {}
    while engine.has_work():
        done.update((generation.request_id, generation) for generation in engine.step())
    sample.answers.extend(done[f"proof/{number}"] for number in range(start, len(sample.prompts)))


@dataclass(frozen=True, slots=True)
class Gap:
    """How far the engine's log-probabilities are from the learner's, nats per token.

    Attributes:
        largest: The largest |difference|.
        mean: The mean |difference|.
        bounds: Largest and mean that rounding explains at these precisions.
    """

    largest: float
    mean: float
    bounds: tuple[float, float]

    @classmethod
    def between(cls, sample: EngineSample, scored: Sequence[np.ndarray], learner_dtype: str) -> Gap:
        """The gap between an engine's answers and what the learner makes of them.

        Args:
            sample: The engine's answers.
            scored: The learner's log-probabilities of the same ids, one array per answer.
            learner_dtype: Precision of the learner's forward pass.
        """
        engine = np.concatenate([answer.logp for answer in sample.answers])
        difference = np.abs(engine - np.concatenate(list(scored)))
        return cls(float(difference.max()), float(difference.mean()), _bounds(sample.spec, learner_dtype))

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains it; False where a number is NaN."""
        return self.largest <= self.bounds[0] and self.mean <= self.bounds[1]


def check_gap(sample: EngineSample, gap: Gap) -> None:
    """Refuses an engine that does not sample from the learner's policy.

    Args:
        sample: The engine's answers.
        gap: Their distance from the learner's log-probabilities.

    Raises:
        WeightSyncError: Rounding does not explain the gap.
    """
    if gap.is_rounding:
        return
    spec = sample.spec
    message = (
        f"engine {spec.engine!r} does not sample from the learner's policy, model {spec.model!r}: of the ids that it "
        f"sampled after its first weight update, its log-probabilities differ from the learner's by up to "
        f"{gap.largest:.2g} nats per token ({gap.mean:.2g} on average); rounding at these precisions (engine "
        f"{spec.dtype}) explains {gap.bounds[0]:g} ({gap.bounds[1]:g}). Either a part of the weights did not arrive, "
        "or the engine computes this model differently."
    )
    if sample.unchanged:
        more = len(sample.unchanged) - _NAMES_SHOWN
        message += (
            " Loading all weights did not change these tensors of the engine: "
            f"{', '.join(sample.unchanged[:_NAMES_SHOWN])}{f' and {more} more' if more > 0 else ''}."
        )
    raise WeightSyncError(message)


def _bounds(spec: EngineSpec, learner_dtype: str) -> tuple[float, float]:
    if any("quantiz" in name and value for name, value in spec.options.items()):
        return _QUANTISED
    reduced_cache = str(spec.options.get("kv_cache_dtype", "auto")) not in ("auto", spec.dtype)
    exact = spec.dtype == learner_dtype == "float32" and not reduced_cache
    return _EXACT if exact else _ROUNDED


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every integer of a config with its name, those of its parts too."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, int) and not isinstance(number, bool):
                yield str(name), number


def _trajectory(prompt: Sequence[int], answer: Generation, index: int) -> TokenTrajectory:
    sampled = len(answer.token_ids)
    zeros = np.zeros(sampled, dtype=np.float32)
    return TokenTrajectory(
        "proof",
        index,
        (np.array([*prompt, *answer.token_ids], dtype=np.int32),),
        (np.arange(len(prompt) + sampled) >= len(prompt),),
        np.zeros(sampled, dtype=np.int32),
        np.asarray(answer.logp, dtype=np.float32),
        0,
        np.zeros(1),
        zeros,
    )


def model_log_probs(model: Any, sample: EngineSample) -> list[np.ndarray]:
    """What a transformers model makes of an engine's answers, one by one, by its own attention and its full logits.

    Args:
        model: A causal language model in evaluation mode.
        sample: The engine's answers.
    """
    import torch

    from gspo_rllib.modules.own_attention import own_attention

    scored = []
    for prompt, answer, temperature in zip(sample.prompts, sample.answers, sample.temperatures, strict=True):
        ids = torch.tensor([prompt + list(answer.token_ids)], device=model.device)
        with torch.inference_mode(), own_attention(model):
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        logp = torch.log_softmax(logits / temperature, dim=-1)
        scored.append(logp.gather(1, ids[0, len(prompt) :, None]).squeeze(1).cpu().numpy())
    return scored


def names_in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names without those that differ from an earlier one by a layer's number alone.

    Example:
        >>> names_in_order(["layers.0.sinks", "layers.1.sinks", "norm"])
        ('layers.*.sinks', 'norm')
    """
    import re

    return tuple(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
