"""Shared by the tests of the plug-in."""

import pytest
from support.patching import spy


@pytest.fixture
def calls(monkeypatch):
    """Names of our functions that ran, in order."""
    return spy(monkeypatch)
