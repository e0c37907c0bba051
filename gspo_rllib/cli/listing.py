"""``gspo-rllib list``: the algorithms, environments, engines, shipped configs and studies that can be named."""

from __future__ import annotations

import argparse
import ast
import importlib.util
from pathlib import Path
from typing import Any

from gspo_rllib.cli.terminal import columns, print_names


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("list", help="algorithms, environments, engines, configs", description=__doc__)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints one block per kind."""
    import gymnasium as gym

    import gspo_rllib.envs  # noqa: F401 - registers the environments
    from gspo_rllib.configs import shipped_configs
    from gspo_rllib.engines.registry import available_engines
    from gspo_rllib.studies import shipped_studies

    ours = sorted(env_id for env_id in gym.registry if env_id.startswith("gspo_rllib/"))
    blocks = {
        "algorithms (--algorithm, run.algorithm)": algorithms().items(),
        "environments (--env, environment.env)": [(f"gspo_rllib.envs:{env_id}", _task(env_id)) for env_id in ours],
        "engines (generation.engine)": [(name, _default_for(name)) for name in available_engines()],
        "configs (gspo-rllib train NAME)": [(name, _first_comment(path)) for name, path in shipped_configs().items()],
        "studies (gspo-rllib study NAME)": [(name, _first_comment(path)) for name, path in shipped_studies().items()],
    }
    for title, rows in blocks.items():
        print_names(title, rows, width=columns())
    return 0


def _default_for(engine: str) -> str:
    from gspo_rllib.engines.registry import default_engine

    if engine == default_engine():
        return "the default"
    return "the default for a small model on a CPU" if engine == "transformers" else ""


def algorithms() -> dict[str, str]:
    """Name of every algorithm to what it is, in the order of ``gspo_rllib.algorithms.ALGORITHMS``.

    Both are read off the sources: importing the algorithms imports ray, torch and transformers, which takes seconds.
    """
    package = importlib.util.find_spec("gspo_rllib.algorithms")
    assert package is not None and package.origin is not None
    file = Path(package.origin)
    homes: dict[str, str] = {}
    names: list[str] = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            homes |= {alias.name: node.module.removeprefix("gspo_rllib.algorithms.") for alias in node.names}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "ALGORITHMS":
            assert isinstance(node.value, ast.DictComp) and isinstance(node.value.generators[0].iter, ast.Tuple)
            names = [element.id for element in node.value.generators[0].iter.elts if isinstance(element, ast.Name)]
    sources = {name: file.parent.joinpath(*homes[name].split(".")).with_suffix(".py") for name in names}
    return {name: _docstring(source, name).partition(";")[0] for name, source in sources.items()}


def _task(env_id: str) -> str:
    """What an environment's file says it is, in a line."""
    import gymnasium as gym

    module = str(gym.registry[env_id].entry_point).partition(":")[0]
    package = importlib.util.find_spec("gspo_rllib.envs")
    assert package is not None and package.origin is not None
    inside = module.removeprefix("gspo_rllib.envs.").split(".")
    first = _docstring(Path(package.origin).parent.joinpath(*inside).with_suffix(".py")).partition("\n")[0]
    return (first.partition(": ")[2] or first).removesuffix(".")


def _docstring(source: Path, class_name: str | None = None) -> str:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    if class_name is None:
        return ast.get_docstring(tree) or ""
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    return ast.get_docstring(found[0]) or "" if found else ""


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
