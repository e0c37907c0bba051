"""What a checkpoint may name: the package's own classes, and what the caller has given; nothing that only could be."""

from __future__ import annotations

import pathlib
import sys

import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.env_runner import EnvRunner

from gspo_rllib.checkpoints.code import Trust, name_of
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.errors import CheckpointError


class Mine(RLlibCallback):
    """A class of the user's."""


def test_a_class_of_this_package_of_the_right_kind_is_found() -> None:
    found = Trust().find(name_of(LanguageEnvRunner), kind=EnvRunner, what="env_runner_cls", where="c")
    assert found is LanguageEnvRunner


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("os:system", "code that nobody here has vouched for"),
        ("subprocess:Popen", "vouched"),
        ("builtins:exec", "vouched"),
        ("evil_module_of_a_stranger:Callbacks", "vouched"),
        (f"{__name__}:Mine", "vouched"),
        ("ray.rllib.callbacks.callbacks:RLlibCallback", "vouched"),
        ("gspo_rllib.checkpoints.places:shutil.rmtree", "does not define itself"),
        ("gspo_rllib.checkpoints.places:os.system", "does not define itself"),
        ("gspo_rllib.cli.main:main", "is no RLlibCallback"),
        ("gspo_rllib.env_runners.language_env_runner:LanguageEnvRunner", "is no RLlibCallback"),
        ("gspo_rllib.no_such:Thing", "cannot be imported"),
        ("gspo_rllib:__builtins__.exec", "cannot be imported"),
        ("gspo_rllib_elsewhere:Thing", "vouched"),
        ("", "expected 'module:name'"),
        (None, "expected 'module:name'"),
        ({"a": 1}, "expected 'module:name'"),
    ],
)
def test_what_nobody_gave_is_refused(name: object, said: str) -> None:
    before = set(sys.modules)
    with pytest.raises(CheckpointError, match=said):
        Trust().find(name, kind=RLlibCallback, what="callbacks_class", where="c")
    assert not {module for module in set(sys.modules) - before if not module.startswith("gspo_rllib")}


def test_no_function_of_this_package_is_found_unless_it_was_given() -> None:
    with pytest.raises(CheckpointError, match="vouched"):
        Trust().find("gspo_rllib.cli.main:main", kind=None, what="callbacks_on_train_result", where="c")


@pytest.mark.parametrize("trust", [[Mine], [__name__], [f"{__name__}:Mine"], ["tests"], __name__])
def test_what_the_caller_lists_is_found(trust: object) -> None:
    found = Trust(trust).find(f"{__name__}:Mine", kind=RLlibCallback, what="callbacks_class", where="c")  # type: ignore[arg-type]
    assert found is Mine


def test_a_trusted_module_is_not_trusted_with_what_it_imports() -> None:
    with pytest.raises(CheckpointError, match="does not define itself"):
        Trust([__name__]).find(f"{__name__}:pathlib.Path", kind=None, what="env", where="c")


def test_a_module_that_fails_is_said_to(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails_on_import.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CheckpointError, match="cannot be imported"):
        Trust(["fails_on_import"]).find("fails_on_import:X", kind=RLlibCallback, what="callbacks_class", where="c")


def test_what_has_no_name_has_none() -> None:
    assert name_of(lambda: 0) is None
    assert name_of(Mine()) is None
    assert name_of(Mine) == f"{__name__}:Mine"
