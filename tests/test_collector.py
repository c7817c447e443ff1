"""Garbage is searched for when it should be: never within, and in a process of its own not what is kept."""

from __future__ import annotations

import atexit
import gc

import pytest

from auditspec.collector import own_process, unsearched


def test_nothing_is_searched_within() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="seen"), unsearched():
        assert not gc.isenabled()
        with unsearched():
            pass
        assert not gc.isenabled()
        raise ValueError("seen")
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_where_nobody_searches_nobody_begins_to() -> None:
    gc.disable()
    try:
        with unsearched():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_in_a_process_of_its_own_what_was_made_is_kept() -> None:
    try:
        with own_process():
            with unsearched():
                made = [[number] for number in range(1000)]
            assert gc.get_freeze_count() > len(made)
        assert gc.get_freeze_count() == 0
        with unsearched():
            pass
        assert gc.get_freeze_count() == 0
    finally:
        atexit.unregister(gc.freeze)
