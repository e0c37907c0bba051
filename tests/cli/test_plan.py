"""`gspo-rllib plan`: what it says of a config, and when it says that something does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gspo_rllib.cli.main import main

_8B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288,
    "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the config of Qwen3-8B and nothing else."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps(_8B))
    return f"rl_module.model_config.path={folder}"


def _plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["plan", "quickstart", *arguments])
    return code, capsys.readouterr().out


def test_a_small_model_fits(tiny_dense: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = _plan(capsys, f"rl_module.model_config.path={tiny_dense}", "--gpus", "1", "--memory", "24")
    assert code == 0 and said.splitlines()[-1] == "fits"


def test_bfloat16_halves_the_engine_and_what_is_sent_and_takes_less_of_the_learner(
    tiny_dense: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for precision in ("float32", "bfloat16"):
        asked = (f"rl_module.model_config.path={tiny_dense}", f"rl_module.model_config.precision={precision}")
        code, text = _plan(capsys, *asked, "--gpus", "1", "--memory", "24")
        assert code == 0
        said[precision] = dict(line.split(maxsplit=1) for line in text.splitlines() if len(line.split()) > 1)
    one, half = said["float32"], said["bfloat16"]
    for name in ("engine", "sync"):
        assert float(half[name].split()[0]) == pytest.approx(float(one[name].split()[0]) / 2, rel=0.01)
        assert "(bfloat16)" in half[name] and "(float32)" in one[name]
    assert one["weights"] == half["weights"] and one["optimiser"] == half["optimiser"]
    assert float(half["activations"].split()[0]) < float(one["activations"].split()[0])


@pytest.mark.slow
def test_a_model_of_8b_does_not_fit_a_learner_of_80_gb(large: str, capsys: pytest.CaptureFixture[str]) -> None:
    """8.19 B parameters x 4 bytes: 32.8 GB of weights, as many of gradients, 65.5 of moments; an engine takes half."""
    code, said = _plan(capsys, large, "generation.engine_dtype=bfloat16", "--gpus", "8", "--memory", "80")
    assert code == 1
    assert "8.19 B parameters, 36 layers" in said
    for name, amount in (("weights", "32.763"), ("gradients", "32.763"), ("optimiser", "65.526")):
        assert [name, amount, "GB"] in [line.split() for line in said.splitlines()]
    assert "16.4 GB of weights (bfloat16), 147 kB of cache a token" in said
    (problem,) = [line for line in said.splitlines() if line.startswith("does not fit: ")]
    assert "a learner needs" in problem and "of 73.6 GB that it can fill" in problem


@pytest.mark.slow
def test_activations_that_are_too_large_are_told_what_to_set(large: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--params", "1.5e9", "training.max_tokens_per_micro_batch=16384", "--gpus", "1", "--memory", "40")
    code, said = _plan(capsys, large, *asked)
    assert code == 1
    assert "rl_module.model_config.activation_checkpointing=true leaves" in said
    assert "training.max_tokens_per_micro_batch=" in said


def test_more_gpus_than_there_are_is_said(tiny_dense: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("learners.num_learners=4", "learners.num_gpus_per_learner=1")
    code, said = _plan(capsys, f"rl_module.model_config.path={tiny_dense}", *asked, "--gpus", "2", "--memory", "80")
    assert code == 1
    assert "does not fit: 4 x learner (1 GPU)" in said and "need 4 GPUs, and there are 2" in said


def test_a_limit_on_activations_bounds_them(tiny_dense: str, capsys: pytest.CaptureFixture[str]) -> None:
    def activations(*settings: str) -> float:
        options = [f"rl_module.model_config.{name}" for name in (f"path={tiny_dense}", *settings)]
        _, said = _plan(capsys, *options, "--gpus", "1", "--memory", "24")
        return next(float(line.split()[1]) for line in said.splitlines() if line.startswith("  activations"))

    kept, recomputed = activations(), activations("activation_checkpointing=true")
    between = round((kept + recomputed) / 2, 3)
    assert recomputed < between < kept
    assert activations(f"max_activation_gb={between}") == between
    assert activations("max_activation_gb=24") == kept
    assert activations("max_activation_gb=0.001") == recomputed


def test_several_learners_and_a_reference_are_counted(tiny_dense: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"rl_module.model_config.path={tiny_dense}"
    _, said = _plan(capsys, model, "learners.num_learners=2", "training.kl_coeff=0.1", "--gpus", "2", "--memory", "80")
    names = [line.split()[0] for line in said.splitlines() if line.startswith("  ")]
    assert {"buckets", "reference"} <= set(names) and "each of 2 holds" in said


def test_an_adapter_alone_has_gradients_and_a_critic_is_as_large_as_the_policy(
    tiny_dense: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def parts(*overrides: str) -> dict[str, float]:
        asked = (f"rl_module.model_config.path={tiny_dense}", "training.kl_coeff=0.1", *overrides)
        _, said = _plan(capsys, *asked, "--params", "1e9", "--gpus", "1", "--memory", "800")
        lines = [line.split() for line in said.splitlines() if line.startswith("  ") and line.endswith(" GB")]
        return {name: float(amount) for name, amount, _ in lines}

    whole, adapter = parts(), parts("rl_module.model_config.lora.rank=4")
    assert (whole["weights"], whole["gradients"], whole["optimiser"], whole["reference"]) == (4.0, 4.0, 8.0, 4.0)
    # With its adapter off, the policy is the reference.
    assert "reference" not in adapter and 4.0 < adapter["weights"] < 4.8
    assert adapter["optimiser"] == pytest.approx(2 * adapter["gradients"], abs=2e-3)
    assert adapter["gradients"] == pytest.approx(adapter["weights"] - 4.0, abs=2e-3)
    critic = parts("run.algorithm=LanguagePPO")
    assert 7.0 < critic["weights"] < 8.0 and critic["optimiser"] == pytest.approx(2 * critic["weights"], abs=2e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpus", "0", "--memory", "80"], "--gpus: expected a number > 0, got 0"),
        (["--gpus", "1", "--memory", "-1"], "--memory: expected a number > 0, got -1"),
        (["--gpus", "1", "--memory", "nan"], "--memory: expected a number > 0, got nan"),
        (["--gpus", "1", "--memory", "80", "--params", "inf"], "--params: expected a number > 0, got inf"),
        (["--gpus", "1", "--memory", "80", "rl_module.model_config.path=nowhere"], "model path 'nowhere'"),
    ],
)
def test_what_is_no_amount_or_model_is_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "quickstart", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_cannot_be_built_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_8B | {"num_attention_heads": 0}))
    model = f"rl_module.model_config.path={tmp_path}"
    assert main(["plan", "quickstart", model, "--gpus", "1", "--memory", "80"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
