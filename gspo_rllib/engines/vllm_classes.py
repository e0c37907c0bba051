"""Keeps vLLM from changing transformers' own classes, which a learner in the same process trains with.

Where vLLM runs transformers' code for a model, it rewrites the constructor and the call of the decoder's class, so that
from then on every object of that class needs vLLM's configuration. Here these changes go to a class of vLLM's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm import ModelRegistry
from vllm.compilation import decorators

Claim = Callable[[torch.nn.Module], None]


@contextmanager
def classes_kept() -> Iterator[Claim]:
    """Undoes, at the end of the block, what vLLM changed in classes that are not its own.

    Yields:
        To be called in the block with vLLM's model: its parts keep what was changed for them.
    """
    changed: dict[type, tuple[tuple[type, ...], dict[str, Any]]] = {}
    original = getattr(decorators, "_support_torch_compile", None)

    def noting(cls: type, *args: Any, **kwargs: Any) -> Any:
        if not cls.__module__.startswith("vllm."):
            changed.setdefault(cls, (cls.__bases__, dict(vars(cls))))
        assert original is not None
        return original(cls, *args, **kwargs)

    def claim(model: torch.nn.Module) -> None:
        own = {cls: _with_changes(cls, *before) for cls, before in changed.items()}
        for module in model.modules():
            if type(module) in own:
                module.__class__ = own[type(module)]

    if original is not None:
        decorators._support_torch_compile = noting
    try:
        yield claim
    finally:
        if original is not None:
            decorators._support_torch_compile = original
        for cls, before in changed.items():
            _restore(cls, *before)


def inspect_here(architecture: str) -> type | None:
    """Lets vLLM inspect the model's class in this process, which imports it anyway.

    Where its file cache does not know the class yet, vLLM starts another Python for that, to keep CUDA out of this one;
    on a CPU that only imports all of vLLM a second time, 10 s of a machine's first start.

    Args:
        architecture: Name of the model's class.

    Returns:
        The class; None where vLLM has none of its own.
    """
    lazy = ModelRegistry.models.get(architecture)
    if lazy is None:
        return None
    model_class: type = lazy.load_model_cls()
    ModelRegistry.register_model(architecture, model_class)
    return model_class


def _with_changes(cls: type, bases: tuple[type, ...], attributes: dict[str, Any]) -> type:
    """A subclass that has what was changed in a class, and what it was given as further bases."""
    added = tuple(base for base in cls.__bases__ if base not in bases)
    body = {name: value for name, value in vars(cls).items() if attributes.get(name) is not value}
    return type(cls)(cls.__name__, (cls, *added), {**body, "__module__": cls.__module__})


def _restore(cls: type, bases: tuple[type, ...], attributes: dict[str, Any]) -> None:
    for name in set(vars(cls)).difference(attributes):
        delattr(cls, name)
    for name, value in attributes.items():
        if vars(cls).get(name) is not value:
            setattr(cls, name, value)
    if cls.__bases__ != bases:
        cls.__bases__ = bases
