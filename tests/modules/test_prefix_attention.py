"""Shared prompts: computed once per row, and nothing the learner sees changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, Qwen3Config

from gspo_rllib import columns
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.connectors.scoring import score
from gspo_rllib.envs import UnicodeText
from gspo_rllib.errors import SettingError
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.modules.causal_lm import CausalLMModule
from gspo_rllib.modules.model_config import check_model_config
from gspo_rllib.modules.prefix_attention import PrefixSharing, prefix_attention
from gspo_rllib.packing import pack, packed_rows, plan_families
from gspo_rllib.types import TokenTrajectory, group_episodes, turns
from tests.episodes import make_episode

ALWAYS = PrefixSharing(min_token_ratio=1.0)
VOCABULARY = 256


def _member(group: str, index: int, *segments: list[int], prompt: int) -> TokenTrajectory:
    """A trajectory of segments given as alternating numbers of shown and sampled tokens; the prompt comes first."""
    rng, of_group = np.random.default_rng([index, *group.encode()]), np.random.default_rng([*group.encode()])
    ids, masks = [], []
    for number, parts in enumerate(segments):
        start = of_group.integers(0, VOCABULARY, prompt) if number == 0 else rng.integers(0, VOCABULARY, 3)
        mask = [np.zeros(len(start), bool), *(np.full(n, i % 2 == 1) for i, n in enumerate(parts))]
        ids.append(np.concatenate([start, rng.integers(0, VOCABULARY, sum(parts))]).astype(np.int32))
        masks.append(np.concatenate(mask))
    sampled = sum(int(mask.sum()) for mask in masks)
    return TokenTrajectory(
        group_id=group,
        index=index,
        segments=tuple(ids),
        loss_masks=tuple(masks),
        turn_index=np.zeros(sampled, np.int64),
        behavior_logp=-rng.random(sampled).astype(np.float32),
        behavior_version=0,
        turn_rewards=np.zeros(1),
        advantages=rng.normal(size=sampled).astype(np.float32),
    )


def _ragged(group: str, prompt: int, sizes: list[int]) -> list[TokenTrajectory]:
    return [_member(group, i, [0, n], prompt=prompt) for i, n in enumerate(sizes)]


CASES: dict[str, list[TokenTrajectory]] = {
    "one group": _ragged("a", 12, [5, 5, 5]),
    "ragged groups": [*_ragged("a", 9, [4, 11, 1, 7]), *_ragged("b", 30, [3, 3, 8]), *_ragged("c", 5, [40, 2])],
    "interleaved groups": [*_ragged("a", 9, [4, 6]), *_ragged("b", 7, [5, 3]), *_ragged("a", 9, [1, 2, 8])[2:]],
    "beside a group of one": [*_ragged("a", 8, [4, 6]), *_ragged("b", 6, [9])],
    "turns after the first": [_member("a", i, [0, 3, 4, 2 + i], prompt=10) for i in range(3)],
    "some edit their history": [
        _member("a", 0, [0, 3, 2, 4], [0, 5], prompt=11),
        _member("a", 1, [0, 6], prompt=11),
        _member("a", 2, [0, 2], [1, 4], [2, 3], prompt=11),
    ],
    "a prompt of one token": _ragged("a", 1, [6, 4, 9]),
    "an own token before the first sampled": [_member("a", i, [1, 3 + i], prompt=10) for i in range(3)],
    "branches of one token": _ragged("a", 15, [1, 1, 1]),
}
"""By what is special about them; every one has something to share."""


def _module(path: str, **model_config: Any) -> CausalLMModule:
    text = gym.spaces.Text(1)
    settings = {"path": path, "temperature": 0.9, **model_config}
    spec = RLModuleSpec(CausalLMModule, observation_space=text, action_space=text, model_config=settings)
    module = spec.build()
    if module.critic is not None:
        with torch.no_grad():
            for parameter in module.critic.value_head.parameters():
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return module.train()


@pytest.fixture(scope="module", params=["grouped heads", "as many key as query heads"])
def folder(request: pytest.FixtureRequest, tiny_dense: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folders of random models with grouped and with ungrouped heads."""
    if request.param == "grouped heads":
        return tiny_dense
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 12}
    config = Qwen3Config(
        vocab_size=320, num_attention_heads=4, num_key_value_heads=4, initializer_range=0.3, tie_word_embeddings=True,
        **sizes,
    )  # fmt: skip
    return _save(config, tiny_dense, tmp_path_factory)


def _save(config: Any, tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("model"))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(path)
    return path


def _step(
    module: CausalLMModule, trajectories: list[TokenTrajectory], sharing: PrefixSharing | None, max_tokens: int = 10**6
) -> tuple[dict[str, dict[tuple[str, int], torch.Tensor]], torch.Tensor, dict[str, torch.Tensor]]:
    """Outputs by trajectory, loss and gradients of all rows."""
    module.zero_grad(set_to_none=True)
    outputs: dict[str, dict[tuple[str, int], torch.Tensor]] = {}
    total = torch.zeros(())
    for members, row in packed_rows(trajectories, max_tokens=max_tokens, sharing=sharing):
        out = module._forward_train(row)
        loss = (out[columns.LOGP] * row[columns.ADVANTAGES]).sum() + 0.1 * out[columns.ENTROPY].sum()
        if columns.VALUES in out:
            loss = loss + out[columns.VALUES].square().sum()
        loss.backward()
        total += loss.detach()
        counts = [trajectories[i].num_loss_tokens for i in members]
        for name, value_L in out.items():
            for i, part in zip(members, value_L.detach().split(counts), strict=True):
                outputs.setdefault(name, {})[trajectories[i].group_id, trajectories[i].index] = part
    return outputs, total, {name: p.grad for name, p in module.named_parameters()}


def _assert_same_step(got: Any, expected: Any, *, outputs: float = 2e-6, gradients: float = 1e-5) -> None:
    for name, by_trajectory in expected[0].items():
        for trajectory, value_L in by_trajectory.items():
            torch.testing.assert_close(got[0][name][trajectory], value_L, atol=outputs, rtol=outputs)
    torch.testing.assert_close(got[1], expected[1], atol=outputs, rtol=gradients)
    assert got[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        size = float(gradient.abs().max())
        assert size > 0
        torch.testing.assert_close(
            got[2][name], gradient, rtol=0, atol=gradients * size, msg=lambda m, n=name: f"{n}: {m}"
        )


def _shared(trajectories: list[TokenTrajectory]) -> int:
    families = plan_families(trajectories, 10**6, ALWAYS)
    return sum(t.num_tokens for t in trajectories) - sum(family.num_tokens for family in families)


@pytest.mark.parametrize("case", CASES)
def test_sharing_changes_no_score_and_no_gradient(folder: str, case: str) -> None:
    module, trajectories = _module(folder), CASES[case]
    assert _shared(trajectories) > 0
    _assert_same_step(_step(module, trajectories, ALWAYS), _step(module, trajectories, None))


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_checkpointing": True},
        {"use_critic": True},
        {"use_critic": True, "vf_share_layers": True},
    ],
    ids=["checkpointing", "critic", "critic on shared layers"],
)
def test_sharing_changes_nothing_with(settings: dict[str, Any], tiny_dense: str) -> None:
    module, trajectories = _module(tiny_dense, **settings), CASES["some edit their history"]
    _assert_same_step(_step(module, trajectories, ALWAYS), _step(module, trajectories, None))


def test_sharing_changes_nothing_for_a_mixture_of_experts(tiny_moe: str) -> None:
    module, trajectories = _module(tiny_moe), CASES["ragged groups"]
    _assert_same_step(_step(module, trajectories, ALWAYS), _step(module, trajectories, None))


def test_under_bf16_autocast_sharing_is_as_near_to_float32_as_the_plain_path(tiny_dense: str) -> None:
    trajectories = CASES["ragged groups"]
    exact = _step(_module(tiny_dense), trajectories, None)
    module = _module(tiny_dense, autocast_dtype="bfloat16")

    def error(step: Any) -> tuple[float, float]:
        logp = torch.cat([step[0][columns.LOGP][key] - value for key, value in exact[0][columns.LOGP].items()])
        gradient = torch.cat([(step[2][name] - value).flatten() for name, value in exact[2].items()])
        return float(logp.square().mean().sqrt()), float(gradient.norm())

    plain, shared = error(_step(module, trajectories, None)), error(_step(module, trajectories, ALWAYS))
    assert 0 < plain[0] < 0.2
    assert shared[0] < 1.5 * plain[0]
    assert shared[1] < 1.5 * plain[1]


def test_a_branch_sees_its_prompt_and_no_other_branch(tiny_dense: str) -> None:
    module, before = _module(tiny_dense), [*_ragged("a", 9, [6, 6, 8]), *_ragged("b", 4, [5, 5])]
    changed = before[1].segments[0].copy()
    changed[9:] = (changed[9:] + 100) % VOCABULARY
    after = [*before[:1], dataclasses.replace(before[1], segments=(changed,)), *before[2:]]
    old, new = (_step(module, t, ALWAYS)[0][columns.LOGP] for t in (before, after))
    assert float((old["a", 1] - new["a", 1]).abs().max()) > 0.1
    for key in [("a", 0), ("a", 2), ("b", 0), ("b", 1)]:
        torch.testing.assert_close(new[key], old[key], rtol=0, atol=1e-7)
    # All of them do see the prompt.
    prompts = [t.segments[0].copy() for t in before]
    for ids in prompts[:3]:
        ids[0] = (ids[0] + 100) % VOCABULARY
    moved = [dataclasses.replace(t, segments=(ids,)) for t, ids in zip(before, prompts, strict=True)]
    new = _step(module, moved, ALWAYS)[0][columns.LOGP]
    assert all(float((old["a", i] - new["a", i]).abs().max()) > 1e-3 for i in range(3))
    torch.testing.assert_close(new["b", 0], old["b", 0], rtol=0, atol=1e-7)


def test_scores_far_apart_stay_finite() -> None:
    """The two parts of a branch differ by hundreds of nats: one of them weighs nothing, and its gradient is 0."""
    lengths, prefixes = [3, 2, 2], [-1, 0, 0]
    query, value = torch.ones(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    key = torch.ones(1, 2, 7, 8)
    key[:, :, :3] *= -300.0
    for tensor in (query, key, value):
        tensor.requires_grad_()
    out = prefix_attention(query, key, value, segment_lengths=lengths, segment_prefixes=prefixes)
    out[:, :, 3:].sum().backward()
    for tensor in (out, query.grad, key.grad, value.grad):
        assert torch.isfinite(tensor).all()
    assert value.grad[:, :, :3].abs().max() == 0
    torch.testing.assert_close(out[:, :, 3], value[:, :, 3])


def test_a_row_holds_the_prompt_once_and_every_sampled_token_where_it_is_predicted() -> None:
    trajectories = CASES["some edit their history"]
    ((members, row),) = packed_rows(trajectories, max_tokens=10**6, sharing=ALWAYS)
    ids, positions, prefixes = row[columns.TOKEN_IDS], row[columns.POSITION_IDS], row[columns.SEGMENT_PREFIXES]
    assert sorted(members) == [0, 1, 2]
    assert prefixes == [-1, 0, 0, 0, -1, -1, -1]
    assert row[columns.SEGMENT_LENGTHS][0] == 11
    assert sum(row[columns.SEGMENT_LENGTHS]) == len(ids) == sum(t.num_tokens for t in trajectories) - 2 * 11
    for start, prefix in zip(np.cumsum([0, *row[columns.SEGMENT_LENGTHS][:-1]]), prefixes, strict=True):
        assert positions[start] == (11 if prefix == 0 else 0)
    sampled = np.concatenate([ids[mask] for i in members for ids, mask in zip(
        trajectories[i].segments, trajectories[i].loss_masks, strict=True)])  # fmt: skip
    assert row[columns.LOSS_TOKEN_IDS].tolist() == sampled.tolist()
    starts = [int(np.flatnonzero(row[columns.TRAJECTORY_INDEX] == b)[0]) for b in range(3)]
    assert row[columns.LOSS_POSITIONS][starts].tolist() == [10, 10, 10]
    inside = row[columns.LOSS_POSITIONS] != 10
    after = row[columns.LOSS_POSITIONS][inside] + 1
    assert ids[after].tolist() == row[columns.LOSS_TOKEN_IDS][inside].tolist()


def test_a_group_larger_than_the_budget_takes_its_prompt_into_every_row(tiny_dense: str) -> None:
    trajectories = [*_ragged("a", 20, [10, 12, 9, 11, 10, 8]), *_ragged("b", 30, [25, 25])]
    rows = [row for _, row in packed_rows(trajectories, max_tokens=60, sharing=ALWAYS)]
    assert max(len(row[columns.TOKEN_IDS]) for row in rows) <= 60
    assert [columns.SEGMENT_PREFIXES in row for row in rows].count(True) == 2
    assert sum(len(row[columns.BEHAVIOR_VERSION]) for row in rows) == 8
    module = _module(tiny_dense)
    _assert_same_step(_step(module, trajectories, ALWAYS, max_tokens=60), _step(module, trajectories, None))


def test_sharing_is_chosen_by_the_tokens_it_saves() -> None:
    trajectories = _ragged("a", 10, [10, 10])  # 40 tokens apart, 30 together
    assert [f.num_tokens for f in plan_families(trajectories, 100, PrefixSharing(1.3))] == [30]
    assert [f.num_tokens for f in plan_families(trajectories, 100, PrefixSharing(1.4))] == [20, 20]


def test_a_window_shorter_than_a_trajectory_keeps_its_group_apart() -> None:
    trajectories = _ragged("a", 10, [10, 12])
    assert len(plan_families(trajectories, 100, PrefixSharing(1.0, max_segment_tokens=22))) == 1
    assert len(plan_families(trajectories, 100, PrefixSharing(1.0, max_segment_tokens=21))) == 2


def test_different_prompts_share_what_they_have_in_common() -> None:
    one, other = _ragged("a", 10, [6, 6])
    ids = other.segments[0].copy()
    ids[4] += 1
    (family,) = plan_families([one, dataclasses.replace(other, segments=(ids,))], 100, ALWAYS)
    assert family.prefix_tokens == 4
    ids[0] += 1
    assert len(plan_families([one, dataclasses.replace(other, segments=(ids,))], 100, ALWAYS)) == 2


def test_without_sharing_rows_are_as_before(tiny_dense: str) -> None:
    assert _module(tiny_dense, shared_prefixes=False).prefix_sharing() is None
    trajectories = CASES["one group"]
    ((_, row),) = packed_rows(trajectories, max_tokens=10**6, sharing=None)
    assert columns.SEGMENT_PREFIXES not in row
    assert row[columns.TOKEN_IDS].tolist() == pack(trajectories)[columns.TOKEN_IDS].tolist()


def test_scoring_without_a_gradient_shares_too(tiny_dense: str) -> None:
    module, trajectories = _module(tiny_dense), CASES["ragged groups"]
    seen = []

    def forward(row: dict[str, Any]) -> torch.Tensor:
        seen.append(len(row[columns.TOKEN_IDS]))
        return module._forward(row)[columns.LOGP]

    apart, shared = (score(trajectories, forward, max_tokens=500, device="cpu", sharing=s) for s in (None, ALWAYS))
    assert seen[1] == seen[0] - _shared(trajectories)
    for a, b in zip(apart, shared, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("settings", [{"packing": False}, {"attn_implementation": "sdpa"}], ids=str)
def test_a_model_that_cannot_share_does_not_and_says_so_when_told_to(tiny_dense: str, settings: dict[str, Any]) -> None:
    assert _module(tiny_dense, **settings).prefix_sharing() is None
    with pytest.raises(SettingError, match=r"shared_prefixes'\] is True, but .* cannot share"):
        _module(tiny_dense, shared_prefixes=True, **settings)


def test_a_window_is_heeded_and_dropout_which_no_policy_has_keeps_no_groups_apart(
    tiny_dense: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    common = {"vocab_size": 320, "num_key_value_heads": 1, **sizes}
    windowed = _save(MistralConfig(sliding_window=16, **common), tiny_dense, tmp_path_factory)
    assert _module(windowed, shared_prefixes=True).prefix_sharing() == PrefixSharing(1.0, max_segment_tokens=16)
    dropping = MistralConfig(sliding_window=None, attention_dropout=0.1, **common)
    assert _module(_save(dropping, tiny_dense, tmp_path_factory), shared_prefixes=True).prefix_sharing() == ALWAYS


def test_a_window_cuts_long_trajectories_short_beside_groups_that_share(
    tiny_dense: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=320, num_key_value_heads=2, sliding_window=16, initializer_range=0.3, **sizes)
    module = _module(_save(config, tiny_dense, tmp_path_factory))
    trajectories = [*_ragged("a", 6, [30]), *_ragged("b", 8, [4, 6]), *_ragged("c", 7, [25]), *_ragged("d", 5, [3])]
    ((_, row),) = packed_rows(trajectories, max_tokens=10**6, sharing=module.prefix_sharing())
    assert max(row[columns.SEGMENT_PREFIXES]) >= 0
    assert max(row[columns.SEGMENT_LENGTHS]) == 36
    _assert_same_step(_step(module, trajectories, module.prefix_sharing()), _step(module, trajectories, None))


def test_a_value_that_is_none_of_the_three_is_refused(tiny_dense: str) -> None:
    with pytest.raises(SettingError, match=r"shared_prefixes'\] is 'auto'; allowed: None, True, False"):
        check_model_config({"path": tiny_dense, "shared_prefixes": "auto"})


def _group_with_one_prompt(group_id: str, prompt: int) -> list[SingleAgentEpisode]:
    episodes = [make_episode(group_id, i, [(prompt, 3 + i), (2, 4)][: 1 + i % 2], float(i % 2)) for i in range(4)]
    first = next(turns(episodes[0])).prompt_token_ids
    for episode in episodes:
        next(turns(episode)).prompt_token_ids[:] = first
    return episodes


def _update(
    path: str, shared_prefixes: bool | None, **training: Any
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """How far two epochs move every weight, and what the learner logs."""
    config = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(model_config={"path": path, "shared_prefixes": shared_prefixes})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .learners(num_learners=0)
        # Adam's first steps blow the noise of a gradient near zero up to a whole step; a large epsilon does not.
        .training(lr=0.1, adam_epsilon=1.0, group_size=4, groups_per_iteration=3, num_minibatches=1, grad_clip=None)
        .training(old_log_probs="learner", **training)
        .debugging(seed=0)
    )
    learner = config.build_learner(spaces={DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))})
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    shared: list[bool] = []
    module.model.base_model.register_forward_pre_hook(
        lambda _module, _args, inputs: shared.append("segment_prefixes" in inputs), with_kwargs=True
    )
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    groups = group_episodes([e for i in range(3) for e in _group_with_one_prompt(f"g{i}", 10 + i)])
    data = GroupTrainingData.from_groups(groups, num_minibatches=1, seed=0)
    result = learner.update(training_data=data, num_epochs=2)[DEFAULT_MODULE_ID]
    assert shared
    assert set(shared) == {shared_prefixes is not False}
    logged = {name: float(result[name].peek()) for name in ("loss", "ratio_mean", "entropy", "num_tokens", "grad_norm")}
    return {name: p.detach() - before[name] for name, p in module.named_parameters()}, logged


@pytest.mark.parametrize("max_tokens", [4096, 60], ids=["one row", "many rows"])
def test_an_update_moves_the_weights_the_same_with_and_without_sharing(tiny_dense: str, max_tokens: int) -> None:
    plain, plain_logged = _update(tiny_dense, False)
    moved, logged = _update(tiny_dense, None, max_tokens_per_micro_batch=max_tokens)
    assert logged == pytest.approx(plain_logged, rel=1e-4, abs=1e-6)
    assert plain_logged["ratio_mean"] != 1.0
    for name, change in plain.items():
        size = float(change.abs().max())
        assert size > 0
        torch.testing.assert_close(moved[name], change, rtol=0, atol=1e-4 * size, msg=lambda m, n=name: f"{n}: {m}")
