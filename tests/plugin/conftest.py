"""Shared by the tests of the plug-in."""

import pytest
import torch
from support.patching import spy


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Computes in one thread: on a busy machine several wait for each other, and that takes processors' time, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def calls(monkeypatch):
    """Names of our functions that ran, in order."""
    return spy(monkeypatch)
