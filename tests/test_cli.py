"""The command line: what it leaves behind, what it prints, and one line for every mistake."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from gspo_rllib import checkpoints
from gspo_rllib.cli.main import main, own_error, parse_arguments
from gspo_rllib.cli.recorder import RunRecorder, new_run_folder
from gspo_rllib.cli.sweep import split_axes
from gspo_rllib.cli.train import stop_reason
from gspo_rllib.configs import RunSettings
from gspo_rllib.errors import EngineError, SettingError

CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


@pytest.fixture(scope="module")
def config_file(tiny_dense: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    sections = {
        "environment": {"env": CALCULATOR, "env_config": {"operations": 1}},
        "rl_module": {"model_config": {"path": tiny_dense}},
        "generation": {"engine": "transformers", "max_tokens_per_turn": 4},
        "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 8},
        "learners": {"num_learners": 0},
        "training": {"group_size": 2, "groups_per_iteration": 4, "lr": 1e-4},
        "debugging": {"seed": 0},
    }
    path.write_text(yaml.safe_dump(sections))
    return str(path)


@pytest.fixture(scope="module")
def trained(config_file: str, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of two iterations with a checkpoint after each: its folder and what it printed."""
    storage = tmp_path_factory.mktemp("results")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
        code = main(["train", config_file, "--iterations", "2", "--storage", str(storage), "run.checkpoint_every=1"])
    assert code == 0
    (folder,) = storage.iterdir()
    return SimpleNamespace(folder=folder, text="\n".join(lines), checkpoint=folder / "checkpoints" / "iteration_000002")


def test_a_run_leaves_results_a_curve_and_whole_checkpoints(trained: SimpleNamespace) -> None:
    folder: Path = trained.folder
    results = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    assert [result["training_iteration"] for result in results] == [1, 2]
    with (folder / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["env_runners/episode_return_mean"]) for row in rows] == [
        result["env_runners"]["episode_return_mean"] for result in results
    ]
    assert list(folder.glob("events.out.tfevents.*"))
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((folder / "config.yaml").read_text())["run"]["iterations"] == 2
    saved = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in saved] == ["iteration_000001", "iteration_000002"]
    for checkpoint in saved:
        checkpoints.verify(checkpoint)


def test_the_progress_line_says_what_one_watches(trained: SimpleNamespace) -> None:
    lines = trained.text.splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.lstrip().startswith("iter")]
    row = dict(zip(lines[head].split(), lines[head + 2].split(), strict=True))
    assert row["iter"] == "2"
    assert row["success"].endswith("%")
    assert float(row["tokens/s"]) > 0
    assert all(row[phase].endswith("s") for phase in ("sample", "update", "sync"))
    assert str(trained.checkpoint.parent.parent.name) in trained.text


def test_the_saved_config_starts_the_same_run_again(trained: SimpleNamespace, config_file: str) -> None:
    from gspo_rllib.configs import load_config

    again, first = load_config(trained.folder / "config.yaml"), load_config(config_file)
    assert vars(again) == vars(first)


def test_training_resumes_from_a_checkpoint(
    trained: SimpleNamespace, config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", config_file, "--resume", str(trained.checkpoint), "--iterations", "3"]
    assert main([*arguments, "--storage", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    results = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    assert [result["training_iteration"] for result in results] == [3]


def test_ctrl_c_saves_a_whole_checkpoint_and_exits_130(
    config_file: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(path.stat().st_size for path in tmp_path.glob("*/result.json")):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.02)

    handler_before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        code = main(["train", config_file, "--iterations", "500", "--storage", str(tmp_path)])
    finally:
        thread.join()
    assert code == 130
    (checkpoint,) = tmp_path.glob("*/checkpoints/*")
    checkpoints.verify(checkpoint)
    assert "stopped: interrupted" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler_before


def test_rollout_prints_every_turn(trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", str(trained.checkpoint), "--episodes", "2"]) == 0
    text = capsys.readouterr().out
    assert text.count("trajectory ") == 2
    for word in ("task seed", "turn 1", "observation", "action", "reward", "tokens, ", "return"):
        assert text.count(word) >= 2, word
    assert text.isprintable() or not set(text) & {chr(c) for c in range(32) if chr(c) != "\n"}


def test_rollout_is_repeatable_and_the_seed_changes_the_tasks(
    trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["rollout", str(trained.checkpoint), "--episodes", "2", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_evaluate_plays_a_checkpoint_and_a_plain_model_alike(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained.checkpoint), str(tmp_path / "model")]) == 0
    capsys.readouterr()
    options = ["--episodes", "8", "--max-tokens-per-turn", "4"]
    assert main(["evaluate", str(trained.checkpoint), *options]) == 0
    from_checkpoint = capsys.readouterr().out
    plain = ["--env", CALCULATOR, "--env-config", "operations=1", "--engine", "transformers"]
    assert main(["evaluate", str(tmp_path / "model"), *plain, *options]) == 0
    from_model = capsys.readouterr().out

    def without_speed(text: str) -> str:
        return text.partition(" sampled")[0]

    assert "episodes     8" in from_checkpoint
    assert without_speed(from_checkpoint) == without_speed(from_model)


def test_an_exported_folder_holds_the_trained_weights_and_no_pickle(trained: SimpleNamespace, tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["export", str(trained.checkpoint), str(tmp_path / "model")]) == 0
    assert not list((tmp_path / "model").glob("*.pkl"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    saved = load_file(checkpoints.policy_folder(trained.checkpoint) / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name in saved:
            assert (tensor.numpy() == saved[name]).all()
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "gspo-rllib train: the following arguments are required: CONFIG"),
        (["trian", "x"], "invalid choice: 'trian'"),
        (["train", "{config}", "--iteration-count", "5"], "unrecognized arguments: --iteration-count 5"),
        (["train", "no-such.yaml"], "config 'no-such.yaml': no such file"),
        (["train", "{config}"], "run: nothing would end this run; set run.iterations, run.minutes or run.success."),
        (["train", "{config}", "--iterations", "many"], "run.iterations: expected a whole number >= 1, got 'many'."),
        (["train", "{config}", "--iterations", "1", "training.lrr=1"], "Did you mean 'lr'?"),
        (["train", "{config}", "--iterations", "1", "training.group_size=1"], "training.group_size is 1; allowed"),
        (["train", "{config}", "--iterations", "1", "training.lr=-1"], "training.lr is -1; allowed"),
        (["train", "{config}", "--iterations", "1", "generation.engine=vlm"], "vllm"),
        (["train", "{config}", "--iterations", "1", "generation.max_model_len=100000"], "max_position_embeddings"),
        (["train", "{config}", "--iterations", "1", "environment.env=NoSuch-v0"], "'NoSuch-v0' is not registered"),
        (
            ["train", "{config}", "--iterations", "1", "environment.env=CartPole-v1", "environment.env_config={{}}"],
            "gymnasium.spaces.Text",
        ),
        (["train", "{config}", "--iterations", "1", "rl_module.model_config.path={empty}"], "Hugging Face folder"),
        (["train", "{config}", "--iterations", "1", "--resume", "{empty}"], "gspo_manifest.json"),
        (["sweep", "{config}", "training.lr=1e-5,2e-5"], "nothing would end a trial"),
        (["sweep", "{config}", "--iterations", "1", "training.lr=1e-5,-2"], "training.lr is -2; allowed"),
        (["sweep", "{config}", "--iterations", "1", "run.minutes=1,2"], "run.minutes cannot be varied"),
        (["rollout", "{empty}"], "gspo_manifest.json"),
        (["rollout", "{missing}"], "no such folder"),
        (["rollout", "{model}"], "is a model without an environment; name one with --env."),
        (["evaluate", "{model}", "--env", CALCULATOR, "--env-config", "operations"], "expected key=value"),
        (["evaluate", "{model}", "--env", CALCULATOR, "--env-config", "operations=99"], "1 to 30"),
        (["export", "{model}", "{missing}"], "gspo_manifest.json"),
        (["warmstart", "CartPole-v1", "{missing}"], "CartPole-v1"),
        (["warmstart", CALCULATOR, "{missing}", "--target", "2"], "target_success=2.0: must be above 0"),
        (["warmstart", CALCULATOR, "{missing}", "--architecture", "qwen4"], "Did you mean 'qwen3'?"),
        (["warmstart", CALCULATOR, "{missing}", "--sizes", "width=5"], "width"),
    ],
)
def test_a_mistake_is_one_line_with_the_remedy(
    arguments: list[str],
    message: str,
    config_file: str,
    tiny_dense: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"config": config_file, "model": tiny_dense, "empty": tmp_path / "empty", "missing": tmp_path / "missing"}
    try:
        code = main([argument.format(**places) if "{" in argument else argument for argument in arguments])
    except SystemExit as stop:  # argparse's way out
        code = stop.code
    error = capfd.readouterr().err
    assert code == 2, error
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "missing").exists()


def test_warmstart_writes_a_model_and_says_when_it_fell_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--sizes", "hidden_size=32", "num_layers=1", "--max-minutes", "0.001", "--env-config", "operations=1"]
    assert main(["warmstart", CALCULATOR, str(tmp_path / "model"), *small]) == 1
    assert "short of the target" in capsys.readouterr().out
    report = json.loads((tmp_path / "model" / "warmstart.json").read_text())
    assert report["env_config"] == {"operations": 1}
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_help_of_every_command_is_there_without_a_framework(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "evaluate", "rollout", "sweep", "export", "warmstart", "list"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert "usage: gspo-rllib" in capsys.readouterr().out


def test_list_names_what_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in (CALCULATOR, "gspo_rllib.envs:gspo_rllib/Bisection-v0", "transformers", "calculator", "quickstart"):
        assert name in text


def test_overrides_may_stand_anywhere() -> None:
    arguments = parse_arguments(["train", "c.yaml", "a.b=1", "--iterations", "3", "a.c=2"])
    assert arguments.overrides == ["a.b=1", "a.c=2"]
    assert arguments.iterations == "3"


def test_an_error_of_ours_is_found_behind_rays_wrapper() -> None:
    wrapped = RuntimeError("the actor's whole traceback")
    wrapped.cause = EngineError("vllm is not installed")  # type: ignore[attr-defined]
    assert own_error(wrapped) is wrapped.cause  # type: ignore[attr-defined]
    assert own_error(ValueError("a bug")) is None
    chained = RuntimeError("outer")
    chained.__cause__ = SettingError("inner")
    assert own_error(chained) is chained.__cause__


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, Path]:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("gspo_rllib.configs.shipped_configs", broken)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


@pytest.mark.parametrize(
    ("result", "minutes", "reason"),
    [
        ({"training_iteration": 4}, 1.0, None),
        ({"training_iteration": 5}, 1.0, "5 iterations done"),
        ({"training_iteration": 1}, 2.0, "2 minutes are over"),
        ({"training_iteration": 1, "env_runners": {"success_mean": 0.9}}, 0.0, "success 90.0% reached 90.0%"),
        ({"training_iteration": 1, "env_runners": {"success_mean": 0.89}}, 0.0, None),
    ],
)
def test_the_first_limit_reached_stops_a_run(result: dict, minutes: float, reason: str | None) -> None:
    limits = RunSettings(iterations=5, minutes=2, success=0.9)
    assert stop_reason(result, limits, minutes=minutes) == reason


def test_a_metric_that_appears_later_gets_its_own_column(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, {})
    recorder.record({"training_iteration": 1, "a": {"b": 1.5}})
    recorder.record({"training_iteration": 2, "a": {"b": 2.5}, "evaluation": {"success": float("nan")}})
    recorder.close()
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["a/b"] for row in rows] == ["1.5", "2.5"]
    assert [row["evaluation/success"] for row in rows] == ["", "nan"]


def test_run_folders_of_the_same_second_do_not_collide(tmp_path: Path) -> None:
    folders = {new_run_folder(str(tmp_path), "a b/c") for _ in range(5)}
    assert len(folders) == 5
    assert all(folder.parent == tmp_path and folder.name.startswith("a-b-c-") for folder in folders)


@pytest.mark.parametrize(
    ("overrides", "fixed", "axes"),
    [
        (["a.b=1"], ["a.b=1"], {}),
        (["a.b=1,2", "a.c=x,y"], [], {"a.b": ["1", "2"], "a.c": ["x", "y"]}),
        (["a.b=[1, 2]", "a.c={x: 1, y: 2}"], ["a.b=[1, 2]", "a.c={x: 1, y: 2}"], {}),
        (["a.b=[1, 2],[3]"], [], {"a.b": ["[1, 2]", "[3]"]}),
    ],
)
def test_commas_outside_brackets_make_an_axis(
    overrides: list[str], fixed: list[str], axes: dict[str, list[str]]
) -> None:
    assert split_axes(overrides) == (fixed, axes)


def test_a_sweep_trains_one_trial_per_value(
    config_file: str, ray_local: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", config_file, "training.lr=1e-5,3e-5", "--iterations", "1", "--storage", str(tmp_path)]
    assert main([*arguments, "--name", "lr"]) == 0
    trials = sorted((tmp_path / "lr").glob("GSPO_*"))
    rates = {json.loads((trial / "params.json").read_text())["lr"] for trial in trials if trial.is_dir()}
    assert rates == {1e-5, 3e-5}
    for trial in trials:
        (checkpoint,) = trial.glob("checkpoint_*")
        checkpoints.verify(checkpoint)
    assert capfd.readouterr().out.count("checkpoint_") >= 2
