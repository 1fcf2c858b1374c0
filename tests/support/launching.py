"""Launches of compiled kernels on a driver that does nothing: see `make test-tritons`."""

import itertools

import pytest
import torch
import triton
from without_gpu import standin

import sigtorch
from support.compiling import TRITON
from support.device import DEVICE

for_a_stand_in = pytest.mark.skipif(
    triton.knobs.runtime.interpret or DEVICE == "cuda",
    reason="launches for a GPU that is not there: see `make test-tritons`",
)


def by_release(ones, others, pair):
    """Every pair for the oldest release of Triton; for another one, those that have a part in common with this pair."""
    every, (one, other) = [*itertools.product(ones, others)], pair
    return every if TRITON == (3, 4) else [(a, b) for a, b in every if a == one or b == other]


def launches(call, *inputs):
    """Returns how many kernels were launched forward and backward."""
    before = standin.launches()
    with sigtorch.use_backend("triton"):
        out = call(*inputs)
        forward = standin.launches()
        torch.autograd.grad(out, [t for t in inputs if t.requires_grad], torch.ones_like(out))
    return forward - before, standin.launches() - forward
