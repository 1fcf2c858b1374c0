"""Checks of errors for a user's mistakes."""

from pathlib import Path

import pytest

import sigtorch

OURS = Path(sigtorch.__file__).parent


def refused(kind, call, *quoted):
    """Checks that a call raises an error of ours: one line that quotes what was seen."""
    with pytest.raises(kind) as raised:
        call()
    text = str(raised.value)
    assert "\n" not in text
    assert all(q in text for q in quoted), text
    assert OURS in raised.traceback[-1].path.parents
