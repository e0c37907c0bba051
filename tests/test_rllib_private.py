"""Every private name of Ray that the package uses is in one table, and the installed Ray has each of them."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

import gspo_rllib
from gspo_rllib.rllib_private import PRIVATE_NAMES, PrivateName

PACKAGE = Path(gspo_rllib.__file__).parent
BY_STRING = {"getattr", "setattr", "hasattr", "delattr"}


# -- the installed Ray


def load(path: str) -> Any:
    """A module, or a class of one, by its import path."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


@functools.cache
def defined_by(owner: type) -> frozenset[str]:
    """Private names that a class itself defines: methods, class attributes, and what its methods set on ``self``."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    return frozenset(name for name in {*vars(owner), *set_on_self(tree)} if is_private(name))


@functools.cache
def identifiers_of_ray() -> frozenset[str]:
    """Every private identifier in Ray's Python sources; a name that is not among them is not Ray's."""
    found: set[str] = set()
    for path in Path(ray.__file__).parent.rglob("*.py"):
        if "thirdparty_files" not in path.parts:
            found.update(re.findall(r"\b_[a-zA-Z]\w*", path.read_text(errors="replace")))
    return frozenset(found)


@pytest.mark.parametrize("entry", PRIVATE_NAMES, ids=lambda entry: f"{entry.owner.rpartition('.')[2]}.{entry.name}")
def test_the_installed_ray_has_it(entry: PrivateName) -> None:
    owner = load(entry.owner)
    has = entry.name in defined_by(owner) if isinstance(owner, type) else hasattr(owner, entry.name)
    assert has, f"Ray {ray.__version__} has no {entry.owner}.{entry.name} any more. What it is for: {entry.why}"


# -- reading sources


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def is_self(node: ast.expr) -> bool:
    """Whether an expression is ``self``, ``cls`` or ``super()``."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def set_on_self(tree: ast.AST) -> set[str]:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value))
    return {node.attr for node in nodes if isinstance(node.ctx, ast.Store)}


def in_the_body(tree: ast.ClassDef) -> set[str]:
    """Names of a class's methods and class attributes."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def accesses(tree: ast.AST) -> Iterator[tuple[ast.expr, str, int]]:
    """Every private attribute as (of what, name, line); those named by a string for getattr and its like too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.value, node.attr, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_STRING:
            match node.args:
                case [of, ast.Constant(value=str(name)), *_] if is_private(name):
                    yield of, name, node.lineno


class Source:
    """One file: its classes by name, and what its imports bind, as local name → import path."""

    def __init__(self, module: str, text: str) -> None:
        self.module = module
        self.tree = ast.parse(text)
        self.classes = {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)}
        self.imported: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                self.imported |= {a.asname or a.name.partition(".")[0]: a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                self.imported |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}

    def origin(self, node: ast.expr) -> str | None:
        """The package that the ``a`` of an expression ``a.b.c`` is imported from; None for a variable."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return self.imported.get(node.id, "").partition(".")[0] or None if isinstance(node, ast.Name) else None

    def own_names(self) -> set[str]:
        """Names that classes of this file define."""
        return set().union(*(in_the_body(tree) | set_on_self(tree) for tree in self.classes.values()))


def package_sources() -> list[Source]:
    found = []
    for folder, subfolders, files in os.walk(PACKAGE, followlinks=True):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            parts = [part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"]
            found.append(Source(".".join([PACKAGE.name, *parts]), path.read_text()))
    return found


# -- what they use of Ray


@dataclass(frozen=True)
class Use:
    """A private name of Ray in a source.

    Attributes:
        name: The name.
        where: Module and line, or module and class.
        owners: Import paths of what may define it, one of which is to be in the table; None when the expression it is
            an attribute of does not tell.
    """

    name: str
    where: str
    owners: frozenset[str] | None = None

    def is_of(self, entry: PrivateName) -> bool:
        return entry.name == self.name and (self.owners is None or entry.owner in self.owners)


def in_imports(source: Source) -> Iterator[Use]:
    """Private modules, and private names of modules, that are imported."""
    for path in source.imported.values():
        parts = path.split(".")
        for i, part in enumerate(parts):
            if parts[0] == "ray" and is_private(part):
                yield Use(part, source.module, frozenset([".".join(parts[:i])]))


def on_other_objects(source: Source) -> Iterator[Use]:
    """Attributes of anything but ``self``, where the name occurs in Ray and is not one of a class in the same file."""
    own = source.own_names()
    for of, name, line in accesses(source.tree):
        origin = source.origin(of)
        may_be_ray_s = origin == "ray" or (origin is None and name not in own)
        if not is_self(of) and may_be_ray_s and name in identifiers_of_ray():
            yield Use(name, f"{source.module}:{line}")


def on_self(sources: Sequence[Source]) -> Iterator[Use]:
    """Attributes of ``self``, and overridden names, that one of Ray's classes above defines as well.

    A mixin counts for each class of Ray's that it is mixed with.
    """
    trees = {(source.module, name): tree for source in sources for name, tree in source.classes.items()}
    for made in classes_below_ray_s(sources):
        above = [base for base in made.__mro__ if is_ray_s(base)]
        for part in made.__mro__:
            if tree := trees.get((part.__module__, part.__qualname__)):
                names = in_the_body(tree) | {name for of, name, _ in accesses(tree) if is_self(of)}
                for name in names:
                    owners = [f"{base.__module__}.{base.__qualname__}" for base in above if name in defined_by(base)]
                    if owners:
                        yield Use(name, f"{part.__module__}.{part.__qualname__}", frozenset(owners))


def classes_below_ray_s(sources: Sequence[Source]) -> Iterator[type]:
    """Classes with one of Ray's above them, however far up. Only modules that may hold one are imported."""
    bases = [
        (name, {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in tree.bases})
        for source in sources
        for name, tree in source.classes.items()
    ]
    below = {name for source in sources for name, path in source.imported.items() if path.startswith("ray.")}
    below |= {
        ast.unparse(base).rpartition(".")[2]
        for source in sources
        for tree in source.classes.values()
        for base in tree.bases
        if source.origin(base) == "ray"
    }
    while more := {name for name, above in bases if above & below} - below:
        below |= more
    for source in sources:
        for name in source.classes.keys() & below:
            made = getattr(importlib.import_module(source.module), name, None)
            if isinstance(made, type) and any(is_ray_s(base) for base in made.__mro__):
                yield made


def is_ray_s(owner: type) -> bool:
    return owner.__module__.partition(".")[0] == "ray"


def uses(sources: Sequence[Source]) -> set[Use]:
    found = set(on_self(sources))
    for source in sources:
        found.update(in_imports(source), on_other_objects(source))
    return found


@pytest.fixture(scope="module")
def used() -> set[Use]:
    return uses(package_sources())


def test_every_private_name_in_use_is_in_the_table(used: set[Use]) -> None:
    missing = [use for use in used if not any(use.is_of(entry) for entry in PRIVATE_NAMES)]
    lines = sorted(f"{use.name} in {use.where}; defined by {sorted(use.owners or ['?'])}" for use in missing)
    assert not missing, "private names of Ray that gspo_rllib/rllib_private.py lacks:\n" + "\n".join(lines)


def test_the_table_holds_nothing_that_is_not_in_use(used: set[Use]) -> None:
    unused = [entry for entry in PRIVATE_NAMES if not any(use.is_of(entry) for use in used)]
    assert not unused, "nothing uses these any more; take them out of gspo_rllib/rllib_private.py"


def test_the_table_holds_each_name_once_and_says_why() -> None:
    assert len({(entry.owner, entry.name) for entry in PRIVATE_NAMES}) == len(PRIVATE_NAMES)
    assert all(entry.why.endswith(".") and is_private(entry.name) for entry in PRIVATE_NAMES)


@pytest.mark.parametrize(
    ("text", "name", "owner"),
    [
        ("def f(group):\n    return group._worker_manager.actors()", "_worker_manager", None),
        ("def f(group):\n    return getattr(group, '_worker_manager', None)", "_worker_manager", None),
        ("def f(group):\n    group.algorithm._remote_config = 1", "_remote_config", None),
        ("from ray.tune.registry import _global_registry as known", "_global_registry", "ray.tune.registry"),
        ("import ray._private.worker", "_private", "ray"),
        ("import ray\nprint(ray._private.worker)", "_private", None),
        (
            "class C:\n    def f(self, group):\n        self._x = 1\n        return group._worker_manager",
            "_worker_manager",
            None,
        ),
    ],
)
def test_the_scan_sees(text: str, name: str, owner: str | None) -> None:
    (use,) = uses([Source("example", text)])
    assert (use.name, use.owners) == (name, None if owner is None else frozenset([owner]))


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.cpu._init_amx()",
        "def f(model):\n    return model._no_such_name_in_ray_at_all",
        "class C:\n    def f(self, other):\n        self._worker_manager = other._worker_manager",
        "def f(group):\n    group.worker_manager, group.__dict__",
    ],
)
def test_the_scan_leaves_alone_what_is_not_ray_s(text: str) -> None:
    assert not uses([Source("example", text)])


def test_the_scan_sees_what_a_subclass_of_a_subclass_and_a_mixin_take_from_ray(tmp_path: Path, monkeypatch) -> None:
    text = (
        "from ray.rllib.core.learner.learner import Learner\n"
        "class Mixin:\n"
        "    def first(self): return self._learner_connector\n"
        "class Base(Learner):\n"
        "    def own(self): self._own_name = 1\n"
        "class Sub(Mixin, Base):\n"
        "    def _log_metrics(self, batch): return super()._log_metrics(batch), self._own_name\n"
    )
    (tmp_path / "private_example.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    learner = frozenset(["ray.rllib.core.learner.learner.Learner"])
    assert uses([Source("private_example", text)]) == {
        Use("_learner_connector", "private_example.Mixin", learner),
        Use("_log_metrics", "private_example.Sub", learner),
    }
