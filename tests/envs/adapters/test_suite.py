"""All adapters: a missing package or Java is an error with the remedy, and registering imports nothing."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

import gspo_rllib
from gspo_rllib.errors import EnvError
from tests.envs.adapters.suites import make

ROOT = Path(gspo_rllib.__file__).parents[1]
ADAPTERS = {
    "babyai": ("gspo_rllib/BabyAI-v0", "minigrid", {}),
    "textworld-express": ("gspo_rllib/TextWorldExpress-v0", "textworld_express", {}),
    "scienceworld": ("gspo_rllib/ScienceWorld-v0", "scienceworld", {}),
    "textarena": ("gspo_rllib/TextArena-v0", "textarena", {}),
    "reasoning-gym": ("gspo_rllib/ReasoningGym-v0", "reasoning_gym", {}),
    "openenv": ("gspo_rllib/OpenEnv-v0", "websockets", {"url": "ws://localhost:1/ws"}),
}


@pytest.mark.parametrize("extra", ADAPTERS)
def test_a_missing_package_is_an_error_that_names_the_extra(extra, monkeypatch) -> None:
    env_id, package, settings = ADAPTERS[extra]
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvError, match=rf"pip install 'gspo-rllib\[{extra}\]'"):
        gymnasium.make(f"gspo_rllib.envs:{env_id}", **settings)


def test_the_extras_and_the_package_are_in_the_project_file() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in text for extra in ADAPTERS)


@pytest.mark.parametrize(("name", "settings"), [("TextWorldExpress", {}), ("ScienceWorld", {})])
def test_missing_java_is_an_error_that_says_how_to_get_it(name, settings, monkeypatch, tmp_path) -> None:
    pytest.importorskip("py4j")
    pytest.importorskip(name.lower() if name == "ScienceWorld" else "textworld_express")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(EnvError, match=r"Java was not found.*default-jre-headless.*JAVA_HOME"):
        make(name, **settings)


def test_registering_them_imports_none_of_the_packages() -> None:
    packages = {package for _, package, _ in ADAPTERS.values()} | {"py4j", "reasoning_gym", "torch", "ray"}
    code = f"import sys, gspo_rllib.envs; print(sorted({sorted(packages)!r} & sys.modules.keys()))"
    code = code.replace(repr(sorted(packages)), f"set({sorted(packages)!r})")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "envs/adapters").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_the_examples_of_an_adapter_are_true_and_its_card_is_complete(path) -> None:
    module = importlib.import_module(f"gspo_rllib.envs.adapters.{path.stem}")
    assert doctest.testmod(module).failed == 0
    if path.stem not in ("jvm", "randomness", "suite"):
        for field in ("Observation", "Action", "Reward", "Ends", "Info", "Settings", "Expert", "Cannot", "Versions"):
            if (field, path.stem) != ("Cannot", "babyai"):
                assert f"\n{field} " in (module.__doc__ or ""), field
