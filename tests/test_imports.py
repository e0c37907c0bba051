"""While frameworks are imported nothing is collected; afterwards everything is as it was."""

from __future__ import annotations

import gc

import pytest

from gspo_rllib.imports import undisturbed


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
