"""Shared by the tests of operations."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Computes in one thread: on a busy machine several wait for each other, and that takes processors' time, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
