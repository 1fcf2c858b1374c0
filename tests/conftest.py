"""Fixtures of all tests. Without a GPU, kernels run in Triton's interpreter; uninitialised memory is filled with NaN."""

import contextlib
import gc
import os

import pytest
import torch
from support.device import DEVICE

# Folders and files that take minutes come first, or one of several processes would wait for another's last.
LONGEST = {"test_machine_code", "test_registers", "scripts"}

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms ask of matrix products
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def interpreter():
    if os.environ.get("TRITON_INTERPRET") == "1":
        from support.interpreting import make_fast  # only now: the interpreter is chosen above

        make_fast()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Computes in one thread: on a busy machine several wait for each other, and that takes processors' time, too."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def poison():
    """Deterministic mode fills what torch.empty gives with NaN: a kernel that skips an element is seen."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def plans(monkeypatch):
    """Plans of a test's own, none at first: for one that sets what a plan is made from, or looks at what is kept.

    All other tests run with the plans of those before them, so that a plan that serves the wrong operands is seen.
    """
    from sigtorch.kernels import _plan  # only now: the interpreter is chosen above

    own = {}
    monkeypatch.setattr(_plan, "_plans", own)
    return own


@pytest.fixture
def variable(monkeypatch):
    """Sets SIGTORCH_BACKEND, for a test, as if it had been set from the start."""
    from sigtorch import _backend  # only now: the interpreter is chosen above

    def set_to(name):
        monkeypatch.setenv("SIGTORCH_BACKEND", name)
        _backend._named_by_variable.cache_clear()

    yield set_to
    monkeypatch.undo()
    _backend._named_by_variable.cache_clear()


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def on_device():
    """Makes tensors on the GPU, where there is one, unless a test names another device."""
    with contextlib.nullcontext() if DEVICE == "cpu" else torch.device(DEVICE):
        yield


def pytest_collectstart(collector):
    """Seeds what files draw while they are imported, which is then the same whichever files came before."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(config, items):
    ptx_arch = config.getoption("ptx_arch", None)  # an option of a plugin, without which most runs are
    elsewhere = [item for item in items if not _belongs(item, ptx_arch)]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]
    items.sort(key=lambda item: LONGEST.isdisjoint(item.path.with_suffix("").parts[-2:]))
    for item in items:
        if item.get_closest_marker("gpu") and DEVICE == "cpu":
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    """Has no collection of garbage look at the million objects that are alive once all tests are imported."""
    gc.collect()
    gc.freeze()


def _belongs(item, ptx_arch):
    """Tells whether a run has the test: by what its marks say of PTX runs, of which ``ptx_arch`` is the architecture."""
    if own := item.get_closest_marker("ptx_run"):
        return own.args == (ptx_arch,)
    return ptx_arch in (None, 90) or not item.get_closest_marker("any_arch")
