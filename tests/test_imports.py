"""While frameworks are imported nothing is collected; afterwards everything is as it was."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest

from gspo_rllib.imports import draws_undone, undisturbed


def test_nothing_is_collected_inside_and_collection_is_as_before_afterwards() -> None:
    assert gc.isenabled()
    with undisturbed():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with undisturbed():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_import_that_fails_leaves_collection_on() -> None:
    with pytest.raises(ModuleNotFoundError), undisturbed():
        import no_such_module_at_all  # noqa: F401
    assert gc.isenabled()


def test_what_is_drawn_inside_is_undone_also_where_it_fails() -> None:
    expected = random.getstate(), np.random.get_state()[1].tolist()

    def drawing() -> None:
        random.random()
        np.random.rand()
        raise ImportError("half-way")

    with pytest.raises(ImportError), draws_undone():
        drawing()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == expected
