"""`gspo-rllib show` and `cp`."""

from __future__ import annotations

from pathlib import Path

import pytest

from gspo_rllib.cli.main import main
from gspo_rllib.configs import shipped_configs

QUEST = shipped_configs()["quest"].read_text()


def test_a_recipe_is_shown_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "quest"]) == 0
    assert capsys.readouterr().out == QUEST
    assert main(["show", "quick"]) == 0
    assert capsys.readouterr().out.startswith("# A study")
    assert main(["show", "qeust"]) == 2
    assert "Did you mean 'quest'?" in capsys.readouterr().err


def test_a_copy_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cp", "quest", str(tmp_path)]) == 0
    assert (tmp_path / "quest.yaml").read_text() == QUEST
    assert main(["cp", "quick", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(f"then `gspo-rllib study {tmp_path / 'quick.yaml'}`\n")
    (tmp_path / "quest.yaml").write_text("mine")
    for target in (tmp_path, tmp_path / "quest.yaml"):
        assert main(["cp", "quest", str(target)]) == 2
        assert "exists, and is not overwritten; name a new file." in capsys.readouterr().err
    assert (tmp_path / "quest.yaml").read_text() == "mine"
    assert main(["cp", "quest", str(tmp_path / "no" / "such" / "folder.yaml")]) == 2
    assert "cannot be written: No such file or directory." in capsys.readouterr().err
