"""Secrets are told by their names and forms; and a real run writes none of them, wherever they were given."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import pytest

from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.cli.main import main
from gspo_rllib.errors import CheckpointError, NoProgressError, described, shown
from gspo_rllib.secret_texts import masked, names_secret, without_secrets

CANARIES = {
    "environment variable": "canary-environment-1b7e",
    "config value": "canary-config-83f0",
    "key": "sk-canarykey5d2c9a",
    "prompt": "canary-prompt-c91d",
    "tool output": "canary-tool-0a6b",
    "address": "canary-address-77e4",
}
SECRETS = {
    "password": CANARIES["config value"],
    "judge": {"api_key": CANARIES["key"], "url": f"https://me:{CANARIES['address']}@judge.example.org/v1"},
    "note": f"with {CANARIES['environment variable']}",
}


class Confidential(gym.Env):  # type: ignore[misc]
    """Prompts and answers with what nobody else is to see, and now and then fails with it."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    observation_space = action_space = gym.spaces.Text(max_length=1000, min_length=0)

    def __init__(self, password: str = "", judge: Any = None, note: str = "", fails: bool = False) -> None:
        self._fails, self._told = fails, f"{password} {judge} {note}"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self._turn = 0
        return CANARIES["prompt"], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._turn += 1
        if self._fails:
            raise RuntimeError(f"cannot reach {self._told}")
        return CANARIES["tool output"], float(len(action) % 2), self._turn == 2, False, {}


gym.register("tests/Confidential-v0", Confidential)


def test_names_and_forms_tell_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", CANARIES["environment variable"])
    assert [names_secret(name) for name in ("HF_TOKEN", "apiKey", "max_tokens", "keyboard")] == [
        True,
        True,
        False,
        False,
    ]
    text = " ".join(str(value) for value in (SECRETS["judge"]["url"], CANARIES["key"], SECRETS["note"]))
    assert masked(text) == "https://***@judge.example.org/v1 *** with ***"
    assert not _found(str(without_secrets(SECRETS)))


def test_what_foreign_code_raises_is_told_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", CANARIES["environment variable"])
    address = SECRETS["judge"]["url"]
    assert (
        described(RuntimeError(f"no answer of {address}"))
        == "RuntimeError: no answer of https://***@judge.example.org/v1"
    )
    assert not _found(shown([address, CANARIES["key"], CANARIES["environment variable"]], most=20))


def _found(text: str) -> list[str]:
    return [name for name, canary in CANARIES.items() if canary in text]


def _written(folder: Path) -> dict[str, list[str]]:
    """Canaries by file."""
    held = {path: path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file()}
    return {str(path.relative_to(folder)): found for path, text in held.items() if (found := _found(text))}


def _config(model: str, **env_config: Any) -> Any:
    return (
        GSPOConfig()
        .environment(Confidential, env_config=SECRETS | env_config)
        .rl_module(model_config={"path": model})
        .generation(engine="transformers", max_tokens_per_turn=4, trajectory_retries=0)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .training(group_size=2, groups_per_iteration=2, num_minibatches=1)
        .debugging(seed=1)
    )


def test_a_checkpoint_holds_none_and_asks_for_the_config_again(
    tiny_dense: str, tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", CANARIES["environment variable"])
    config = _config(tiny_dense)
    algo = config.build_algo()
    try:
        result = algo.train()
        saved = algo.save_to_path(tmp_path / "checkpoint")
    finally:
        algo.stop()
    # RLlib hands the caller back his own config, too.
    assert not _written(tmp_path) and not _found(str({k: v for k, v in result.items() if k != "config"}))
    with pytest.raises(
        CheckpointError, match=r"its env_config held a secret \('password'\), which no checkpoint holds"
    ):
        GSPO.from_checkpoint(saved)
    again = GSPO.from_checkpoint(saved, config=config)
    assert again.iteration == 1
    again.stop()


@pytest.mark.slow
def test_a_run_from_the_command_writes_none(
    tiny_dense: str,
    tmp_path: Path,
    ray_local: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", CANARIES["environment variable"])
    file = tmp_path / "run.yaml"
    judge = "{{api_key: {api_key}, url: '{url}'}}".format(**SECRETS["judge"])
    file.write_text(
        "environment: {env: 'tests.test_secret_texts:tests/Confidential-v0', "
        f"env_config: {{password: {SECRETS['password']}, judge: {judge}, note: {SECRETS['note']}}}}}\n"
        f"rl_module: {{model_config: {{path: '{tiny_dense}'}}}}\n"
        "generation: {engine: transformers, max_tokens_per_turn: 4}\n"
        "env_runners: {num_env_runners: 0, num_envs_per_env_runner: 4}\n"
        "training: {group_size: 2, groups_per_iteration: 2, num_minibatches: 1}\ndebugging: {seed: 1}\n"
        "reporting: {keep_trajectories: 0}\nrun: {iterations: 2}\n"
    )
    with caplog.at_level(logging.DEBUG, "gspo_rllib"):
        assert main(["train", str(file), "--storage", str(tmp_path / "results")]) == 0
    written = _written(tmp_path / "results")
    # The config is kept so that the run can be started again; it is the user's own file, word for word.
    assert {name.rpartition("/")[2] for name in written} <= {"config.yaml"}
    said = "".join(capfd.readouterr())
    assert not _found(said) and not _found(caplog.text)


def test_an_environment_that_fails_with_them_is_reported_without(
    tiny_dense: str, ray_local: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", CANARIES["environment variable"])
    secret = {"password": "https://me:" + CANARIES["config value"] + "@x"}
    algo = _config(tiny_dense, fails=True, **secret).build_algo()
    try:
        with pytest.raises(NoProgressError, match="cannot reach https") as raised:
            algo.train()
    finally:
        algo.stop()
    words = "".join(traceback.format_exception(raised.value))
    assert not _found(words) and not _found("".join(capfd.readouterr()))
