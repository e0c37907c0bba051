"""`gspo-rllib check-env`: what it prints, and one line for a broken promise."""

from __future__ import annotations

import gymnasium

from gspo_rllib.cli.main import main


def test_the_command_prints_what_was_checked_and_turns_a_broken_promise_into_one_line(capsys, monkeypatch) -> None:
    assert main(["check-env", "gspo_rllib.envs:gspo_rllib/Bisection-v0", "--env-config", "n=8"]) == 0
    out = capsys.readouterr().out
    assert "ok    a seed fixes the task, in every instance" in out
    assert out.splitlines()[-1] == "gspo_rllib.envs:gspo_rllib/Bisection-v0 keeps the language-environment contract"
    gymnasium.register(id="broken/History-v0", entry_point="tests.toy_envs.contract_breakers:WholeHistory")
    try:
        assert main(["check-env", "broken/History-v0"]) == 2
        assert "only what is new" in capsys.readouterr().err
        assert main(["check-env", "gspo_rllib.envs:gspo_rllib/Bisect-v0"]) == 2
        assert "Bisection-v0" in capsys.readouterr().err
    finally:
        del gymnasium.registry["broken/History-v0"]
