"""The command line as a whole: help without a framework, and one line for every mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gspo_rllib.cli.main import main, parse_arguments
from gspo_rllib.errors import EngineError, SettingError, own_error

ROOT = Path(__file__).resolve().parents[2]
CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


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


def test_help_of_every_command_is_there_without_a_framework(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "evaluate", "rollout", "sweep", "export", "warmstart", "list"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert "usage: gspo-rllib" in shown and "``" not in shown


def test_what_needs_no_framework_loads_none() -> None:
    """By what is imported, not by the clock: ray, torch and transformers are what takes seconds."""
    code = f"""if True:
        import sys
        from gspo_rllib.cli import main
        names = list(main.build_parser()._subparsers._group_actions[0].choices)
        assert "train" in names and "list" in names
        for arguments in ([], ["--help"], ["list"], ["check-env", {CALCULATOR!r}], *([n, "--help"] for n in names)):
            try:
                assert main.main(arguments) == 0, arguments
            except SystemExit as stop:
                assert stop.code == 0, arguments
            heavy = {{"ray", "torch", "transformers", "vllm", "pandas", "scipy", "matplotlib"}} & sys.modules.keys()
            assert not heavy, (arguments, heavy)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "keeps the language-environment contract" in done.stdout


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["train", "--help"], ["check-env", CALCULATOR]])
def test_what_needs_no_framework_answers_within_a_second(arguments: list[str]) -> None:
    """In seconds of CPU, which other programs do not change much: 0.4 s here, 8 s with ray and torch."""
    took = []
    for _ in range(2):  # the first one may compile modules
        before = os.times()
        subprocess.run([sys.executable, "-m", "gspo_rllib", *arguments], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        took.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(took) < 1.0, took


def test_the_package_is_the_command_too() -> None:
    """Bare, it shows what there is."""
    done = subprocess.run([sys.executable, "-m", "gspo_rllib"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: gspo-rllib [-h] [--version] COMMAND")
    assert "train what a YAML file describes" in done.stdout


_ENVIRONMENT_OF_MINE = """
import gymnasium
from gspo_rllib.envs import UnicodeText

class Echo(gymnasium.Env):
    observation_space = action_space = UnicodeText(100)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.word = str(self.np_random.integers(1000))
        return f"Say {self.word}", {}

    def step(self, action):
        return "", float(action == self.word), True, False, {}

gymnasium.register(id="mine/Echo-v0", entry_point=Echo)
"""


def test_a_module_of_the_current_folder_is_found(tmp_path: Path) -> None:
    script, folder = tmp_path / "bin" / "command.py", tmp_path / "here"
    for place in (script.parent, folder):
        place.mkdir()
    # As the installed script does it: its own folder is on the path, the current one is not.
    script.write_text("import sys\nfrom gspo_rllib.cli.main import main\nsys.exit(main())\n")
    (folder / "my_envs.py").write_text(_ENVIRONMENT_OF_MINE)
    command = [sys.executable, str(script), "check-env", "my_envs:mine/Echo-v0"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "my_envs:mine/Echo-v0 keeps the language-environment contract" in done.stdout


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


@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_nobody_reads_ends_a_command_without_a_word(buffered: bool) -> None:
    # A command that prints and loads nothing: what ends it is the same for all.
    code = """if True:
        import sys
        from gspo_rllib.cli import listing, main
        listing.run = lambda arguments: [print("a line") for _ in range(3)] and 0
        sys.exit(main.main(["list"]))
    """
    read, write = os.pipe()
    os.close(read)  # as `head` does when it has seen enough
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, env=environment
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pipe_that_breaks_elsewhere_is_an_error_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_arguments: object) -> int:
        raise BrokenPipeError("of an environment's own")

    monkeypatch.setattr("gspo_rllib.cli.listing.run", run)
    with pytest.raises(BrokenPipeError, match="environment's own"):
        main(["list"])
