"""The folder of an unfinished warm start: what may be replaced, and that files change in one move."""

from __future__ import annotations

import json

import pytest
import torch

from gspo_rllib.errors import SettingError
from gspo_rllib.warmstart.unfinished import Unfinished


def begun(out, **settings):
    unfinished = Unfinished(out, {"seed": 0, **settings})
    unfinished.folder.mkdir(exist_ok=True)
    return unfinished


def test_what_was_saved_is_gone_on_with_and_nothing_else(tmp_path) -> None:
    out = tmp_path / "out"
    first = begun(out)
    assert first.state is None
    first.save_state({"progress": {"steps": 3}, "student": {"weights": {"w": torch.ones(2)}}})
    (first.folder / ".writing_warmstart_state.pt").write_bytes(b"killed while it was written")
    again = begun(out)
    assert again.state is not None
    assert again.state["progress"] == {"steps": 3}
    assert torch.equal(again.state["student"]["weights"]["w"], torch.ones(2))
    with pytest.raises(SettingError, match=r"other settings \(seed=0 -> 1\)"):
        Unfinished(out, {"seed": 1})


def test_publishing_replaces_an_earlier_warm_start_and_leaves_no_state(tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "warmstart.json").write_text("{}")
    (out / "old").write_text("")
    unfinished = begun(out)
    unfinished.save_state({"progress": {}})
    assert json.loads((out / "warmstart.json").read_text()) == {}, "untouched until this one is finished"
    unfinished.publish({"success": 0.5}, reached=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert [path.name for path in out.iterdir()] == ["warmstart.json"]


def test_one_short_of_its_target_is_gone_on_from_with_its_settings_and_stays_until_then(tmp_path) -> None:
    out = tmp_path / "out"
    unfinished = begun(out)
    unfinished.save_state({"progress": {"steps": 3}})
    unfinished.publish({"success": 0.1}, reached=False)
    again = begun(out)
    assert again.state == {"progress": {"steps": 3}} and (again.folder / "warmstart.json").exists()
    assert json.loads((out / "warmstart.json").read_text()) == {"success": 0.1}
    again.publish({"success": 0.9}, reached=True)
    assert [path.name for path in out.iterdir()] == ["warmstart.json"]
    unfinished = begun(out)
    unfinished.save_state({"progress": {}})
    unfinished.publish({}, reached=False)
    assert Unfinished(out, {"seed": 1}).state is None, "others begin anew, and replace it once they are done"


def test_a_state_that_this_version_did_not_write_is_refused(tmp_path) -> None:
    first = begun(tmp_path / "out")
    state = first.folder / "warmstart_state.pt"
    torch.save({"settings": {"seed": 0}, "progress": {"reached": False}}, state)
    with pytest.raises(SettingError, match=r"of another version \(format 1, here 2\)"):
        begun(tmp_path / "out")
    first.save_state({"progress": {}})
    state.write_bytes(state.read_bytes()[:-200])
    with pytest.raises(SettingError, match=r"whose state cannot be read \(RuntimeError: .*remove that folder"):
        begun(tmp_path / "out")
    torch.save([1], state)
    with pytest.raises(SettingError, match="whose state cannot be read"):
        begun(tmp_path / "out")


def test_a_folder_without_state_is_begun_anew(tmp_path) -> None:
    unfinished = begun(tmp_path / "out")
    (unfinished.folder / "rest").write_text("")
    begun(tmp_path / "out")
    assert not (unfinished.folder / "rest").exists()
