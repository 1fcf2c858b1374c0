"""What is cached has one value, whichever thread comes first."""

import ast
import itertools
import threading
import time
from pathlib import Path

import pytest
import torch

import sigtorch
from sigtorch import _autograd
from sigtorch._once import once

ROOT = Path(sigtorch.__file__).parent


def in_threads(function, count=4):
    """What so many threads get, which start at once."""
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


def test_a_function_runs_once_for_each_key():
    calls = []

    @once
    def slow(key):
        calls.append(key)
        time.sleep(0.01)
        return object()

    assert len(set(in_threads(lambda: slow(1)))) == 1
    assert slow(1) is not slow(2)
    assert calls == [1, 2]
    slow.cache_clear()
    slow(1)
    assert calls == [1, 2, 1]


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


class SlowNumbers:
    """Numbers that take long enough for another thread to ask, too."""

    def __init__(self):
        self.numbers = itertools.count(_autograd.MARKER_DIMS)

    def __next__(self):
        number = next(self.numbers)
        time.sleep(0.01)
        return number


def test_an_operation_is_first_used_in_several_threads(monkeypatch):
    """Backward takes what its forward saved for what it is, whoever used the operation first."""
    monkeypatch.setattr(_autograd, "_numbers", SlowNumbers())
    _autograd.marker.cache_clear()

    def train():
        x = torch.randn(4, 6, requires_grad=True)
        sigtorch.sigmoid(x, save="input").sum().backward()
        return x.grad is not None

    try:
        assert in_threads(train) == [True] * 4
    finally:
        _autograd.marker.cache_clear()


@pytest.mark.parametrize("path", sorted(ROOT.rglob("[!_]*.py")) + sorted(ROOT.glob("_*.py")), ids=lambda p: p.name)
def test_nothing_else_caches(path):
    """But for look-ups of kernels, and code of which only its equality counts: these may be made twice."""
    names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    allowed = path.name in ("_once.py", "source.py") or "kernels" in path.parts
    assert allowed or not names & {"cache", "lru_cache"}
