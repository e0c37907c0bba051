"""Warm start: imitation up to a chosen success, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from transformers import AutoModelForCausalLM

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.env_pool.factory import check_language_env_spec
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.envs.spaces import UnicodeText
from gspo_rllib.errors import EnvError, SettingError
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.warmstart import WarmstartResult, warmstart
from gspo_rllib.warmstart.success import Player
from tests.warmstart.small_policy import CALCULATOR, SMALL, make_calculator


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[WarmstartResult, list[str]]:
    """A policy for one operation, imitated to at least 40 % sampled success."""
    lines: list[str] = []
    out = tmp_path_factory.mktemp("warmstart") / "seed"
    result = warmstart(
        CALCULATOR, {"operations": 1}, out, target_success=0.4, sizes=SMALL, lr=4e-3, seed=1, progress=lines.append
    )
    return result, lines


def test_imitation_stops_at_the_chosen_success(learnt) -> None:
    result, lines = learnt
    assert result.reached
    assert 0.25 <= result.success <= 0.85
    assert "sampled success" in lines[-1]
    assert all(len(line) <= 80 for text in lines for line in text.splitlines() if str(result.path) not in line)


def test_the_saved_folder_plays_as_reported(learnt) -> None:
    result, _ = learnt
    renderer = ChatRenderer(load_tokenizer(result.path), make_calculator().unwrapped.chat)
    model = AutoModelForCausalLM.from_pretrained(result.path)
    assert model.dtype == torch.float32
    spec = EngineSpec("transformers", result.path, "float32", 512, 64, renderer.stop_token_ids)
    engine = registry.acquire(spec)
    engine.load_weights({name: tensor.numpy() for name, tensor in model.state_dict().items()}, 1)
    env = check_language_env_spec(CALCULATOR, {"operations": 1})
    player = Player(engine, env, renderer, num_slots=64, run_seed=1)
    report = player.play(range(5_000, 5_256), 1.0, at_a_time=256)
    player.close()
    registry.release(engine)
    assert report is not None
    assert result.success is not None
    assert abs(report.success - result.success) < 0.15, "four standard errors of two samples of 256"


def test_the_report_is_written_beside_the_model(learnt) -> None:
    result, _ = learnt
    report = json.loads((Path(result.path) / "warmstart.json").read_text())
    assert report["env"] == CALCULATOR
    assert report["env_config"] == {"operations": 1}
    assert report["success"] == result.success
    assert (report["seed"], report["steps"]) == (1, result.steps)


def test_an_earlier_warm_start_is_replaced_but_nothing_else_ever(learnt, tmp_path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("precious")
    with pytest.raises(SettingError, match="not an earlier warm start"):
        warmstart(CALCULATOR, {"operations": 1}, mine, sizes=SMALL, max_minutes=0, progress=None)
    assert (mine / "notes.txt").read_text() == "precious"

    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "warmstart.json").write_text("{}")
    result = warmstart(CALCULATOR, {"operations": 1}, earlier, sizes=SMALL, max_minutes=0, progress=None)
    assert not result.reached
    assert result.steps == 1
    assert json.loads((earlier / "warmstart.json").read_text())["reached"] is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier", "mine"]


def test_an_interrupted_warm_start_never_looks_finished(tmp_path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warmstart(CALCULATOR, {"operations": 1}, tmp_path / "out", sizes=SMALL, progress=interrupt)
    assert not (tmp_path / "out").exists()


class NoExpertEnv(gymnasium.Env[str, str]):
    """A text environment that nobody can demonstrate."""

    observation_space = UnicodeText()
    action_space = UnicodeText()


@pytest.mark.parametrize(
    ("env", "changes", "error", "complaint"),
    [
        (NoExpertEnv, {}, EnvError, r"no expert\(\)"),
        (CALCULATOR, {"target_success": 0.0}, SettingError, "target_success=0.0: must be above 0"),
        (CALCULATOR, {"target_success": 35}, SettingError, "at most 1"),
        (CALCULATOR, {"architecture": "qwen3moe"}, SettingError, "Did you mean 'qwen3_moe'"),
        (CALCULATOR, {"sizes": {"hiden_size": 64}}, SettingError, "Did you mean 'hidden_size'"),
        ("gspo_rllib.envs:gspo_rllib/Calculator-v1", {}, EnvError, "Calculator-v1"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_work(tmp_path, env, changes, error, complaint) -> None:
    with pytest.raises(error, match=complaint):
        warmstart(env, {}, tmp_path / "out", progress=None, **changes)
    assert not any(tmp_path.iterdir())


def interrupt_at(step: int, out: Path, **changes: Any) -> list[str]:
    said: list[str] = []
    options = {"sizes": SMALL, "lr": 4e-3, **changes}
    with pytest.raises(KeyboardInterrupt):
        warmstart(
            CALCULATOR,
            {"operations": 1},
            out,
            progress=said.append,
            interrupted=lambda: any(f"step {step}," in line for line in said),
            **options,
        )
    return said


@pytest.mark.slow
def test_an_interrupted_warm_start_goes_on_to_the_bit(tmp_path) -> None:
    interrupt_at(50, tmp_path / "whole")
    interrupt_at(25, tmp_path / "halves")
    said = interrupt_at(50, tmp_path / "halves")
    assert "goes on after step 25" in said[0]
    assert "interrupted after step 50" in said[-1]
    assert "the same command goes on" in said[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["halves.partial", "whole.partial"]
    whole, halves = (
        torch.load(tmp_path / name / "warmstart_state.pt")["student"] for name in ("whole.partial", "halves.partial")
    )
    assert whole["random"] == halves["random"]
    for name, tensor in whole["weights"].items():
        assert torch.equal(tensor, halves["weights"][name]), name
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "halves.partial").state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in whole["weights"].items()), "the best model so far"

    with pytest.raises(SettingError, match=r"other settings \(lr=0.004 -> 0.001\)"):
        warmstart(CALCULATOR, {"operations": 1}, tmp_path / "halves", sizes=SMALL, lr=1e-3, progress=None)
    result = warmstart(
        CALCULATOR, {"operations": 1}, tmp_path / "halves", sizes=SMALL, lr=4e-3, max_minutes=0, progress=None
    )
    assert (result.steps, result.reached, result.num_tasks, result.success) == (50, False, 0, None)
    assert not (tmp_path / "halves.partial").exists()
    # Short of its target it is gone on with like one that was interrupted, and with other settings begun anew.
    assert "interrupted after step 75" in interrupt_at(75, tmp_path / "halves")[-1]
    shutil.rmtree(tmp_path / "halves.partial")
    for lr, goes_on in ((4e-3, True), (1e-3, False)):
        said: list[str] = []
        options = {"sizes": SMALL, "lr": lr, "max_minutes": 0}
        warmstart(CALCULATOR, {"operations": 1}, tmp_path / "halves", progress=said.append, **options)
        assert ("goes on after step 50" in said[0]) is goes_on
