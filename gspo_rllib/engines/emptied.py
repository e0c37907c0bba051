"""The memory of a model's parameters, given back for as long as nobody needs their values."""

from __future__ import annotations

import torch


class Emptied:
    """A model whose parameters have no storage until they are filled; modules, names and ties stay as they are.

    Args:
        model: Loses the values of its parameters; buffers keep theirs.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._shapes = [(parameter, parameter.shape) for parameter in model.parameters()]
        for parameter, _ in self._shapes:
            parameter.data = parameter.data.new_empty(0)

    def fill(self) -> None:
        """Gives the parameters storage again, of no particular values."""
        for parameter, shape in self._shapes:
            parameter.data = parameter.data.new_empty(shape)
