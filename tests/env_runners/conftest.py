"""Fixtures of the env runner's tests: a real engine that notes what it was asked, and groups played on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.engines.transformers import TransformersEngine
from gspo_rllib.env_pool.pool import EnvPool
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.group_scheduler import GroupScheduler
from gspo_rllib.env_runners.rollout import Rollout
from gspo_rllib.env_runners.rollout_stats import RolloutStats
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.types import ChatSpec
from tests.env_runners.recording_engine import MAX_MODEL_LEN, RecordingEngine
from tests.env_runners.small_runner import Weights


@pytest.fixture(scope="module")
def renderer(tiny_dense: str) -> ChatRenderer:
    return ChatRenderer(load_tokenizer(tiny_dense))


@pytest.fixture(scope="module")
def loaded_engine(tiny_dense: str, renderer: ChatRenderer) -> Iterator[TransformersEngine]:
    from transformers import AutoModelForCausalLM

    engine = TransformersEngine(
        EngineSpec("transformers", tiny_dense, "float32", MAX_MODEL_LEN, 8, renderer.stop_token_ids)
    )
    state = AutoModelForCausalLM.from_pretrained(tiny_dense, dtype="float32").state_dict()
    engine.load_weights({name: tensor.numpy() for name, tensor in state.items()}, 4)
    yield engine
    engine.close()


@pytest.fixture
def engine(loaded_engine: TransformersEngine) -> RecordingEngine:
    assert not loaded_engine.has_work(), "an earlier rollout left requests behind"
    return RecordingEngine(loaded_engine)


@pytest.fixture
def play(engine: RecordingEngine, renderer: ChatRenderer, tiny_dense: str) -> Iterator[Callable[..., Any]]:
    """Plays groups on an environment; returns the episodes and the statistics."""
    pools: list[EnvPool] = []
    tokenizer = load_tokenizer(tiny_dense)

    def renderer_for(chat: ChatSpec | None) -> ChatRenderer:
        return renderer if chat is None else ChatRenderer(tokenizer, chat)

    def run(
        env: Callable[[], Any],
        groups: int = 2,
        group_size: int = 3,
        slots: int = 8,
        *,
        blocking: bool = False,
        timeout: float = 20.0,
        retries: int = 1,
        ragged: bool = False,
        observer: Any = None,
        **settings: Any,
    ) -> tuple[list[SingleAgentEpisode], RolloutStats]:
        engine.requests.clear()
        pool = EnvPool(env, slots, blocking=blocking, step_timeout_s=timeout)
        pools.append(pool)
        scheduler: GroupScheduler[SingleAgentEpisode] = GroupScheduler(
            [f"it/{n}" for n in range(groups)],
            group_size=group_size,
            run_seed=0,
            role="train",
            trajectory_retries=retries,
            ragged_groups=ragged,
        )
        options = GenerationSettings(**({"temperature": 1.0, "max_tokens_per_turn": 6} | settings))
        stats = Rollout(engine, pool, renderer_for, options, run_seed=0, observer=observer).run(scheduler)
        return stats.episodes, stats

    yield run
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def weights(tiny_dense: str) -> Weights:
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(tiny_dense, dtype="float32").state_dict()
    return {name: tensor.numpy().copy() for name, tensor in state.items()}
