"""A policy with an adapter on every engine: exact after every update, as a whole model and as an adapter of vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.engines import registry
from gspo_rllib.engines.proof import Conversation, Gap, converse, model_log_probs
from gspo_rllib.engines.protocol import EngineSpec, Generation, GenerationRequest
from gspo_rllib.errors import EngineError, WeightSyncError
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.policy_state import adapter_state, inference_state
from tests.modules.adapted_policies import LORA, build, move
from tests.toy_envs.coin_env import CoinEnv

pytestmark = pytest.mark.vllm
LONG = list(range(20, 84))


@dataclass
class Policy:
    """An engine, and the policy that it is sent."""

    engine: Any
    spec: EngineSpec
    module: CausalLMModule
    swaps: bool
    version: int = 0

    def update(self, **how: Any) -> None:
        self.version += 1
        move(self.module, self.version)
        named = adapter_state(self.module) if self.swaps else inference_state(self.module, copy=True)
        self.engine.load_weights(named, self.version, **how)

    def gap(self) -> float:
        asked = Conversation.of(self.module.model.config, 320, temperature=1.0, learner_dtype="float32")
        sample = converse(self.engine, self.spec, asked)
        return Gap.between(sample, model_log_probs(self.module.model, sample), "float32").largest

    def ask(self, name: str, *, max_tokens: int = 8, seed: int = 0) -> None:
        self.engine.submit(GenerationRequest(name, LONG, max_tokens, 1.0, seed))

    def drain(self) -> list[Generation]:
        done = []
        while self.engine.has_work():
            done += self.engine.step()
        return done

    @property
    def folders(self) -> list[Path]:
        return list(Path(self.engine._folders.name).iterdir())


def _started(path: str, engine: str, lora: dict[str, Any], *, swaps: bool) -> Iterator[Policy]:
    if engine not in registry.available_engines():
        pytest.skip(f"{engine} is not installed")
    spec = EngineSpec(engine, path, "float32", 128, 4, (), seed=5, adapter_rank=lora["rank"] if swaps else None)
    held = registry.acquire(spec)
    yield Policy(held, spec, build(path, lora), swaps)
    registry.release(held)


@pytest.fixture(scope="module")
def swapping(tiny_dense: str) -> Iterator[Policy]:
    yield from _started(tiny_dense, "vllm", {"rank": 4}, swaps=True)


def test_a_swapped_adapter_is_exact_in_every_version_and_takes_no_keys_of_another(swapping: Policy) -> None:
    for _ in range(5):
        swapping.update()
        swapping.ask("first")
        (first,) = swapping.drain()
        swapping.ask("again")
        (again,) = swapping.drain()
        assert first.num_cached_tokens == 0 < again.num_cached_tokens
        assert first.token_ids == again.token_ids and first.token_versions is None
        assert swapping.gap() <= 1e-4


def test_requests_that_are_running_keep_their_adapter(swapping: Policy) -> None:
    swapping.update()
    old = swapping.version
    swapping.ask("alone", max_tokens=12)
    (alone,) = swapping.drain()
    swapping.ask("running", max_tokens=12)
    for _ in range(4):
        assert not swapping.engine.step()
    with pytest.raises(WeightSyncError, match="1 requests are unfinished"):
        swapping.engine.load_weights({}, 99)
    swapping.update(keep_running=True)
    swapping.ask("new", max_tokens=12)
    assert len(swapping.folders) == 2
    done = {generation.request_id: generation for generation in swapping.drain()}
    assert done["running"].token_ids == alone.token_ids
    np.testing.assert_allclose(done["running"].logp, alone.logp, atol=1e-4)
    assert done["running"].token_versions.tolist() == [old] * 12
    assert done["new"].token_versions is None and done["new"].token_ids != alone.token_ids
    swapping.ask("aborted", max_tokens=12)
    swapping.update(keep_running=True)
    swapping.engine.abort(["aborted", "unknown"])
    assert len(swapping.folders) == 1 and swapping.gap() <= 1e-4


def test_twenty_versions_leave_no_more_folders_than_adapters_that_run_at_once(swapping: Policy) -> None:
    for _ in range(20):
        swapping.update()
        swapping.ask("turn", max_tokens=1)
        swapping.drain()
    assert len(swapping.folders) == 1
    assert swapping.gap() <= 1e-4


def test_what_is_no_adapter_of_this_engine_is_refused_and_the_last_one_stays(swapping: Policy) -> None:
    swapping.update()
    with pytest.raises(WeightSyncError, match=r"built for adapters .*no adapter_config\.json.*adapter_sync='merged'"):
        swapping.engine.load_weights(inference_state(swapping.module, copy=True), 98)
    wide = build(swapping.spec.model, {"rank": 32})
    with pytest.raises(WeightSyncError, match="vLLM could not load the adapter"):
        swapping.engine.load_weights(adapter_state(wide), 98)
    assert swapping.engine.weights_version == swapping.version and len(swapping.folders) == 1
    assert swapping.gap() <= 1e-4


def test_a_fresh_adapter_proves_nothing_so_the_engine_is_asked_again(swapping: Policy) -> None:
    fresh = build(swapping.spec.model, {"rank": 4})
    swapping.engine.load_weights(adapter_state(fresh), swapping.version + 1)
    registry.mark_proven(swapping.engine)
    assert not registry.is_proven(swapping.engine)
    swapping.update()
    registry.mark_proven(swapping.engine)
    assert registry.is_proven(swapping.engine)


@pytest.mark.slow
def test_adapters_go_when_the_engine_is_closed(tiny_tied: str, swapping: Policy) -> None:
    folder = Path(swapping.engine._folders.name)
    assert folder.is_dir()
    registry.release(swapping.engine)
    assert not folder.exists()
    with pytest.raises(EngineError, match="the engine is closed"):
        swapping.engine.load_weights({}, 1)
    # A head that is tied to the embeddings, which both stay as they are.
    for policy in _started(tiny_tied, "vllm", {"rank": 4}, swaps=True):
        for _ in range(2):
            policy.update()
            assert policy.gap() <= 1e-4


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        *(("transformers", kind) for kind in ("tiny_dense", "tiny_tied")),
        pytest.param("transformers", "tiny_moe", marks=pytest.mark.slow),
        *(pytest.param("vllm", kind, marks=pytest.mark.slow) for kind in ("tiny_tied", "tiny_moe")),
    ],
)
def test_a_merged_adapter_is_exact_in_every_version(engine: str, kind: str, request: pytest.FixtureRequest) -> None:
    for policy in _started(request.getfixturevalue(kind), engine, LORA[kind], swaps=False):
        for _ in range(5):
            policy.update()
            assert policy.gap() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("remote", [0, 1])
def test_a_run_that_swaps_is_on_policy_in_every_iteration(tiny_dense: str, ray_local: None, remote: int) -> None:
    config = (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": tiny_dense, "lora": {"rank": 4}})
        .generation(engine="vllm", max_tokens_per_turn=6, max_model_len=128, adapter_sync="swap")
        .env_runners(num_env_runners=remote, num_envs_per_env_runner=4)
        .training(group_size=4, groups_per_iteration=2, num_minibatches=2, lr=1e-2, kl_coeff=0.05)
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    try:
        measured = [algorithm.train()["learners"]["default_policy"] for _ in range(3)]
        algorithm.set_state(algorithm.get_state())
        measured.append(algorithm.train()["learners"]["default_policy"])
    finally:
        algorithm.stop()
    assert all(result["logp_gap_max"] < 1e-4 for result in measured)
    assert measured[-1]["kl_to_reference"] > 1e-4
