"""`gspo-rllib settings`: what a person asks before a run."""

from __future__ import annotations

import pytest

from gspo_rllib.cli.main import main


def test_a_setting_is_shown_with_default_effect_range_and_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["settings", "clip_scaling"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training.clip_scaling = 'none'"
    facts = "Allowed: 'none', 'length', 'target', 'deviations'. Source: ours; length after arXiv:2509.09177"
    assert " ".join(map(str.strip, lines)).endswith(facts)
    assert max(map(len, lines)) <= 80


def test_another_algorithm_shows_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "importance_sampling_level", "--algorithm", "GRPO"]) == 0
    assert "training.importance_sampling_level = 'token'" in capsys.readouterr().out
    assert main(["settings", "--algorithm", "GRPOO"]) == 2
    assert "Did you mean 'GRPO'?" in capsys.readouterr().err


def test_piped_it_is_one_line_per_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    main(["settings"])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("training.")]) > 40
    assert not [line for line in lines if "." not in line.split()[0]]
    assert not [line for line in lines if " at 0x" in line]


def test_a_setting_of_rllibs_that_would_do_nothing_is_shown_as_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    main(["settings", "*clip_*"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "Allowed: 'global_norm'; refused otherwise." in lines["training.grad_clip_by"]
    assert "clips actions" not in lines["environment.clip_actions"], "which RLlib's own docstring says"
    assert "refused" not in lines["training.clip_low"]
