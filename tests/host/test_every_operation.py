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
@pytest.mark.parametrize("case", [c for c in CASES if c.fused], ids=lambda c: c.name)
def test_dtypes(case, dtype, shape):
    assert all(launches(case.ours, *case.inputs(SHAPES[shape], dtype)))


@pytest.mark.parametrize("strides", STRIDES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", [c for c in CASES if c.fused], ids=lambda c: c.name)
def test_strides(case, strides):
    inputs = [strides(t.detach()).requires_grad_() for t in case.inputs((4, 6, 16), torch.bfloat16)]
    assert all(launches(case.ours, *inputs))


@pytest.mark.parametrize("dtypes", [*itertools.permutations(DTYPES[:3], 2)], ids=str)
def test_mixed_dtypes(dtypes):
    assert all(launches(sigtorch.swiglu, *[torch.randn(4, 6, dtype=d, requires_grad=True) for d in dtypes]))
