"""Compiles and launches every operation in every dtype and layout that has a kernel."""

import itertools

import pytest
import torch
from support.cases import CASES, DTYPES, STRIDES
from support.launching import by_release, for_a_stand_in, launches

import sigtorch

pytestmark = for_a_stand_in
SHAPES = {"rows of vectors": (4, 6, 16), "odd rows": (2, 3, 18), "images": (2, 3, 4, 6)}


@pytest.mark.parametrize(("dtype", "shape"), by_release(DTYPES, SHAPES, (torch.bfloat16, "rows of vectors")), ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_dtypes(case, dtype, shape):
    assert all(launches(case.ours, *case.inputs(SHAPES[shape], dtype)))


@pytest.mark.parametrize("strides", STRIDES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_strides(case, strides):
    inputs = [strides(t.detach()).requires_grad_() for t in case.inputs((4, 6, 16), torch.bfloat16)]
    assert all(launches(case.ours, *inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 1, 6), (3, 1, 4, 1), (1,)], ids=str)
def test_four_axes_and_other_orders(shape, dtype):
    x, gate = (torch.randn(s, dtype=dtype, requires_grad=True) for s in ((3, 5, 4, 6), shape))
    for a, b in ((x, gate), (gate, x), (x, x.detach().mT.contiguous().mT.requires_grad_())):
        assert all(launches(sigtorch.sigmoid_gate, a, b))


@pytest.mark.parametrize("dtypes", [*itertools.permutations(DTYPES[:3], 2)], ids=str)
def test_mixed_dtypes(dtypes):
    assert all(launches(sigtorch.swiglu, *[torch.randn(4, 6, dtype=d, requires_grad=True) for d in dtypes]))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize(
    "name", ["swiglu-clamped", "swiglu-weighted", "swiglu-interleaved", "swiglu-interleaved-weighted"]
)
def test_one_launch_a_pass(name, dtype):
    """A weight's gradient of a row that several programs add up takes a sum of PyTorch's more."""
    (case,) = (c for c in CASES if c.name == name)
    assert launches(case.ours, *case.inputs((6, 1024), dtype)) == (1, 1)
