"""A cached value is made once, whichever thread comes first."""

import ast
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

import sigtorch
from sigtorch import _autograd
from sigtorch._once import once

ROOT = Path(sigtorch.__file__).parent


def in_threads(function, count=4):
    """Returns what so many threads get that start at once."""
    start, found = threading.Barrier(count), []

    def run():
        start.wait()
        found.append(function())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_threads_get_one_value():
    @once
    def slow(key):
        time.sleep(0.01)
        return object()

    assert len(set(in_threads(lambda: slow(1)))) == 1
    assert slow(1) is not slow(2)
    before = slow(1)
    slow.cache_clear()
    assert slow(1) is not before


def test_an_error_is_not_kept():
    answers = iter([ValueError("first"), None])

    @once
    def fails():
        if error := next(answers):
            raise error
        return "second"

    with pytest.raises(ValueError, match="first"):
        fails()
    assert fails() == "second"


def test_an_operation_is_first_used_in_several_threads(monkeypatch):
    """Backward takes what its forward saved for what it is, on whichever thread the operation ran first."""
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *a, **k: time.sleep(0.01) or arange(*a, **k))  # so that others ask, too

    def train():
        x = torch.randn(4, 6, requires_grad=True)
        sigtorch.sigmoid(x, save="input").sum().backward()
        return x.grad is not None

    _autograd.marker.cache_clear()
    assert in_threads(train) == [True] * 4


def test_a_child_waits_for_nothing_of_its_parents_threads():
    """A process may fork while a thread computes a value."""
    started, end = threading.Event(), threading.Event()

    @once
    def slow():
        if threading.current_thread() is not threading.main_thread():
            started.set()
            end.wait()
        return 1

    thread = threading.Thread(target=slow)
    thread.start()
    started.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python, that threads are running
        child = os.fork()
    if not child:
        signal.alarm(10)
        os._exit(slow() - 1)
    end.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("path", sorted(ROOT.rglob("[!_]*.py")) + sorted(ROOT.glob("_*.py")), ids=lambda p: p.name)
def test_nothing_else_caches(path):
    """But for look-ups of kernels, and code of which only its equality counts: these may be made twice."""
    names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    allowed = path.name in ("_once.py", "source.py") or "kernels" in path.parts
    assert allowed or not names & {"cache", "lru_cache"}
