"""Compiles and launches every operation in every dtype and layout that has a kernel; see `make test-tritons`."""

import itertools

import pytest
import torch
import triton
from support.cases import CASES, DTYPES, STRIDES
from support.device import DEVICE
from support.loss_cases import IMAGES, KINDS, LOSSES, OPTIONS, images, make, suit
from without_gpu import standin

import sigtorch
from sigtorch.kernels import chunked_losses

pytestmark = pytest.mark.skipif(
    triton.knobs.runtime.interpret or DEVICE == "cuda",
    reason="compiles for a GPU that is not there: see `make test-tritons`",
)
SHAPES = {"rows of vectors": (4, 6, 16), "odd rows": (2, 3, 18), "images": (2, 3, 4, 6)}


def launches(call, *inputs):
    """Returns how many kernels were launched forward and backward."""
    before = standin.launches()
    with sigtorch.use_backend("triton"):
        out = call(*inputs)
        forward = standin.launches()
        torch.autograd.grad(out, [t for t in inputs if t.requires_grad], torch.ones_like(out))
    return forward - before, standin.launches() - forward


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES.values()], ids=[*SHAPES])
@pytest.mark.parametrize("case", [c for c in CASES if c.fused], ids=lambda c: c.name)
def test_dtypes(case, shape, dtype):
    assert all(launches(case.ours, *case.inputs(shape, dtype)))


@pytest.mark.parametrize("strides", STRIDES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", [c for c in CASES if c.fused], ids=lambda c: c.name)
def test_strides(case, strides):
    inputs = [strides(t.detach()).requires_grad_() for t in case.inputs((4, 6, 16), torch.bfloat16)]
    assert all(launches(case.ours, *inputs))


@pytest.mark.parametrize("dtypes", [*itertools.permutations(DTYPES[:3], 2)], ids=str)
def test_mixed_dtypes(dtypes):
    assert all(launches(sigtorch.swiglu, *[torch.randn(4, 6, dtype=d, requires_grad=True) for d in dtypes]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("loss", "options"), OPTIONS)
def test_losses(loss, options, dtype, kind):
    for reduction in ("none", "mean"):
        x, target = make((9, 40), dtype, kind, "cpu")
        given = options(40, lambda n: torch.rand(n).to(dtype))
        assert all(launches(lambda x: loss(x, suit(target, given), reduction=reduction, **given), x))


@pytest.mark.parametrize("layout", IMAGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_losses_of_images(loss, dtype, layout):
    for reduction, given in (("none", {}), ("mean", {"ignore_index": 255, "weight": torch.rand(5, 1, 1).to(dtype)})):
        x, target = images(dtype, layout)
        assert all(launches(lambda x: loss(x, target, dim=1, reduction=reduction, **given), x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(4, 16), (5, 40), (9, 4097)], ids=str)
def test_chunks_of_logits(shape, dtype):
    scale, bias, at = torch.ones((), dtype=dtype), torch.ones(shape[0], 1, dtype=dtype), torch.arange(3)
    for s, b in ((None, None), (scale, scale), (scale, bias)):
        before = standin.launches()
        chunked_losses.negatives(torch.randn(shape, dtype=dtype), s, b, at)
        for out in {dtype, torch.bfloat16 if dtype == torch.float32 else dtype}:
            chunked_losses.negatives_with_gradient(torch.randn(shape, dtype=dtype), s, b, at, out)
            before += 1
        assert standin.launches() == before + 2
